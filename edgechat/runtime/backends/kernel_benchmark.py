"""Kernel benchmark: speed of a backend's matrix products and attention on this machine, cached across starts.

The benchmark runs in a child process, `edgechat _speeds MODULE THREADS QUICK`.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from pathlib import Path
from typing import Final

import msgspec

from edgechat import paths
from edgechat.files import JsonFile
from edgechat.hardware.cpu import candidate_thread_counts, read_cpu
from edgechat.planner.throughput import BATCHES, KernelSpeeds
from edgechat.runtime.backends import probe, verdicts
from edgechat.runtime.backends.bundle import BackendModule, Bundle, find_bundle
from edgechat.runtime.backends.selftest import disable_core_dumps

_TIMEOUT_S: Final = 120.0
# Minimum speed-up for which more threads are used, because each thread takes processor time from other programs.
_MIN_THREAD_GAIN: Final = 1.03
_QUICK_TYPE: Final = "Q4_0"
_MAX_ENTRIES: Final = 20
# Maximum size of the cache file. Twenty benchmarks take about 60 kB.
_MAX_BYTES: Final = 1 << 20

_Rates = dict[tuple[str, str, int], float]
"""Rate per second by (name, buffer type, batch size), as `edgechat_speeds` in native/src/edgechat.h writes them."""


def main(arguments: list[str]) -> int:
    """Run the benchmark of one module, which writes its results to stdout; QUICK is 1 for Q4_0 only."""
    module, n_threads, quick = arguments
    if sys.platform == "linux":
        disable_core_dumps()
    library = ctypes.CDLL(str(find_bundle().library("edgechat")))
    library.edgechat_speeds.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_int, ctypes.c_int]
    return 1 if library.edgechat_speeds(os.fsencode(module), int(n_threads), int(quick), 1) < 0 else 0


def load_speeds(bundle: Bundle, *modules: BackendModule) -> KernelSpeeds | None:
    """Return the first cached benchmark of one of `modules` on this machine; None if there is none."""
    speeds_by_key = _read()
    if not speeds_by_key:  # avoids `read_cpu`, which would take time at every start
        return None
    cpu = read_cpu()
    keys = (verdicts.verdict_key(bundle, module, cpu) for module in modules)
    return next((speeds_by_key[key] for key in keys if key in speeds_by_key), None)


def measure_speeds(
    bundle: Bundle, module: BackendModule, on_progress: probe.OnProgress = lambda status: None
) -> KernelSpeeds | None:
    """Benchmark a module that passed its self-test, and cache the result; None if the benchmark failed.

    Takes a few seconds, during which the machine should be idle. `on_progress` receives a status line per step.
    """
    thread_counts = candidate_thread_counts()
    by_count: dict[int, _Rates] = {}
    for count in thread_counts if len(thread_counts) > 1 else ():
        on_progress(f"Measuring the speed of {module.name} with {count} thread{'s' if count > 1 else ''}")
        quick_rates = _run(module, count, quick=True)
        if quick_rates is not None:
            by_count[count] = quick_rates
    decode_threads = _best_count(by_count, BATCHES[0]) if by_count else thread_counts[-1]
    on_progress(f"Measuring the speed of {module.name}")
    full_rates = _run(module, decode_threads, quick=False)
    if full_rates is None:
        return None
    prefill_threads = _best_count(by_count, BATCHES[-1]) if by_count else decode_threads
    speeds = msgspec.structs.replace(
        summarize(full_rates, module.name, decode_threads),
        decode_threads=decode_threads, prefill_threads=prefill_threads,
        max_threads=thread_counts[-1],
    )  # fmt: skip
    speeds_by_key = _read()
    speeds_by_key[verdicts.verdict_key(bundle, module, read_cpu())] = speeds
    _file().save(dict(list(speeds_by_key.items())[-_MAX_ENTRIES:]))
    return speeds


def summarize(rates: _Rates, backend: str, n_threads: int) -> KernelSpeeds:
    """Group the rates by tensor type.

    `products` has the rates of the memory layout in which llama.cpp loads weights; `plain` has those of the layout in
    the model file, if the two layouts differ.
    """
    products: dict[str, dict[int, float]] = {}
    plain: dict[str, dict[int, float]] = {}
    attention: dict[str, dict[int, float]] = {}
    layouts: dict[str, list[str]] = {}
    for (name, layout, batch), per_s in rates.items():
        if name.startswith("attention "):
            attention.setdefault(name.removeprefix("attention "), {})[batch] = per_s
        elif layout and layout not in layouts.setdefault(name, []):
            layouts[name].append(layout)
    for name, type_layouts in layouts.items():
        # The plain layout is listed first; llama.cpp loads weights in the first extra layout.
        has_extra = len(type_layouts) > 1
        products[name] = _by_batch(rates, name, type_layouts[1 if has_extra else 0])
        if has_extra:
            plain[name] = _by_batch(rates, name, type_layouts[0])
    return KernelSpeeds(
        backend=backend, n_threads=n_threads, products=products, plain=plain, attention=attention,
        operations_per_s=rates.get(("operation", "", 1), 0.0), products_per_s=rates.get(("product", "", 1), 0.0),
    )  # fmt: skip


def _by_batch(rates: _Rates, name: str, layout: str) -> dict[int, float]:
    return {batch: rates[name, layout, batch] for batch in BATCHES if (name, layout, batch) in rates}


def _run(module: BackendModule, n_threads: int, *, quick: bool) -> _Rates | None:
    """Run the benchmark in a child process; None if it failed, stalled, or took longer than `_TIMEOUT_S`."""
    rates: _Rates = {}
    is_done = False

    def parse(line: str) -> None:
        nonlocal is_done
        fields = line.split("\t")
        if len(fields) != 5 or fields[0] != "speed":  # noqa: PLR2004  (see edgechat_speeds in edgechat.h)
            return
        _, name, layout, batch, per_s = fields
        is_done = is_done or name == "done"
        # The benchmark prints the type names of ggml (q4_K), but model headers use upper case (Q4_K).
        is_type = not name.startswith("attention") and name not in {"operation", "product"}
        rates[name.upper() if is_type else name, layout, int(batch)] = float(per_s)

    arguments = ["_speeds", module.path, str(n_threads), str(int(quick))]
    deadline = time.monotonic() + _TIMEOUT_S
    is_stalled, code = probe.run_child(Path(module.path).parent, arguments, parse, deadline=deadline)
    return rates if is_done and not is_stalled and code == 0 else None


def _best_count(by_count: dict[int, _Rates], batch: int) -> int:
    """Return the thread count with the highest rate for `batch`; of nearly equal counts, the smallest."""
    best, best_rate = max(by_count), 0.0
    for count in sorted(by_count):
        rates = [rate for (name, _, n), rate in by_count[count].items() if name == _QUICK_TYPE and n == batch]
        if rates and max(rates) > best_rate * _MIN_THREAD_GAIN:
            best, best_rate = count, max(rates)
    return best


def _file() -> JsonFile[dict[str, KernelSpeeds]]:
    return JsonFile(paths.kernel_speeds_file(), dict[str, KernelSpeeds], max_bytes=_MAX_BYTES)


def _read() -> dict[str, KernelSpeeds]:
    return _file().read() or {}
