"""Kernel benchmark: speed of a backend's matrix products and attention on this machine, cached across starts.

The benchmark runs in a child process, `edgechat _speeds MODULE THREADS QUICK`.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from edgechat import paths, process
from edgechat.files import JsonFile
from edgechat.hardware.contention import LongStopwatch, is_machine_busy
from edgechat.hardware.cpu import candidate_thread_counts, read_cpu
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
# Age from which the speeds are measured again, because drivers, kernels and cooling change.
_MAX_AGE_S: Final = 30 * 86400.0
# Maximum number of runs if other programs disturb the benchmark: quick benchmark (1 s) and full benchmark.
_MAX_QUICK_RUNS: Final = 3
_MAX_FULL_RUNS: Final = 2

# Number of tensor types that a full benchmark measures (native/src/speeds.cpp); used only to compute the progress.
_N_TYPES: Final = 21
# First field of the output line that reports why the rates are too low.
_DISTURBED_FIELD: Final = "disturbed"

_Rates = dict[tuple[str, str, int], float]
"""Rates per second by (name, buffer type, batch size), from the output of `edgechat_speeds` (native/src/edgechat.h)."""


def main(arguments: list[str]) -> int:
    """Benchmark one module and write the rates to stdout. If QUICK is 1, only Q4_0 is measured."""
    module, n_threads, quick = arguments
    process.end_with_parent()
    if sys.platform == "linux":
        disable_core_dumps()
    library = ctypes.CDLL(str(find_bundle().library_path("edgechat")))
    library.edgechat_speeds.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_int, ctypes.c_int]
    stopwatch = LongStopwatch(int(n_threads))
    if library.edgechat_speeds(os.fsencode(module), int(n_threads), int(quick), 1) < 0:
        return 1
    timing = stopwatch.stop()
    if timing.is_disturbed:
        os.write(1, f"{_DISTURBED_FIELD}\t{timing.disturbance}\n".encode())
    return 0


def needs_measurement(speeds: KernelSpeeds | None) -> bool:
    """Return whether the benchmark should be run: without a result, after 30 days, and after a disturbed run.

    A disturbed run is repeated only when the machine is idle, which is measured for a quarter of a second.
    """
    if speeds is None or not 0 <= time.time() - speeds.measured_at <= _MAX_AGE_S:
        return True
    return speeds.is_disturbed and not is_machine_busy(speeds.n_threads)


def load_speeds(bundle: Bundle, *modules: BackendModule) -> KernelSpeeds | None:
    """Return the cached benchmark of the first of `modules` with one for this machine; None if no module has one."""
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

    Takes a few seconds, during which the machine should be idle: a disturbed benchmark is repeated, and its fastest
    rates are used until an undisturbed benchmark replaces them. `on_progress` receives a status line with the progress
    in percent for each tensor type.
    """
    thread_counts = candidate_thread_counts()
    rates_by_count: dict[int, _Rates] = {}
    is_disturbed = False
    quick_counts = thread_counts if len(thread_counts) > 1 else []
    n_parts = len(quick_counts) + _N_TYPES

    def report(first_part: int, run_index: int, n_types: int) -> None:
        work = f"Measuring the speed of {module.name}"
        if run_index > 0:
            work = "Measuring again, because other programs were busy"
        on_progress(f"{work}: {100 * min(first_part + n_types, n_parts) // n_parts} %")

    for i, count in enumerate(quick_counts):
        quick_run = _run_undisturbed(module, count, quick=True, on_types=partial(report, i))
        if quick_run is not None:
            rates_by_count[count] = quick_run.rates
            is_disturbed |= quick_run.is_disturbed
    n_decode_threads = (
        _find_fastest_thread_count(rates_by_count, BATCH_SIZES[0]) if rates_by_count else thread_counts[-1]
    )
    full_run = _run_undisturbed(module, n_decode_threads, quick=False, on_types=partial(report, len(quick_counts)))
    if full_run is None:
        return None
    n_prefill_threads = (
        _find_fastest_thread_count(rates_by_count, BATCH_SIZES[-1]) if rates_by_count else n_decode_threads
    )
    speeds = msgspec.structs.replace(
        kernel_speeds_from_rates(full_run.rates, module.name, n_decode_threads),
        n_decode_threads=n_decode_threads, n_prefill_threads=n_prefill_threads,
        max_n_threads=thread_counts[-1], measured_at=time.time(), is_disturbed=is_disturbed or full_run.is_disturbed,
    )  # fmt: skip
    speeds_by_key = _read_cache()
    key = verdicts.compute_verdict_key(bundle, module, read_cpu())
    speeds = choose_speeds(speeds_by_key.pop(key, None), speeds)
    speeds_by_key[key] = speeds
    _open_cache_file().save(dict(list(speeds_by_key.items())[-_MAX_ENTRIES:]))
    return speeds


