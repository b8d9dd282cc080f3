"""One engine with the starter model for all tests of a file, because each load takes time."""

from __future__ import annotations

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
from tests.engine.drafted_models import make_models_eager


def load_request(client: EngineClient, path: Path, n_ctx: int = 2048) -> protocol.Load:
    return protocol.Load(id=client.next_id(), plan=make_manual_plan(str(path), n_ctx=n_ctx, n_threads=2))


@pytest.fixture(scope="module")
def empty_engine(warm_verdicts: Path) -> Iterator[EngineClient]:
    """Start an engine without a model for all tests of a file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGECHAT_HOME", str(warm_verdicts.parent.parent))
        client = EngineClient()
        try:
            client.start()
            yield client
        finally:
            client.close()


@pytest.fixture(scope="module")
def engine(starter: Path, empty_engine: EngineClient) -> EngineClient:
    """Load the starter model for all tests of a file."""
    empty_engine.load(load_request(empty_engine, starter))
    return empty_engine


@pytest.fixture(scope="session")
def native(warm_verdicts: Path) -> Bindings:
    """llama.cpp loaded into the test process, for tests of the wrappers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGECHAT_HOME", str(warm_verdicts.parent.parent))
        bundle = find_bundle()
        return load(bundle, probe.choose_module(bundle)[0])


@pytest.fixture
def eager_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every model drafter draft as much as it can in every step, whatever that costs on this machine."""
    make_models_eager(monkeypatch.setattr)


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
