"""Addresses of servers, and their lists of models."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from edgechat.errors import HubError, UsageError
from edgechat.launch.agent import Endpoint
from edgechat.launch.server import fetch_endpoint, normalize_address


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


def test_wrong_key_is_an_error(address: str) -> None:
    with pytest.raises(UsageError, match="Set EDGECHAT_API_KEY"):
        fetch_endpoint(address, "wrong")


def test_agent_has_a_key_for_a_server_without_one(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Claude Code and Codex do not start with an empty key."""
    monkeypatch.setattr(Handler, "authorization", None)
    set_models(make_row("a"))
    assert fetch_endpoint(address, "").api_key == "none"


def test_missing_server_is_a_network_error() -> None:
    with pytest.raises(HubError, match="No server responds"):
        fetch_endpoint("http://127.0.0.1:9", "key")
