"""An action is confirmed by the same request within a few seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgechat.tui.confirm import Confirmation

if TYPE_CHECKING:
    import pytest


def test_only_the_same_request_in_time_confirms(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    confirmation = Confirmation()
    assert [confirmation.confirm(key) for key in ("a", "b", "b", "b")] == [False, False, True, False]
    now[0] = 60.0
    assert not confirmation.confirm("b")
    assert confirmation.confirm("b")