def choose_speeds(saved_speeds: KernelSpeeds | None, new_speeds: KernelSpeeds) -> KernelSpeeds:
    """Return the speeds to save: the new ones, unless they were disturbed and the saved ones are recent and better."""
    if (
        saved_speeds is None
        or not new_speeds.is_disturbed
        or saved_speeds.max_n_threads != new_speeds.max_n_threads
        or not 0 <= new_speeds.measured_at - saved_speeds.measured_at <= _MAX_AGE_S
    ):
        return new_speeds
    is_saved_better = not saved_speeds.is_disturbed or _total_rate(saved_speeds) > _total_rate(new_speeds)
    return saved_speeds if is_saved_better else new_speeds


def _total_rate(speeds: KernelSpeeds) -> float:
    return sum(rates.get(1, 0.0) for rates in speeds.product_rates.values())


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


class _Run(msgspec.Struct):
    """Rates of a benchmark, and whether other programs or a pause made them too low."""

    rates: _Rates
    is_disturbed: bool = False


def _ignore_types(_run_index: int, _n_types: int) -> None:
    pass


def _run_undisturbed(
    module: BackendModule, n_threads: int, *, quick: bool, on_types: Callable[[int, int], None] = _ignore_types
) -> _Run | None:
    """Run a benchmark until it is undisturbed, and return its rates.

    `on_types` receives the index of the run, from 0, and the number of tensor types that it has measured so far. After
    the maximum number of disturbed runs, or after a failed run, return the fastest rates of the disturbed runs; None if
    there are none.
    """
    fastest_rates: _Rates = {}
    for run_index in range(_MAX_QUICK_RUNS if quick else _MAX_FULL_RUNS):
        run = _run_benchmark(module, n_threads, quick=quick, on_types=partial(on_types, run_index))
        if run is None:
            break
        if not run.is_disturbed:
            return run
        fastest_rates |= {key: max(rate, fastest_rates.get(key, 0.0)) for key, rate in run.rates.items()}
    return _Run(fastest_rates, is_disturbed=True) if fastest_rates else None


def _run_benchmark(
    module: BackendModule, n_threads: int, *, quick: bool, on_types: Callable[[int], None]
) -> _Run | None:
    """Benchmark a module in a child process and return the rates; None if the process failed, stalled or timed out."""
    run = _Run({})
    types: set[str] = set()
    on_types(0)
    is_done = False

    def parse_line(line: str) -> None:
        nonlocal is_done
        fields = line.split("\t")
        run.is_disturbed |= fields[0] == _DISTURBED_FIELD
        if len(fields) != 5 or fields[0] != "speed":  # noqa: PLR2004  (see edgechat_speeds in edgechat.h)
            return
        _, name, layout, batch, rate = fields
        is_done = is_done or name == "done"
        # The benchmark prints ggml's type names (q4_K), but model headers use upper case (Q4_K), so type names are
        # converted.
        is_tensor_type = not name.startswith("attention") and name not in {"operation", "product"}
        run.rates[name.upper() if is_tensor_type else name, layout, int(batch)] = float(rate)
        if is_tensor_type and name != "done" and name not in types:
            on_types(len(types))  # the last type is not complete yet
            types.add(name)

    arguments = ["_speeds", module.path, str(n_threads), str(int(quick))]
    result = probe.run_child(Path(module.path).parent, arguments, parse_line, n_threads=n_threads, timeout_s=_TIMEOUT_S)
    return run if is_done and not result.was_killed and result.exit_code == 0 else None


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
