"""Checks of host, origin, API key and body size, and that no text of a request is written to a file or log."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import click
import pytest

from edgechat.cli import root
from edgechat.errors import EdgechatError, UsageError
from edgechat.serve import bodies
from tests.conftest import Cli, edgechat_command
from tests.serve.client import ServerProcess, user
from tests.serve.conftest import Start

SECRET = "xyzzy-plugh-4711"


def run(*arguments: str) -> None:
    """Run a command that fails in this process."""
    root.edgechat.main(list(arguments), standalone_mode=False)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "", "[::2]", "[zz]", "[", "a b"]
)
def test_foreign_host_name_is_refused(server: ServerProcess, host: str) -> None:
    status, answer, _ = server.request("/v1/models", headers={"Host": host})
    assert status == 403
    assert answer["error"]["code"] == "wrong_host"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:9", "[::1]:8080", "LOCALHOST:80"])
def test_loopback_host_names_are_accepted(server: ServerProcess, host: str) -> None:
    assert server.request("/v1/models", headers={"Host": host})[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"}, {"Origin": "null"}, {"Origin": "http://localhost:1"}, {"Origin": ""},
        {"Sec-Fetch-Site": "cross-site"},
        {"Origin": "http://["}, {"Origin": "file://"},
    ],
)  # fmt: skip
def test_web_page_of_another_origin_is_refused(server: ServerProcess, headers: dict[str, str]) -> None:
    body = {"messages": user("hi"), "max_tokens": 1}
    status, answer, response = server.request("/v1/chat/completions", body, headers=headers)
    assert status == 403
    assert answer["error"]["code"] == "wrong_origin"
    assert "Access-Control-Allow-Origin" not in response.headers
    assert server.request("/v1/chat/completions", method="OPTIONS", headers=headers)[0] == 403


def test_web_page_of_the_server_is_accepted(server: ServerProcess) -> None:
    headers = {"Origin": f"http://127.0.0.1:{server.port}", "Host": f"127.0.0.1:{server.port}"}
    assert server.request("/v1/models", headers=headers)[0] == 200


def test_api_key_and_allowed_origin(start: Start, tiny_model: Path) -> None:
    origin = "https://chat.example"
    server = start("-m", str(tiny_model), "--allow-origin", origin, EDGECHAT_API_KEY="s3cret")
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer s3cre"}, {"X-Api-Key": "x"}):
        status, answer, response = server.request("/v1/models", headers=headers)
        assert status == 401
        assert answer["error"]["code"] == "invalid_api_key"
        assert response.headers["WWW-Authenticate"] == "Bearer"
    for headers in ({"Authorization": "Bearer s3cret"}, {"Authorization": "bearer  s3cret"}, {"X-Api-Key": "s3cret"}):
        assert server.request("/v1/models", headers=headers)[0] == 200
    assert server.request("/health")[0] == 200
    assert server.request("/metrics")[0] == 401
    headers = {"Origin": origin, "Authorization": "Bearer s3cret"}
    _, _, response = server.request("/v1/models", headers=headers)
    assert response.headers["Access-Control-Allow-Origin"] == origin
    status, _, response = server.request("/v1/models", method="OPTIONS", headers={"Origin": origin})
    assert (status, response.headers["Access-Control-Allow-Origin"]) == (204, origin)


def test_public_host_needs_a_key(cli: Cli) -> None:
    done = cli("serve", "--host", "::", "-m", "starter")
    assert done.returncode == 2
    assert "set a key" in done.stderr
    for key in ("", " ", "schlüssel"):
        with pytest.raises(UsageError, match="An API key must consist of"):
            run("serve", "--api-key", key)
    for origin in ("*", "https://chat.example/", "chat.example"):
        with pytest.raises(UsageError, match="is not an origin"):
            run("serve", "--allow-origin", origin)


def test_unusable_address_is_reported_before_a_model_is_loaded(cli: Cli) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        done = cli("serve", "-m", "starter", "--port", str(listener.getsockname()[1]))
    assert done.returncode == 2
    assert "Cannot listen on 127.0.0.1" in done.stderr
    with pytest.raises(UsageError, match=r"Cannot listen on no\.such\.host\.invalid"):
        run("serve", "--host", "no.such.host.invalid", "--api-key", "x")
    with pytest.raises((UsageError, click.UsageError)):
        run("serve", "--port", "99999")
    with pytest.raises(EdgechatError, match="no-such-model"):
        run("serve", "--port", "0", "-m", "no-such-model")


def test_missing_packages_are_reported_with_the_install_command(tmp_path: Path) -> None:
    (tmp_path / "starlette.py").write_text("raise ModuleNotFoundError(name='starlette')")
    done = subprocess.run(
        edgechat_command("serve"), env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
        check=False,
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 2
    assert "edgechat[serve]" in done.stderr


def send_repeatedly(connection: socket.socket, data: bytes, n_times: int) -> None:
    for _ in range(n_times):
        connection.sendall(data)


def test_large_body_is_refused(server: ServerProcess) -> None:
    status, answer, _ = server.request("/v1/chat/completions", b" " * (bodies.MAX_BODY_BYTES + 1))
    assert status == 413
    assert answer["error"]["code"] == "too_large"
    with server.connect() as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
        with pytest.raises(ConnectionError):  # the server responds and stops reading
            send_repeatedly(connection, chunk, 1000)
    assert server.request("/health")[0] == 200


@pytest.mark.parametrize("log_requests", [False, True])
def test_request_text_is_in_no_file_and_no_log(start: Start, home: Path, tiny_model: Path, log_requests: bool) -> None:
    server = start("-m", str(tiny_model), *(["--log-requests"] if log_requests else []))
    body = {"messages": user(f"The password is {SECRET}."), "max_tokens": 8, "user": SECRET}
    assert server.chat(body)[0] == 200
    assert server.request(f"/{SECRET}")[0] == 404
    assert server.request("/v1/chat/completions", f"{SECRET}".encode())[0] == 400
    assert server.close() == 0
    log = "".join(server.errors)
    assert SECRET not in log
    assert ("POST /v1/chat/completions 200" in log) == log_requests
    for path in home.rglob("*"):
        if path.is_file() and path.suffix != ".kv":  # cached prefixes contain the prompt
            assert SECRET.encode() not in path.read_bytes(), path
