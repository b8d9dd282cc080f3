"""A local hub with one file, in good order."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.hub_file import BODY, NAME
from tests.hub import FakeRepo, Faults, LocalHub, local_hub


@pytest.fixture(scope="module")
def server() -> Iterator[LocalHub]:
    with local_hub() as hub:
        yield hub


@pytest.fixture
def store(server: LocalHub, monkeypatch: pytest.MonkeyPatch) -> LocalHub:
    """The hub without faults, with environment variables that point to it."""
    server.faults, server.requests, server.sent_bytes = Faults(), [], 0
    server.repos = {NAME: FakeRepo({"m.gguf": BODY})}
    for name in (
        "HF_TOKEN", "HF_HUB_OFFLINE", "http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY",
        "ALL_PROXY",
    ):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    return server
