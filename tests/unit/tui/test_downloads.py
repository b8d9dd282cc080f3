"""States of downloads that are paused while they start."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from edgechat.catalogue import pull
from edgechat.tui.downloads import DownloadRunner
from tests.waiting import until

if TYPE_CHECKING:
    import pytest


def test_download_that_is_paused_while_it_starts_can_be_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    has_started = threading.Event()
    runner: DownloadRunner

    def find_target(reference: str) -> None:
        if not has_started.is_set():
            runner.pause(reference)
            has_started.set()
        raise OSError("stopped")

    monkeypatch.setattr(pull, "find_target", find_target)
    runner = DownloadRunner(lambda _status: None, lambda _message: None)
    runner.start("a/b")
    until(has_started.is_set)
    until(lambda: [d.state for d in runner.list_downloads()] == ["paused"])
    runner.start("a/b")
    until(lambda: [d.state for d in runner.list_downloads()] == ["failed"])
    runner.close()
    runner.start("c/d")
    assert [d.reference for d in runner.list_downloads()] == ["a/b"]
