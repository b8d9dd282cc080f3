"""Who may ask, from where, how much; and that nothing of what was said is written anywhere."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from edgechat.serve import middleware
from edgechat.serve.middleware import AccessRules, RequestGuard
from tests.conftest import Cli, edgechat_command
from tests.serve.conftest import Start
from tests.serve.driving import Server, user

SECRET = "xyzzy-plugh-4711"


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "", "[::2]", "[zz]", "[", "a b"]
)
def test_a_name_that_was_made_to_point_here_reads_nothing(server: Server, host: str) -> None:
    status, answer, _ = server.ask("/v1/models", headers={"Host": host})
    assert status == 403
    assert answer["error"]["code"] == "wrong_host"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:9", "[::1]:8080", "LOCALHOST:80"])
def test_all_names_of_this_machine_will_do(server: Server, host: str) -> None:
    assert server.ask("/v1/models", headers={"Host": host})[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"}, {"Origin": "null"}, {"Origin": "http://localhost:1"}, {"Origin": ""},
        {"Sec-Fetch-Site": "cross-site"},
        {"Origin": "http://["}, {"Origin": "file://"},
    ],
)  # fmt: skip
def test_a_web_page_may_not_ask(server: Server, headers: dict[str, str]) -> None:
    body = {"messages": user("hi"), "max_tokens": 1}
    status, answer, response = server.ask("/v1/chat/completions", body, headers=headers)
    assert status == 403
    assert answer["error"]["code"] == "wrong_origin"
    assert "Access-Control-Allow-Origin" not in response.headers
    assert server.ask("/v1/chat/completions", method="OPTIONS", headers=headers)[0] == 403


def test_a_page_of_the_server_itself_may(server: Server) -> None:
    headers = {"Origin": f"http://127.0.0.1:{server.port}", "Host": f"127.0.0.1:{server.port}"}
    assert server.ask("/v1/models", headers=headers)[0] == 200


def test_keys_and_pages_that_may(start: Start, home: Path) -> None:
    page = "https://chat.example"
    server = start("-m", "starter", "--ctx", "512", "--allow-origin", page, EDGECHAT_API_KEY="s3cret")
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer s3cre"}, {"X-Api-Key": "x"}):
        status, answer, response = server.ask("/v1/models", headers=headers)
        assert status == 401
        assert answer["error"]["code"] == "invalid_api_key"
        assert response.headers["WWW-Authenticate"] == "Bearer"
    for headers in ({"Authorization": "Bearer s3cret"}, {"Authorization": "bearer  s3cret"}, {"X-Api-Key": "s3cret"}):
        assert server.ask("/v1/models", headers=headers)[0] == 200
    assert server.ask("/health")[0] == 200
    assert server.ask("/metrics")[0] == 401
    headers = {"Origin": page, "Authorization": "Bearer s3cret"}
    _, _, response = server.ask("/v1/models", headers=headers)
    assert response.headers["Access-Control-Allow-Origin"] == page
    status, _, response = server.ask("/v1/models", method="OPTIONS", headers={"Origin": page})
    assert (status, response.headers["Access-Control-Allow-Origin"]) == (204, page)


def test_another_host_needs_a_key(cli: Cli) -> None:
    done = cli("serve", "--host", "::", "-m", "starter")
    assert done.returncode == 2
    assert "give a key" in done.stderr
    for key in ("", " ", "schlüssel"):
        assert cli("serve", "--api-key", key).returncode == 2
    for origin in ("*", "https://chat.example/", "chat.example"):
        assert cli("serve", "--allow-origin", origin).returncode == 2


def test_what_cannot_be_listened_on_is_said_before_a_model_is_loaded(cli: Cli) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = cli("serve", "-m", "starter", "--port", str(taken.getsockname()[1]))
    assert done.returncode == 2
    assert "cannot listen on 127.0.0.1" in done.stderr
    assert cli("serve", "--host", "no.such.host.invalid", "--api-key", "x").returncode == 2
    assert cli("serve", "--port", "99999").returncode == 2
    assert cli("serve", "-m", "no-such-model").returncode != 0


def test_without_its_packages_it_says_how_to_get_them(tmp_path: Path) -> None:
    (tmp_path / "starlette.py").write_text("raise ModuleNotFoundError(name='starlette')")
    done = subprocess.run(
        edgechat_command("serve"), env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "edgechat[serve]" in done.stderr


def test_bodies_have_a_limit(server: Server) -> None:
    status, answer, _ = server.ask("/v1/chat/completions", b" " * (middleware.MAX_BODY_BYTES + 1))
    assert status == 413
    assert answer["error"]["code"] == "too_large"
    with server.connect() as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
        with pytest.raises((ConnectionError, TimeoutError)):  # it is answered, and no longer listened to
            connection.sendall(chunk * 100)
    assert server.ask("/health")[0] == 200


async def test_a_body_that_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "BODY_TIMEOUT_S", 0.05)
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError

    async def receive() -> Any:
        await asyncio.sleep(10)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": [(b"host", b"localhost")]}
    await RequestGuard(app, AccessRules(host="127.0.0.1"), lambda path, status: None)(scope, receive, send)
    assert sent[0]["status"] == 408


@pytest.mark.parametrize("log", [False, True])
def test_nothing_of_a_request_is_written_anywhere(start: Start, home: Path, log: bool) -> None:
    server = start("-m", "starter", "--ctx", "512", *(["--log-requests"] if log else []))
    body = {"messages": user(f"The password is {SECRET}."), "max_tokens": 8, "user": SECRET}
    assert server.chat(body)[0] == 200
    assert server.ask(f"/{SECRET}")[0] == 404
    assert server.ask("/v1/chat/completions", f"{SECRET}".encode())[0] == 400
    assert server.close() == 0
    said = "".join(server.errors)
    assert SECRET not in said
    assert ("POST /v1/chat/completions 200" in said) == log
    for path in home.rglob("*"):
        if path.is_file() and path.suffix != ".kv":  # what was computed of it; as private as a conversation
            assert SECRET.encode() not in path.read_bytes(), path
