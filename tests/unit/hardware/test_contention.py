"""Detection of disturbed measurements: property tests, recorded usages, and a process that is really stopped."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat.hardware import contention
from edgechat.hardware.contention import AwakeClock, LoadMonitor, LongStopwatch, Stopwatch, Usage, find_disturbance
from tests.waiting import until

N_THREADS = st.integers(1, 64)
SECONDS = st.floats(0.001, 100)


@given(SECONDS, N_THREADS, st.integers(0, 1000), st.floats(0, 0.3))
def test_threads_that_computed_all_the_time_are_undisturbed(
    elapsed_s: float, n_threads: int, n_preemptions: int, excess_load: float
) -> None:
    usage = Usage(
        elapsed_s=elapsed_s, cpu_s=n_threads * elapsed_s, n_preemptions=n_preemptions, excess_load=excess_load
    )
    assert not find_disturbance(usage, n_threads)


@given(SECONDS, N_THREADS, st.floats(2.5, 1000))
def test_pause_in_a_measurement_is_noticed(elapsed_s: float, n_threads: int, n_times: float) -> None:
    usage = Usage(elapsed_s=max(0.005, elapsed_s * n_times), cpu_s=n_threads * elapsed_s)
    assert find_disturbance(usage, n_threads)


@given(
    SECONDS, st.integers(0, 8), st.floats(0, 1), st.integers(0, 100), st.floats(0, 2), st.floats(0, 5),
    st.sampled_from(["n_preemptions", "suspended_s", "excess_load"]), st.integers(1, 100),
)  # fmt: skip
def test_more_disturbance_is_never_less(
    elapsed_s: float, n_threads: int, fraction: float, n_preemptions: int, suspended_s: float, excess_load: float,
    name: str, more: int,
) -> None:  # fmt: skip
    values = {"n_preemptions": n_preemptions, "suspended_s": suspended_s, "excess_load": excess_load}
    cpu_s = fraction * max(1, n_threads) * elapsed_s

    def is_disturbed(values: dict[str, float]) -> bool:
        return bool(find_disturbance(Usage(elapsed_s=elapsed_s, cpu_s=cpu_s, **values), n_threads))  # type: ignore[arg-type]

    if is_disturbed(values):
        assert is_disturbed(values | {name: values[name] + more})


@pytest.mark.parametrize(
    ("usage", "n_threads", "is_disturbed"),
    [
        (Usage(elapsed_s=0.005, cpu_s=0.0096), 2, False),
        # A wake-up of the client took 0.2 ms of one core.
        (Usage(elapsed_s=0.05, cpu_s=0.0998, n_preemptions=1), 2, False),
        (Usage(elapsed_s=0.021, cpu_s=0.029, n_preemptions=3), 2, True),
        (Usage(elapsed_s=0.02, cpu_s=0.026), 2, False),  # slow cores, for which fast ones sleep
        (Usage(elapsed_s=0.02, cpu_s=0.04, excess_load=0.9), 2, True),
        (Usage(elapsed_s=120.02, cpu_s=0.04), 2, True),  # stopped for two minutes
        (Usage(elapsed_s=0.02, cpu_s=0.04, suspended_s=3600), 2, True),
        (Usage(elapsed_s=0.02, cpu_s=0.0005), 0, False),  # on a GPU
        (Usage(elapsed_s=60.0, cpu_s=0.01), 0, True),
    ],
)  # fmt: skip
def test_recorded_usages(usage: Usage, n_threads: int, is_disturbed: bool) -> None:
    assert bool(find_disturbance(usage, n_threads)) == is_disturbed


@pytest.mark.parametrize(
    ("elapsed_s", "cpu_s", "n_threads", "is_disturbed"),
    [
        (0.014, 0.0, 2, False),  # between two ticks
        (0.031, 0.016, 2, False),
        (0.120, 0.109, 2, False),
        (0.130, 0.094, 2, True),
        (1.5, 0.016, 0, False),  # on a GPU
        (60.0, 0.016, 0, True),
    ],
)
def test_cpu_time_in_ticks_of_windows_is_compared_only_after_eight_ticks(
    elapsed_s: float, cpu_s: float, n_threads: int, is_disturbed: bool
) -> None:
    usage = Usage(elapsed_s=elapsed_s, cpu_s=cpu_s)
    assert bool(find_disturbance(usage, n_threads, cpu_time_step_s=1 / 64)) == is_disturbed
    assert find_disturbance(usage, n_threads, cpu_time_step_s=0.0)  # with the clock of Linux


def test_load_of_other_programs_is_the_busy_time_without_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contention, "count_allowed_cpus", lambda: 4)
    now, busy_s, own_s = 100.0, 1000.0, 50.0
    monitor = LoadMonitor(lambda: own_s, lambda: busy_s, lambda: now)
    assert monitor.others_load() is None
    assert monitor.excess_load(4) == 0.0
    now, busy_s, own_s = 100.5, 1001.5, 51.0
    assert monitor.others_load() == pytest.approx(1.0)
    assert monitor.excess_load(4) == pytest.approx(1.0)
    assert monitor.excess_load(3) == 0.0
    now, busy_s = 100.6, 1002.0  # too soon: the last window still counts
    assert monitor.others_load() == pytest.approx(1.0)
    now, busy_s = 200.0, 1100.0  # too late: the load of the last minutes says nothing about the present
    monitor.restart()
    assert monitor.others_load() is None
    assert monitor.n_windows == 2
    now, busy_s, own_s = 300.0, 1400.0, 151.0  # a computation of 100 s
    assert monitor.others_load() == pytest.approx(2.0)


def test_system_without_cpu_times_has_an_unknown_load() -> None:
    monitor = LoadMonitor(lambda: 1.0, lambda: None)
    assert monitor.others_load() is None
    assert monitor.excess_load(1) == 0.0


def test_busy_time_of_this_machine_grows() -> None:
    before = contention.read_busy_s_of_cpus()
    assert before is None or before > 0
    assert contention.is_machine_busy(1) in {True, False}


def test_stopwatch_measures_at_least_the_cpu_time_of_one_thread() -> None:
    stopwatch = Stopwatch(1)
    total = sum(range(10**5))
    timing = stopwatch.stop()
    assert total > 0
    assert 0 < timing.elapsed_s < 60
    assert timing.is_disturbed == bool(timing.disturbance)


def test_clock_stands_still_during_a_pause() -> None:
    clock = AwakeClock(iter([0.0, 0.5, 1.0, 3600.0, 3600.5]).__next__)
    assert [clock.read() for _ in range(4)] == [0.5, 1.0, 2.0, 2.5]


_MEASURED_PROCESS = """
import os, sys, time
from edgechat.hardware.contention import LongStopwatch, Stopwatch
long_stopwatch = LongStopwatch(0)
stopwatch = Stopwatch(1)
print("started", flush=True)
started_at = time.process_time()
while time.process_time() - started_at < 0.1 or not os.path.exists(sys.argv[1]):
    pass
