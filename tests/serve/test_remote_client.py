"""Conversations with models behind real servers: `edgechat serve`, and llama-server if its build is in the cache.

The tests also use the server at the URL in `EDGECHAT_TEST_REMOTE`, such as vLLM. Its model must be
SmolLM2-135M-Instruct with a context of at most 4096 tokens.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgechat.chat import events
from edgechat.chat.session import Session
from edgechat.config import Settings
from edgechat.errors import ContextOverflowError, RemoteError
from edgechat.remote.client import RemoteClient
from edgechat.remote.probe import probe_list, probe_reply
from edgechat.remote.target import RemoteModel
from edgechat.remote_settings import RemoteSettings
from edgechat.runtime.backends.bundle import find_bundle
from edgechat.store import open_store
from tests.llama_cpp import find_llama_server
from tests.serve.client import CERTAIN_PROMPT, ServerProcess
from tests.serve.conftest import Start
from tests.waiting import until

GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 24}


@pytest.fixture(scope="module")
def llama_server(starter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the URL of a llama-server with the starter model."""
    program = find_llama_server()
    module = [m.path for m in find_bundle().modules if m.name.startswith("cpu")][-1]  # the most general one
    folder = tmp_path_factory.mktemp("llama-server")
    log = folder / "log.txt"
    with log.open("wb") as file:
        child = subprocess.Popen(
            [str(program), "-m", str(starter), "-t", "2", "-c", "1024", "--host", "127.0.0.1", "--port", "0",
             "--parallel", "1", "--offline", "--jinja"],
            env=os.environ | {"GGML_BACKEND_PATH": module}, cwd=folder, stdout=file, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def find_address() -> str | None:
        assert child.poll() is None, log.read_text()
        match = re.search(r"listening on (http://127\.0\.0\.1:\d+)\n", log.read_text(errors="replace"))
        return match[1] if match else None

    try:
        until(find_address, 300, "llama-server is ready")
        yield f"{find_address()}/v1"
    finally:
        child.kill()
        child.wait()


_OTHER_URL = os.environ.get("EDGECHAT_TEST_REMOTE", "")  # tests run without the variables of edgechat
_LONG = [pytest.param(name, marks=pytest.mark.long) for name in ("llama-server", "other server")]


@pytest.fixture(params=["edgechat serve", *_LONG])
def url(request: pytest.FixtureRequest) -> str:
    if request.param == "llama-server":
        return str(request.getfixturevalue("llama_server"))
    if request.param == "other server":
        if not _OTHER_URL:
            pytest.skip("EDGECHAT_TEST_REMOTE names no server")
        return _OTHER_URL
    server: ServerProcess = request.getfixturevalue("server")
    return server.url


@contextlib.contextmanager
def open_session(url: str, model: str = "", **settings: Any) -> Iterator[Session]:
    """Open a session with a model of the server at `url`, by default its first one."""
    remote = RemoteSettings(url=url)
    model = model or RemoteClient("box", remote).list_models()[0].id
    target = RemoteModel(remote="box", model=model, settings=remote)
    session = Session(open_store(), Settings(remotes={"box": remote}, **GREEDY | settings), target)
    session.open()
    try:
        yield session
    finally:
        session.close()


def finish(turn: Iterator[events.SessionEvent]) -> events.TurnFinished:
    *_, last = turn
    assert isinstance(last, events.TurnFinished)
    return last


def test_conversation_with_usage_and_prefix_statistics(url: str, home: Path) -> None:
    with open_session(url) as session:
        first = finish(session.send(CERTAIN_PROMPT)).reply
        assert first.text.startswith("1")
        assert first.finish_reason == "length"
        assert (first.n_tokens, first.stats and first.stats.is_remote) == (24, True)
        second = finish(session.send("Go on.")).reply
        assert second.stats is not None
        assert first.stats is not None
        assert second.stats.prompt_tokens > first.stats.prompt_tokens
        if url != _OTHER_URL:  # others share whole blocks only, of 128 tokens in vLLM, or no statistics
            assert second.stats.cached_tokens > 0, "the server shares its prefix statistics"
        assert first.text == finish(session.edit(first.parent_id or "", CERTAIN_PROMPT)).reply.text


def test_stopped_reply_is_continued(url: str, home: Path) -> None:
    with open_session(url, max_tokens=400) as session:
        for event in session.send(CERTAIN_PROMPT):
            if isinstance(event, events.ReplyTextGenerated):
                session.stop()
        assert isinstance(event, events.TurnInterrupted)
        assert event.reply.text
        session.override_settings(max_tokens=8)
        continued = finish(session.continue_reply()).reply
        assert continued.text.startswith(event.reply.text)
        assert len(continued.text) > len(event.reply.text)


def test_remote_is_probed(url: str, home: Path) -> None:
    remote = RemoteSettings(url=url)
    probed = probe_list("box", remote)
    assert probed.models
    reply = probe_reply(RemoteModel(remote="box", model=probed.models[0].id, settings=remote))
    assert 0 < reply.first_token_s <= reply.total_s
    assert reply.usage is not None


def test_schema_is_enforced_by_the_server(url: str, home: Path) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9}}, "required": ["n"],
              "additionalProperties": False}  # fmt: skip
    with open_session(url, max_tokens=200) as session:
        reply = finish(session.send("Give a number.", output_schema=schema)).reply
        assert list(msgspec.json.decode(reply.text)) == ["n"]


def test_message_that_is_longer_than_the_context_is_taken_back(url: str, home: Path) -> None:
    with open_session(url) as session:
        with pytest.raises(ContextOverflowError, match="too long for box"):
            list(session.send("word " * 20_000))
        assert len(session.tree) == 0


def test_reasoning_of_a_server_is_reasoning(thinking_server: ServerProcess, home: Path) -> None:
    with open_session(thinking_server.url, reasoning=True) as session:
        reply = finish(session.send("Hi")).reply
        assert reply.reasoning
        assert not reply.text


def _kill_after_text(session: Session, server: ServerProcess) -> None:
    for event in session.send("Write a long story about a ship."):
        if isinstance(event, events.ReplyTextGenerated):
            server.process.kill()


def test_server_that_ends_and_comes_back(start: Start, home: Path) -> None:
    server = start("-m", "starter", "--ctx", "1024")
    with open_session(server.url, max_tokens=800) as session:
        with pytest.raises(RemoteError, match="box"):
            _kill_after_text(session, server)
        reply = session.tree.path[-1]
        assert reply.text
        assert reply.finish_reason == "interrupted"
        server.process.wait()
        start("-m", "starter", "--ctx", "1024", "--port", str(server.port))
        session.override_settings(max_tokens=8)
        assert finish(session.continue_reply()).reply.text.startswith(reply.text)
        finish(session.send("And now?"))
