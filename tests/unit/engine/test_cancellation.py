"""Cancelling work that another thread does."""

from __future__ import annotations

import pytest

from edgechat.engine.cancellation import Cancellation
from edgechat.errors import RequestCancelledError


def test_cancel_interrupts_the_current_step_once() -> None:
    cancellation, calls = Cancellation(), []
    with cancellation.call_on_cancel(lambda: calls.append("past")):
        cancellation.check()
    with cancellation.call_on_cancel(lambda: calls.append("current")):
        cancellation.cancel()
        cancellation.cancel()
    assert calls == ["current"]


def test_cancelled_work_starts_no_step() -> None:
    cancellation = Cancellation()
    cancellation.cancel()
    with pytest.raises(RequestCancelledError, match="was cancelled"):
        cancellation.check()
    with pytest.raises(RequestCancelledError), cancellation.call_on_cancel(lambda: None):
        pytest.fail("the step was started")
