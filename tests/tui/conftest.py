"""Fixtures of the tests of the terminal interface."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import textual.app
import textual.pilot

from edgechat.tui import confirm, type_ahead
from edgechat.tui.widgets import footer
from tests.hub import FakeRepo, LocalHub, local_hub
from tests.models import write_parrot
from tests.tui.drawing import wait_until_drawn
from tests.tui.model_lists import REPO


@pytest.fixture
def independent_of_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the pilot wait for events instead of CPU time, and let nothing on the screen end because time passes."""
    for module in (textual.app, textual.pilot):
        monkeypatch.setattr(module, "wait_for_idle", wait_until_drawn)
    monkeypatch.setattr(confirm, "_TIMEOUT_S", 1000.0)
    monkeypatch.setattr(footer, "_NOTICE_S", 1000.0)
    monkeypatch.setattr(type_ahead, "_MAX_WAIT_S", 20.0)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LocalHub]:
    """Run a local hub with one repository that has one small model."""
    file = write_parrot(tmp_path / "parrot-Q8_0.gguf", "Bird")
    with local_hub() as server:
        server.repos[REPO] = FakeRepo({"parrot-Q8_0.gguf": file})
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        for name in ("HF_TOKEN", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY"):
            monkeypatch.delenv(name, raising=False)
        yield server
