"""Tests of `hardware.thread_count`: threads leave the cores that other programs need, and come back."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat.hardware import contention
from edgechat.hardware.contention import LoadMonitor
from edgechat.hardware.thread_count import AdaptiveThreadCount

STEP_S = 0.05


class Machine:
    """A machine with a clock, and other programs with a load that the test sets."""

    def __init__(self, n_threads: int) -> None:
        self.now, self.busy_s, self.load = 1000.0, 0.0, 0.0
        monitor = LoadMonitor(lambda: 0.0, lambda: self.busy_s, lambda: self.now)
        self.threads = AdaptiveThreadCount(n_threads, monitor)

    def pass_time(self, duration_s: float) -> None:
        self.now += duration_s
        self.busy_s += self.load * duration_s

    def decode(self, duration_s: float) -> int:
        """Decode for `duration_s`, and return the number of threads of the last step."""
        n_threads = self.threads.choose()
        for _ in range(round(duration_s / STEP_S)):
            self.pass_time(STEP_S)
            n_threads = self.threads.choose()
        return n_threads


@pytest.fixture(params=[2, 4, 8])
def n_cpus(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(contention, "count_allowed_cpus", lambda: request.param)
    return int(request.param)


def test_a_busy_process_takes_one_thread_and_gives_it_back(n_cpus: int) -> None:
    machine = Machine(n_cpus)
    assert machine.decode(2.0) == n_cpus
    machine.load = 0.6  # it shares a core with a thread
    assert machine.decode(1.0) == n_cpus - 1
    machine.load = 1.0  # it has a core for itself
    assert machine.decode(5.0) == n_cpus - 1
    machine.load = 0.0
    assert machine.decode(1.0) == n_cpus


def test_all_threads_are_used_if_no_core_is_free(n_cpus: int) -> None:
    machine = Machine(n_cpus)
    machine.load = n_cpus - 0.6
    assert machine.decode(3.0) == n_cpus


def test_cores_without_threads_are_left_to_other_programs_first(n_cpus: int) -> None:
    machine = Machine(n_cpus // 2)
    machine.load = n_cpus / 2
    assert machine.decode(3.0) == n_cpus // 2


def test_short_work_of_other_programs_changes_nothing(n_cpus: int) -> None:
    machine = Machine(n_cpus)
    machine.load = 0.2  # a terminal that paints
    assert machine.decode(3.0) == n_cpus
    machine.load = 2.0  # a program that computes for 0.3 s
    machine.decode(0.3)
    machine.load = 0.0
    assert machine.decode(1.0) == n_cpus


def test_load_between_replies_counts(n_cpus: int) -> None:
    machine = Machine(n_cpus)
    machine.decode(1.0)
    machine.load = 1.0
    machine.pass_time(60.0)
    assert machine.threads.choose() == n_cpus - 1
    machine.load = 0.0
    machine.pass_time(60.0)
    assert machine.threads.choose() == n_cpus


def test_an_unknown_load_changes_nothing() -> None:
    machine = Machine(4)
    machine.threads = AdaptiveThreadCount(4, LoadMonitor(lambda: 0.0, lambda: None, lambda: machine.now))
    assert machine.decode(3.0) == 4


@pytest.mark.parametrize(("n_cpus", "n_busy"), [(2, 2), (2, 5), (4, 3), (8, 5), (8, 6), (8, 20)])
def test_threads_do_not_oscillate_beside_programs_that_take_what_they_leave(
    n_cpus: int, n_busy: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contention, "count_allowed_cpus", lambda: n_cpus)
    machine, counts = Machine(n_cpus), []
    for _ in range(120):
        counts.append(machine.decode(0.25))
        n_running = counts[-1] + n_busy  # each gets the same share of the cores
        machine.load = n_busy * min(1.0, n_cpus / n_running)
    assert sum(before != after for before, after in itertools.pairwise(counts)) <= 8  # in 30 s
    machine.load = 0.0
    assert machine.decode(1.0) == n_cpus


@given(st.integers(1, 64), st.lists(st.floats(0.0, 64.0), max_size=60))
def test_at_least_half_of_the_threads_remain(n_threads: int, loads: list[float]) -> None:
    machine = Machine(n_threads)
    for load in loads:
        machine.load = load
        assert n_threads <= 2 * machine.decode(0.25) <= 2 * n_threads
