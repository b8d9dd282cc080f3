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
from edgechat.humanize import format_count
from edgechat.planner.throughput import BATCH_SIZES, KernelSpeeds
from edgechat.runtime.backends import probe, verdicts
from edgechat.runtime.backends.bundle import BackendModule, Bundle, find_bundle
from edgechat.runtime.backends.selftest import disable_core_dumps

_TIMEOUT_S: Final = 120.0
# Minimum speed-up that justifies more threads, since each thread takes processor time from other programs.
_MIN_THREAD_GAIN: Final = 1.03
_QUICK_TYPE: Final = "Q4_0"
_MAX_ENTRIES: Final = 20
# Maximum size of the cache file. Twenty benchmarks take about 60 kB.
_MAX_FILE_BYTES: Final = 1 << 20

_Rates = dict[tuple[str, str, int], float]
"""Rates per second by (name, buffer type, batch size), from the output of `edgechat_speeds` (native/src/edgechat.h)."""


def main(arguments: list[str]) -> int:
    """Benchmark one module and write the rates to stdout. If QUICK is 1, only Q4_0 is measured."""
    module, n_threads, quick = arguments
    if sys.platform == "linux":
        disable_core_dumps()
    library = ctypes.CDLL(str(find_bundle().library_path("edgechat")))
    library.edgechat_speeds.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_int, ctypes.c_int]
    return 1 if library.edgechat_speeds(os.fsencode(module), int(n_threads), int(quick), 1) < 0 else 0


def load_speeds(bundle: Bundle, *modules: BackendModule) -> KernelSpeeds | None:
    """Return the cached benchmark of the first of `modules` that has one for this machine; None if none has."""
    speeds_by_key = _read_cache()
    if not speeds_by_key:  # saves the time of `read_cpu` if nothing is cached
        return None
    cpu = read_cpu()
    keys = (verdicts.compute_verdict_key(bundle, module, cpu) for module in modules)
    return next((speeds_by_key[key] for key in keys if key in speeds_by_key), None)


def measure_speeds(
    bundle: Bundle, module: BackendModule, on_progress: probe.OnProgress = lambda status: None
) -> KernelSpeeds | None:
    """Benchmark a module that passed its self-test, and cache and return the result; None if the benchmark failed.

    Takes a few seconds, during which the machine should be idle. `on_progress` receives a status line for each step.
    """
    thread_counts = candidate_thread_counts()
    rates_by_count: dict[int, _Rates] = {}
    for count in thread_counts if len(thread_counts) > 1 else ():
        on_progress(f"Measuring the speed of {module.name} with {format_count(count, 'thread')}")
        quick_rates = _run_benchmark(module, count, quick=True)
        if quick_rates is not None:
            rates_by_count[count] = quick_rates
    n_decode_threads = (
        _find_fastest_thread_count(rates_by_count, BATCH_SIZES[0]) if rates_by_count else thread_counts[-1]
    )
    on_progress(f"Measuring the speed of {module.name}")
    full_rates = _run_benchmark(module, n_decode_threads, quick=False)
    if full_rates is None:
        return None
    n_prefill_threads = (
        _find_fastest_thread_count(rates_by_count, BATCH_SIZES[-1]) if rates_by_count else n_decode_threads
    )
    speeds = msgspec.structs.replace(
        kernel_speeds_from_rates(full_rates, module.name, n_decode_threads),
        n_decode_threads=n_decode_threads, n_prefill_threads=n_prefill_threads,
        max_n_threads=thread_counts[-1],
    )  # fmt: skip
    speeds_by_key = _read_cache()
    speeds_by_key[verdicts.compute_verdict_key(bundle, module, read_cpu())] = speeds
    _open_cache_file().save(dict(list(speeds_by_key.items())[-_MAX_ENTRIES:]))
    return speeds


def kernel_speeds_from_rates(rates: _Rates, backend: str, n_threads: int) -> KernelSpeeds:
    """Convert the rates of a benchmark to KernelSpeeds.

    `product_rates` gets the rates for the memory layout into which llama.cpp loads weights. If that layout differs from
    the layout of the model file, `file_layout_product_rates` gets the rates for the layout of the file.
    """
    product_rates: dict[str, dict[int, float]] = {}
    file_layout_product_rates: dict[str, dict[int, float]] = {}
    attention_rates: dict[str, dict[int, float]] = {}
    layouts: dict[str, list[str]] = {}
    for (name, layout, batch), rate in rates.items():
        if name.startswith("attention "):
            attention_rates.setdefault(name.removeprefix("attention "), {})[batch] = rate
        elif layout and layout not in layouts.setdefault(name, []):
            layouts[name].append(layout)
    for name, type_layouts in layouts.items():
        # The benchmark lists the layout of the file first. If there is a second layout, llama.cpp loads the weights
        # into it.
        has_second_layout = len(type_layouts) > 1
        product_rates[name] = _select_rates_by_batch(rates, name, type_layouts[1 if has_second_layout else 0])
        if has_second_layout:
            file_layout_product_rates[name] = _select_rates_by_batch(rates, name, type_layouts[0])
    return KernelSpeeds(
        backend=backend, n_threads=n_threads, product_rates=product_rates,
        file_layout_product_rates=file_layout_product_rates, attention_rates=attention_rates,
        operations_per_s=rates.get(("operation", "", 1), 0.0), products_per_s=rates.get(("product", "", 1), 0.0),
    )  # fmt: skip


def _select_rates_by_batch(rates: _Rates, name: str, layout: str) -> dict[int, float]:
    return {batch: rates[name, layout, batch] for batch in BATCH_SIZES if (name, layout, batch) in rates}


def _run_benchmark(module: BackendModule, n_threads: int, *, quick: bool) -> _Rates | None:
    """Benchmark a module in a child process and return the rates; None if the process failed, stalled or timed out."""
    rates: _Rates = {}
    is_done = False

    def parse_line(line: str) -> None:
        nonlocal is_done
        fields = line.split("\t")
        if len(fields) != 5 or fields[0] != "speed":  # noqa: PLR2004  (see edgechat_speeds in edgechat.h)
            return
        _, name, layout, batch, rate = fields
        is_done = is_done or name == "done"
        # The benchmark prints ggml's type names (q4_K), but model headers use upper case (Q4_K), so type names are
        # converted.
        is_tensor_type = not name.startswith("attention") and name not in {"operation", "product"}
        rates[name.upper() if is_tensor_type else name, layout, int(batch)] = float(rate)

    arguments = ["_speeds", module.path, str(n_threads), str(int(quick))]
    deadline = time.monotonic() + _TIMEOUT_S
    was_killed, exit_code = probe.run_child(Path(module.path).parent, arguments, parse_line, deadline=deadline)
    return rates if is_done and not was_killed and exit_code == 0 else None


def _find_fastest_thread_count(rates_by_count: dict[int, _Rates], batch: int) -> int:
    """Return the fastest thread count for batches of `batch` columns; among nearly equal counts, the smallest."""
    best_count, best_rate = max(rates_by_count), 0.0
    for count in sorted(rates_by_count):
        rates = [rate for (name, _, n), rate in rates_by_count[count].items() if name == _QUICK_TYPE and n == batch]
        if rates and max(rates) > best_rate * _MIN_THREAD_GAIN:
            best_count, best_rate = count, max(rates)
    return best_count


def _open_cache_file() -> JsonFile[dict[str, KernelSpeeds]]:
    return JsonFile(paths.kernel_speeds_file(), dict[str, KernelSpeeds], max_bytes=_MAX_FILE_BYTES)


def _read_cache() -> dict[str, KernelSpeeds]:
    return _open_cache_file().read() or {}
