"""How fast the chosen backend multiplies on this machine: measured once, in a process of its own, and kept with its verdict.

`edgechat _speeds MODULE THREADS QUICK` is that process.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from edgechat import paths
from edgechat.files import JsonFile
from edgechat.hardware.cpu import candidate_thread_counts, read_cpu
from edgechat.planner.throughput import BATCHES, KernelSpeeds
from edgechat.runtime.backends import probe, verdicts
from edgechat.runtime.backends.bundle import BackendModule, Bundle, find_bundle
from edgechat.runtime.backends.selftest import no_core_dump

_TOTAL_S: Final = 120.0
# One thread more must bring this much, or it only takes power from the rest of the machine.
_WORTH_A_THREAD: Final = 1.03
_QUICK: Final = "Q4_0"
_KEPT: Final = 20
# Twenty benchmarks take about 60 kB.
_MAX_BYTES: Final = 1 << 20

# What a measurement yields: (what, layout, columns) to so many a second.
_Raw = dict[tuple[str, str, int], float]


def main(arguments: list[str]) -> int:
    """Measure; lines go to stdout."""
    module, n_threads, quick = arguments
    if sys.platform == "linux":
        no_core_dump()
    library = ctypes.CDLL(str(find_bundle().library("edgechat")))
    library.edgechat_speeds.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_int, ctypes.c_int]
    return 1 if library.edgechat_speeds(os.fsencode(module), int(n_threads), int(quick), 1) < 0 else 0


def load_speeds(bundle: Bundle, *modules: BackendModule) -> KernelSpeeds | None:
    """What was measured on this machine of the first of these modules of which anything was."""
    known = _read()
    if not known:  # every start asks
        return None
    cpu = read_cpu()
    return next((known[key] for module in modules if (key := verdicts.verdict_key(bundle, module, cpu)) in known), None)


def measure_speeds(
    bundle: Bundle, module: BackendModule, on_progress: Callable[[str], None] = lambda words: None
) -> KernelSpeeds | None:
    """Measure a module whose verdict is good, and remember it; None if that failed.

    Takes a few seconds, with a line of words to `tell` for each step. Nothing else should compute meanwhile.
    """
    counts = candidate_thread_counts()
    by_count: dict[int, _Raw] = {}
    for count in counts if len(counts) > 1 else ():
        on_progress(f"measuring {module.name} with {count} thread{'s' if count > 1 else ''}, once")
        quick = _run(module, count, quick=True)
        if quick is not None:
            by_count[count] = quick
    decode_threads = _best(by_count, BATCHES[0]) if by_count else counts[-1]
    on_progress(f"measuring the speed of {module.name}, once")
    full = _run(module, decode_threads, quick=False)
    if full is None:
        return None
    speeds = msgspec.structs.replace(
        summarize(full, module.name, decode_threads), decode_threads=decode_threads,
        prefill_threads=_best(by_count, BATCHES[-1]) if by_count else decode_threads, max_threads=counts[-1],
    )  # fmt: skip
    known = _read()
    known[verdicts.verdict_key(bundle, module, read_cpu())] = speeds
    _file().save(dict(list(known.items())[-_KEPT:]))
    return speeds


def summarize(raw: _Raw, backend: str, n_threads: int) -> KernelSpeeds:
    """Sort what was measured; of types with several layouts the last one is what models are loaded in."""
    products: dict[str, dict[int, float]] = {}
    plain: dict[str, dict[int, float]] = {}
    attention: dict[str, dict[int, float]] = {}
    layouts: dict[str, list[str]] = {}
    for (what, layout, batch), per_s in raw.items():
        if what.startswith("attention "):
            attention.setdefault(what.removeprefix("attention "), {})[batch] = per_s
        elif layout:
            seen = layouts.setdefault(what, [])
            if layout not in seen:
                seen.append(layout)
    for name, seen in layouts.items():
        # The first extra layout is the one that llama.cpp takes.
        products[name] = _rates(raw, name, seen[1] if len(seen) > 1 else seen[0])
        if len(seen) > 1:
            plain[name] = _rates(raw, name, seen[0])
    return KernelSpeeds(
        backend=backend, n_threads=n_threads, products=products, plain=plain, attention=attention,
        operations_per_s=raw.get(("operation", "", 1), 0.0), products_per_s=raw.get(("product", "", 1), 0.0),
    )  # fmt: skip


def _rates(raw: _Raw, name: str, layout: str) -> dict[int, float]:
    return {batch: raw[name, layout, batch] for batch in BATCHES if (name, layout, batch) in raw}


def _run(module: BackendModule, n_threads: int, *, quick: bool) -> _Raw | None:
    found: _Raw = {}
    done = False

    def read(line: str) -> None:
        nonlocal done
        fields = line.split("\t")
        if len(fields) != 5 or fields[0] != "speed":  # noqa: PLR2004  (what edgechat.h says of a line)
            return
        _, what, layout, batch, per_s = fields
        done = done or what == "done"
        # ggml writes q4_K where a file's header has Q4_K.
        name = what if what.startswith("attention") or what in {"operation", "product"} else what.upper()
        found[name, layout, int(batch)] = float(per_s)

    arguments = ["_speeds", module.path, str(n_threads), str(int(quick))]
    stalled, code = probe.run_child(Path(module.path).parent, arguments, read, deadline=time.monotonic() + _TOTAL_S)
    return found if done and not stalled and code == 0 else None


def _best(by_count: dict[int, _Raw], batch: int) -> int:
    """The fastest number of threads; of nearly equals the smallest."""
    best, best_rate = max(by_count), 0.0
    for count in sorted(by_count):
        rates = [rate for (what, _, columns), rate in by_count[count].items() if what == _QUICK and columns == batch]
        if rates and max(rates) > best_rate * _WORTH_A_THREAD:
            best, best_rate = count, max(rates)
    return best


def _file() -> JsonFile[dict[str, KernelSpeeds]]:
    return JsonFile(paths.kernel_speeds_file(), dict[str, KernelSpeeds], max_bytes=_MAX_BYTES)


def _read() -> dict[str, KernelSpeeds]:
    return _file().read() or {}
