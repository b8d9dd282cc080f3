"""Spellings of paths that clients send, and responses to unknown paths, over HTTP."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.serve.client import ServerProcess, user
from tests.serve.conftest import Start

BODY = {"messages": user("Hi"), "max_tokens": 1}


@pytest.mark.parametrize("path", ["/chat/completions", "/v1/chat/completions/", "//v1/chat/completions"])
def test_chat_is_found_without_the_prefix_and_with_more_slashes(server: ServerProcess, path: str) -> None:
    status, answer, _ = server.request(path, BODY)
    assert (status, answer["object"]) == (200, "chat.completion")


def test_other_endpoints_are_found_without_the_prefix(server: ServerProcess) -> None:
    assert server.request("/messages", BODY)[1]["type"] == "message"
    assert server.request("/messages/count_tokens/", BODY)[1]["input_tokens"]
    assert server.request("/completions", {"prompt": "a", "max_tokens": 1})[1]["object"] == "text_completion"
    assert server.request("/models/")[1] == server.request("/v1/models")[1]
    assert server.request("/models/starter")[1]["id"] == "starter"
    assert server.request("/v1/health")[0] == 200
    status, answer, _ = server.request("/embeddings", {"input": "a"})
    assert (status, "is not an embedding model" in answer["error"]["message"]) == (400, True)
    assert server.request("/messages", b"{")[1]["type"] == "error"  # the form of Anthropic's API


def test_target_with_the_origin_is_accepted(server: ServerProcess) -> None:
    with server.connect() as connection:
        target = f"http://localhost:{server.port}/v1/models"
        connection.sendall(f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        response = b"".join(iter(lambda: connection.recv(4096), b""))
    head, _, content = response.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert json.loads(content)["data"][0]["id"] == "starter"


def test_unknown_path_is_answered_with_the_known_ones(server: ServerProcess) -> None:
    for path in ("/v1/chat/completion", "/nothing", "/v1", "/v2/chat/completions", "/%00"):
        status, answer, _ = server.request(path, {})
        assert status == 404
        message = answer["error"]["message"]
        assert "is not an endpoint. Endpoints under /v1/: chat/completions, completions, " in message
        assert "/health" in message
    status, answer, _ = server.request("/api/nothing")
    assert status == 404
    assert answer["error"].startswith("/api/nothing is not an endpoint. Endpoints under /api/: version, chat, ")
    assert "delete" not in answer["error"]
    for path in ("/v1/messages/batches", "/messages/batches"):
        status, answer, _ = server.request(path, {})
        assert (status, answer["type"]) == (404, "error")
        assert "messages/count_tokens" in answer["error"]["message"]
    message = server.request("/" + "x" * 5000)[1]["error"]["message"]
    assert message.endswith("/api/...")
    assert len(message) < 1000


def test_wrong_method_is_405_for_all_spellings(server: ServerProcess) -> None:
    for path in ("/v1/chat/completions", "/chat/completions/"):
        status, _, response = server.request(path)
        assert (status, response.headers["Allow"]) == (405, "POST")
    for path in ("/v1/models", "/models/"):
        assert server.request(path, method="HEAD")[0] == 200
    assert server.request("/v1/models", {})[0] == 405


def test_other_spellings_need_the_key_and_are_counted(start: Start, tiny_model: Path) -> None:
    server = start("-m", str(tiny_model), "--api-key", "secret")
    assert server.request("/health")[0] == server.request("/v1/health/")[0] == 200
    assert server.request("/models")[0] == 401
    headers = {"Authorization": "Bearer secret"}
    assert server.request("/models/", headers=headers)[0] == 200
    metrics = server.request("/metrics", headers=headers)[1]
    assert 'edgechat_requests_total{path="/v1/models",status="200"} 1.0' in metrics
    assert 'edgechat_requests_total{path="/health",status="200"} 2.0' in metrics
