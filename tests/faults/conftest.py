"""A local hub with one file, in good order, and commands that run in the process of the test."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator

import pytest

from edgechat.cli import root
from tests.conftest import Cli
from tests.faults.hub_file import BODY, NAME
from tests.hub import FakeRepo, Faults, LocalHub, local_hub
from tests.waiting import until


@pytest.fixture
def run_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Return a function that runs `edgechat` without a terminal in this process, for commands that fail soon."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["edgechat", *arguments])
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
            code = root.run()
        output = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, output.out, output.err)

    return run


@pytest.fixture(scope="module")
def server() -> Iterator[LocalHub]:
    with local_hub() as hub:
        yield hub


@pytest.fixture
def store(server: LocalHub, monkeypatch: pytest.MonkeyPatch) -> LocalHub:
    """The hub without faults, with environment variables that point to it."""
    server.faults = Faults()
    until(lambda: server.open_bodies == 0, description="no response of an earlier test is still sent")
    server.requests, server.sent_bytes = [], 0
    server.repos = {NAME: FakeRepo({"m.gguf": BODY})}
    for name in (
        "HF_TOKEN", "HF_HUB_OFFLINE", "http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY",
        "ALL_PROXY",
    ):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    return server
