"""Addresses of servers, and their lists of models."""

from __future__ import annotations

import http.server
import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from edgechat import paths, process
from edgechat.errors import HubError, PlanError, UsageError
from edgechat.launch.agent import Endpoint
from edgechat.launch.server import LaunchedServer, fetch_endpoint, normalize_address


class Handler(http.server.BaseHTTPRequestHandler):
    body: ClassVar[bytes] = b""
    authorization: ClassVar[str | None] = "Bearer key"

    def do_GET(self) -> None:
        is_authorized = self.headers["Authorization"] == self.authorization
        self.send_response(200 if is_authorized else 401)
        self.end_headers()
        self.wfile.write(self.body if is_authorized else b"{}")

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def make_row(name: str, n_ctx: int = 8192, *, is_embedding: bool = False, **meta: Any) -> dict[str, Any]:
    meta = {"n_ctx": n_ctx, "is_embedding": is_embedding, "is_reranker": False, "has_native_tools": True} | meta
    return {"id": name, "owned_by": "edgechat", "meta": meta}


def set_models(*rows: Any) -> None:
    Handler.body = json.dumps({"data": rows}).encode()


@pytest.mark.parametrize(
    "url", ["http://h:8080", "http://h:8080/", "http://h:8080/v1", "http://h:8080/v1/"]
)  # fmt: skip
def test_address_has_no_path(url: str) -> None:
    assert normalize_address(url) == "http://h:8080"


@pytest.mark.parametrize(
    "url", ["", "h:8080", "ftp://h", "http://", "http://h:x", "http://h:99999", "http://u:p@h", "http://h?a=b"]
)
def test_invalid_address_is_an_error(url: str) -> None:
    with pytest.raises(UsageError, match="is not the address of a server"):
        normalize_address(url)


def test_first_chat_model_is_the_default(address: str) -> None:
    set_models(
        make_row("e", is_embedding=True),
        make_row("r", is_reranker=True),
        make_row("a", has_native_tools=False),
        make_row("b"),
    )
    assert fetch_endpoint(address, "key") == Endpoint(address, "key", "a", 8192, has_native_tools=False)
    assert fetch_endpoint(address, "key", "b").model == "b"


def test_model_that_is_not_served_is_an_error_with_the_names(address: str) -> None:
    set_models(make_row("a"), make_row("b"))
    with pytest.raises(UsageError, match=r"does not serve the chat model 'c'\. It serves: a, b"):
        fetch_endpoint(address, "key", "c")


def test_server_without_chat_models_is_an_error(address: str) -> None:
    set_models(make_row("embedder", is_embedding=True))
    with pytest.raises(UsageError, match="serves no chat model"):
        fetch_endpoint(address, "key")


@pytest.mark.parametrize("body", [b"{}", b'{"data": [{"id": "x"}]}', b'{"data": 3}', b"[]"])
def test_server_of_another_program_is_an_error(address: str, body: bytes) -> None:
    Handler.body = body
    with pytest.raises(UsageError, match="is not a server of this version of edgechat"):
        fetch_endpoint(address, "key")


def test_page_instead_of_json_is_an_error(address: str) -> None:
    Handler.body = b"<html>"
    with pytest.raises(UsageError, match="does not return JSON"):
        fetch_endpoint(address, "key")


@pytest.mark.parametrize(("key", "problem"), [("other", "has another key"), ("", "is not set")])
def test_wrong_key_is_an_error(address: str, key: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        fetch_endpoint(address, key)


def test_agent_has_a_key_for_a_server_without_one(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Claude Code and Codex do not start with an empty key."""
    monkeypatch.setattr(Handler, "authorization", None)
    set_models(make_row("a"))
    assert fetch_endpoint(address, "").api_key == "none"


def test_missing_server_is_a_network_error() -> None:
    with pytest.raises(HubError, match="No server responds"):
        fetch_endpoint("http://127.0.0.1:9", "key")


# A server that writes its first argument to its log and then its address, and ends with its standard input; or that
# ends with its second argument as exit code.
PROGRAM = """
import sys
print("edgechat:", sys.argv[1], file=sys.stderr, flush=True)
if sys.argv[2:]:
    sys.exit(int(sys.argv[2]))
print('{"url": "http://127.0.0.1:1/v1"}', flush=True)
sys.stdin.read()
"""


@pytest.fixture
def scripted_server(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make_command_line(*arguments: str) -> list[str]:
        return [sys.executable, "-c", PROGRAM, *arguments[arguments.index("--stop-on-stdin-eof") + 1 :]]

    monkeypatch.setattr(process, "make_command_line", make_command_line)


@pytest.mark.usefixtures("scripted_server")
def test_servers_of_two_launches_have_logs_of_their_own_which_are_deleted() -> None:
    first, second = LaunchedServer(["first"]), LaunchedServer(["second"])
    try:
        assert first.wait_for_address() == second.wait_for_address() == "http://127.0.0.1:1"
        assert (first.read_log_lines(), second.read_log_lines()) == (["first"], ["second"])
        assert first.describe_early_exit() == ""
    finally:
        first.close()
        assert second.log_path.exists()
        second.close()
    assert list(paths.launch_logs_dir().iterdir()) == []


@pytest.mark.usefixtures("scripted_server")
def test_error_of_a_server_that_cannot_start_names_its_log() -> None:
    server = LaunchedServer(["The model is too large.", "5"])
    with pytest.raises(PlanError, match=r"The model is too large\..*log") as raised:
        server.wait_for_address()
    server.close()
    assert str(server.log_path) in str(raised.value)
    assert str(server.log_path) in server.describe_early_exit()
    assert server.log_path.read_text() == "edgechat: The model is too large.\n"


@pytest.mark.usefixtures("scripted_server")
def test_logs_that_are_older_than_a_week_are_deleted() -> None:
    folder = paths.launch_logs_dir()
    folder.mkdir(parents=True)
    for name, age_s in (("old.log", 8 * 86400), ("new.log", 6 * 86400)):
        path = folder / name
        path.write_text("")
        os.utime(path, (path.stat().st_mtime - age_s,) * 2)
    LaunchedServer(["text"]).close()
    assert [path.name for path in folder.iterdir()] == ["new.log"]