timing = stopwatch.stop()
print(timing.elapsed_s, timing.disturbance, "|", long_stopwatch.stop().disturbance)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot stop a process by a signal")
def test_process_that_was_stopped_discards_the_measurement(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _MEASURED_PROCESS, str(tmp_path / "may end")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            assert child.stdout.readline() == "started\n"
            os.kill(child.pid, signal.SIGSTOP)
            until(lambda: psutil.Process(child.pid).status() == psutil.STATUS_STOPPED)
            threading.Event().wait(1.0)
            os.kill(child.pid, signal.SIGCONT)
            (tmp_path / "may end").touch()
            output = child.stdout.read()
        finally:
            child.kill()
    elapsed_s, _, reasons = output.partition(" ")
    assert float(elapsed_s) > 1.0
    first, _, second = reasons.partition("|")
    assert first.strip()
    assert "paused" in second


def test_long_stopwatch_notices_other_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contention, "count_allowed_cpus", lambda: 2)
    monkeypatch.setattr(contention, "_LOAD_WINDOW_S", 0.01)
    monkeypatch.setattr(contention, "_TICK_S", 0.01)
    monkeypatch.setattr(contention, "_MIN_PAUSE_S", 600.0)  # a busy machine can stop this process
    for others_load, is_disturbed in ((1.0, True), (0.1, False)):
        seconds = itertools.count(0.0, 0.5)
        busy_s = itertools.count(0.0, 0.5 * others_load)
        monitor = LoadMonitor(lambda: 0.0, busy_s.__next__, seconds.__next__)
        monkeypatch.setattr(contention, "LoadMonitor", lambda m=monitor: m)
        stopwatch = LongStopwatch(2)
        until(lambda m=monitor: m.n_windows > 3)  # type: ignore[misc]
        assert stopwatch.stop().is_disturbed == is_disturbed


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no /proc/stat")
def test_busy_time_of_linux_is_that_of_psutil(monkeypatch: pytest.MonkeyPatch) -> None:
    before = contention.read_busy_s_of_cpus()
    with monkeypatch.context() as context:
        context.setattr(sys, "platform", "other")
        reference = contention.read_busy_s_of_cpus()
    after = contention.read_busy_s_of_cpus()
    assert before is not None
    assert reference is not None
    assert after is not None
    assert before - 1 < reference < after + 1  # /proc/stat rounds the time of each CPU


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no /proc/stat")
@pytest.mark.parametrize(("priority", "expected_s"), [(0, 11.0), (5, 20.0), (-5, 11.0)])
def test_low_priority_counts_in_full_for_a_process_of_low_priority(
    monkeypatch: pytest.MonkeyPatch, priority: int, expected_s: float
) -> None:
    cpu = min(os.sched_getaffinity(0))
    monkeypatch.setattr(Path, "read_text", lambda *_arguments: f"cpu{cpu} 1000 1000 0 9 9 0 0 0\n")
    monkeypatch.setattr(os, "getpriority", lambda _kind, _process: priority)
    monkeypatch.setattr(os, "sysconf", lambda _name: 100)
    assert contention.read_busy_s_of_cpus() == expected_s
