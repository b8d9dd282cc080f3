"""Kernel benchmark: grouping of the results, and the cache file."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from edgechat import paths
from edgechat.planner.throughput import KernelSpeeds
from edgechat.runtime.backends import kernel_benchmark, probe
from edgechat.runtime.backends.bundle import BackendModule, Bundle
from edgechat.runtime.backends.kernel_benchmark import kernel_speeds_from_rates, load_speeds

if TYPE_CHECKING:
    import pytest

BUNDLE = Bundle(directory="/b", build_id="1", llama_cpp_python="1", llama_cpp_commit="1", compiler="cc", modules=())


def test_types_with_an_extra_layout_have_loaded_and_plain_rates() -> None:
    speeds = kernel_speeds_from_rates(
        {
            ("Q4_0", "CPU", 1): 10.0, ("Q4_0", "CPU_REPACK", 1): 20.0, ("Q4_0", "CPU_REPACK", 32): 90.0,
            ("F16", "CPU", 1): 5.0, ("attention f16", "", 1): 7.0, ("operation", "", 1): 3.0, ("product", "", 1): 2.0,
            ("DONE", "", 0): 0.0,
        },
        "cpu-x64", 2,
    )  # fmt: skip
    assert speeds.product_rates == {"Q4_0": {1: 20.0, 32: 90.0}, "F16": {1: 5.0}}
    assert speeds.file_layout_product_rates == {"Q4_0": {1: 10.0}}
    assert speeds.attention_rates == {"f16": {1: 7.0}}
    assert (speeds.operations_per_s, speeds.products_per_s) == (3.0, 2.0)


def test_oversized_cache_file_is_not_read() -> None:
    path = paths.kernel_speeds_file()
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.truncate(1 << 36)
    assert load_speeds(BUNDLE, BackendModule(name="cpu-x64", path="/none")) is None


def make_speeds(rate: float, *, measured_at: float = 1e9, is_disturbed: bool = False) -> KernelSpeeds:
    return KernelSpeeds(
        backend="cpu-x64", n_threads=2, product_rates={"Q4_0": {1: rate}}, measured_at=measured_at,
        is_disturbed=is_disturbed,
    )  # fmt: skip


def test_undisturbed_speeds_replace_disturbed_ones_and_not_the_reverse() -> None:
    quiet, busy, busier = make_speeds(10), make_speeds(5, is_disturbed=True), make_speeds(2, is_disturbed=True)
    assert kernel_benchmark.choose_speeds(None, busy) == busy
    assert kernel_benchmark.choose_speeds(busy, quiet) == quiet
    assert kernel_benchmark.choose_speeds(quiet, busy) == quiet
    assert kernel_benchmark.choose_speeds(busy, busier) == busy
    assert kernel_benchmark.choose_speeds(busier, busy) == busy
    later = make_speeds(5, measured_at=1e9 + 40 * 86400, is_disturbed=True)
    assert kernel_benchmark.choose_speeds(quiet, later) == later


def test_disturbed_and_old_speeds_are_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    is_busy = False
    monkeypatch.setattr(kernel_benchmark, "is_machine_busy", lambda n_threads: is_busy)
    assert kernel_benchmark.needs_measurement(None)
    assert not kernel_benchmark.needs_measurement(make_speeds(10, measured_at=now))
    assert kernel_benchmark.needs_measurement(make_speeds(10, measured_at=now - 40 * 86400))
    assert kernel_benchmark.needs_measurement(make_speeds(10, measured_at=0.0))  # of an earlier version
    assert kernel_benchmark.needs_measurement(make_speeds(5, measured_at=now, is_disturbed=True))
    is_busy = True
    assert not kernel_benchmark.needs_measurement(make_speeds(5, measured_at=now, is_disturbed=True))


def test_disturbed_benchmark_is_repeated_and_its_fastest_rates_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = [
        "speed\tq4_0\tCPU\t1\t10\nspeed\tq4_0\tCPU\t32\t50\nspeed\tdone\t\t0\t0\ndisturbed\tothers\n",
        "speed\tq4_0\tCPU\t1\t8\nspeed\tq4_0\tCPU\t32\t90\nspeed\tdone\t\t0\t0\ndisturbed\tothers\n",
    ]
    runs = iter([*outputs, *outputs[:1], "speed\tq4_0\tCPU\t1\t12\nspeed\tdone\t\t0\t0\n"])

    def run_child(
        directory: object, arguments: object, on_line: Callable[[str], None], *, n_threads: int, timeout_s: float
    ) -> object:
        assert n_threads == 2
        for line in next(runs).splitlines():
            on_line(line)
        return probe.ChildResult(was_killed=False, exit_code=0)

    monkeypatch.setattr(probe, "run_child", run_child)
    module = BackendModule(name="cpu-x64", path="/m")
    run = kernel_benchmark._run_undisturbed(module, 2, quick=False)
    assert run is not None
    assert run.is_disturbed
    assert {batch: rate for (name, _, batch), rate in run.rates.items() if name == "Q4_0"} == {1: 10.0, 32: 90.0}
    run = kernel_benchmark._run_undisturbed(module, 2, quick=False)
    assert run is not None
    assert not run.is_disturbed
    assert run.rates["Q4_0", "CPU", 1] == 12.0


def test_rates_of_a_disturbed_benchmark_are_used_if_its_repeat_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    disturbed = kernel_benchmark._Run({("Q4_0", "CPU", 1): 10.0, ("Q4_0", "CPU", 32): 50.0}, is_disturbed=True)
    slower = kernel_benchmark._Run({("Q4_0", "CPU", 1): 8.0}, is_disturbed=True)
    runs: list[kernel_benchmark._Run | None] = []
    monkeypatch.setattr(kernel_benchmark, "_run_benchmark", lambda *_, **__: runs.pop(0))
    module = BackendModule(name="cpu-x64", path="/m")
    for later in ([None], [slower, None], [slower, slower]):
        runs[:] = [disturbed, *later]
        run = kernel_benchmark._run_undisturbed(module, 2, quick=True)
        assert run == disturbed
        assert not runs
    runs[:] = [None]
    assert kernel_benchmark._run_undisturbed(module, 2, quick=True) is None


def test_progress_grows_with_each_tensor_type_and_names_a_repetition(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_child(
        directory: object, arguments: list[str], on_line: Callable[[str], None], *, n_threads: int, timeout_s: float
    ) -> object:
        quick = arguments[-1] == "1"
        types = ["q4_0"] if quick else [f"type{number}" for number in range(kernel_benchmark._N_TYPES + 3)]
        names = [(name, batch) for name in types for batch in (1, 4, 32)]
        for name, batch in [*([] if quick else [("operation", 1), ("attention f16", 1)]), *names, ("done", 0)]:
            on_line(f"speed\t{name}\tCPU\t{batch}\t{10 * n_threads}")
        if not quick and not any("again" in line for line in lines):
            on_line("disturbed\tothers")
        return probe.ChildResult(was_killed=False, exit_code=0)

    lines: list[str] = []
    monkeypatch.setattr(probe, "run_child", run_child)
    monkeypatch.setattr(kernel_benchmark, "candidate_thread_counts", lambda: [1, 2])
    assert kernel_benchmark.measure_speeds(BUNDLE, BackendModule(name="cpu-x64", path="/m"), lines.append) is not None
    first_run = [line for line in lines if "again" not in line]
    repetition = [line for line in lines if "again" in line]
    assert lines == first_run + repetition
    percents = [[int(line.split(": ")[1].removesuffix(" %")) for line in run] for run in (first_run, repetition)]
    assert first_run[0] == "Measuring the speed of cpu-x64: 0 %"
    assert repetition[0] == "Measuring again, because other programs were busy: 8 %"
    for percent in percents:
        assert percent == sorted(percent)
        assert percent[-1] == 100
        assert max(b - a for a, b in itertools.pairwise(percent)) <= 5
