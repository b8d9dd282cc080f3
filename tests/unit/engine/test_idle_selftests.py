"""Self-tests in idle time begin late, end when a request arrives, and go on after it."""

from __future__ import annotations

import threading
from collections.abc import Callable

from edgechat.engine.idle_selftests import IDLE_S, IdleSelftests
from edgechat.errors import RuntimeLoadError
from tests.time_limit import HANG_S
from tests.waiting import until


class ScriptedTest:
    """Test that runs until it is cancelled or until `end` is set."""

    def __init__(self) -> None:
        self.starts: list[threading.Event] = []
        self.end = threading.Event()

    def run(self, is_cancelled: Callable[[], bool]) -> None:
        self.starts.append(threading.Event())
        until(lambda: is_cancelled() or self.end.is_set())
        self.starts[-1].set()


def test_tests_begin_after_idle_time_and_go_on_after_a_request() -> None:
    tests = ScriptedTest()
    selftests = IdleSelftests(tests.run)
    assert selftests.step(1.0) == IDLE_S - 1.0
    assert not tests.starts
    assert selftests.step(IDLE_S) == IDLE_S
    until(lambda: bool(tests.starts))
    assert selftests.step(IDLE_S + 1) == IDLE_S
    assert len(tests.starts) == 1
    selftests.pause()
    assert tests.starts[0].wait(HANG_S)
    until(lambda: len(tests.starts) == 2 or selftests.step(IDLE_S) is None)
    tests.end.set()
    until(lambda: selftests.step(IDLE_S) is None)
    assert len(tests.starts) == 2


def test_tests_that_cannot_run_are_not_tried_again() -> None:
    n_calls = 0

    def fail(is_cancelled: Callable[[], bool]) -> None:
        nonlocal n_calls
        n_calls += 1
        raise RuntimeLoadError("edgechat was upgraded")

    selftests = IdleSelftests(fail)
    until(lambda: selftests.step(IDLE_S) is None)
    assert n_calls == 1
