"""The budget of a frame follows the rate at which a terminal takes output."""

from __future__ import annotations

from edgechat.tui.output_flow import OutputFlow


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def blocked_write(flow: OutputFlow, clock: Clock, n_chars: int, duration_s: float) -> None:
    flow.count_queued(n_chars)
    clock.now += duration_s
    flow.count_written(n_chars, duration_s)


def test_fast_terminal_has_no_limit() -> None:
    clock = Clock()
    flow = OutputFlow(clock)
    for _ in range(1000):
        flow.count_queued(1000)
        flow.count_written(1000, 0.0001)
    assert flow.budget() is None


def test_nothing_is_written_while_a_write_waits() -> None:
    flow = OutputFlow(Clock())
    flow.count_queued(10_000)
    assert flow.budget() == 0


def test_slow_terminal_gets_a_quarter_of_a_second_of_output() -> None:
    clock = Clock()
    flow = OutputFlow(clock)
    for _ in range(20):
        blocked_write(flow, clock, 1024, 0.5)  # 2 kB/s
    assert flow.budget() == 0
    clock.now += 20
    budget = flow.budget()
    assert budget is not None
    assert 400 < budget < 600


def test_terminal_that_stopped_and_continued_has_no_limit() -> None:
    clock = Clock()
    flow = OutputFlow(clock)
    blocked_write(flow, clock, 1024, 60.0)
    for _ in range(8):
        blocked_write(flow, clock, 1024, 0.0001)
    assert flow.budget() is None


def test_terminal_may_have_become_fast_after_half_a_minute() -> None:
    clock = Clock()
    flow = OutputFlow(clock)
    for _ in range(20):
        blocked_write(flow, clock, 1024, 0.5)
    clock.now += 31
    assert flow.budget() is None


def test_pauses_after_a_stall_do_not_make_the_terminal_slow() -> None:
    clock = Clock()
    flow = OutputFlow(clock)
    blocked_write(flow, clock, 1024, 0.03)
    for _ in range(100):
        clock.now += 0.05
        blocked_write(flow, clock, 70, 0.0001)  # 1.4 kB/s of a reply
        assert flow.budget() is None
