"""One engine with the starter model for all tests of a file, because each load takes time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgechat.config import Settings
from edgechat.engine import protocol
from edgechat.engine.client import EngineClient
from edgechat.planner.load_plan import make_manual_plan
from edgechat.runtime.backends import probe
from edgechat.runtime.backends.bundle import find_bundle
from edgechat.runtime.bindings import Bindings, load
from edgechat.store import open_store
from edgechat.store.sqlite import SqliteStore
from tests.engine.chats import SHORT_GREEDY, OpenChat


def load_request(client: EngineClient, path: Path, n_ctx: int = 2048) -> protocol.Load:
    return protocol.Load(id=client.next_id(), plan=make_manual_plan(str(path), n_ctx=n_ctx, n_threads=2))


@pytest.fixture(scope="module")
def engine(starter: Path, warm_verdicts: Path) -> Iterator[EngineClient]:
    before = os.environ.get("EDGECHAT_HOME")
    os.environ["EDGECHAT_HOME"] = str(warm_verdicts.parent.parent)
    client = EngineClient()
    try:
        client.load(load_request(client, starter))
        yield client
    finally:
        client.close()
        if before is None:
            del os.environ["EDGECHAT_HOME"]
        else:
            os.environ["EDGECHAT_HOME"] = before


@pytest.fixture
def native() -> Bindings:
    """llama.cpp loaded into the test process, for tests of the wrappers."""
    bundle = find_bundle()
    return load(bundle, probe.choose_module(bundle)[0])


@pytest.fixture
def open_chat(starter: Path) -> Iterator[Callable[..., OpenChat]]:
    """Open chats with the starter model; they are closed after the test."""
    chats: list[OpenChat] = []

    def open_one(settings: Settings = SHORT_GREEDY, store: SqliteStore | None = None, **options: object) -> OpenChat:
        chats.append(OpenChat(starter, store or open_store(), settings, **options))  # type: ignore[arg-type]
        return chats[-1]

    yield open_one
    for chat in chats:
        chat.session.close()
