"""Servers for agents: a server process that ends with this process, and the model of a running server."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

from edgechat import files, paths, process
from edgechat.errors import EdgechatError, EngineError, HubError, ModelFileError, PlanError, UsageError, format_reason
from edgechat.launch.agent import KEY_VARIABLE, UNUSED_KEY, Endpoint

# Logs of failed launches are deleted at a launch a week later.
_MAX_LOG_AGE_S: Final = 7 * 24 * 3600.0
_MAX_READ_BYTES: Final = 1 << 16
_MAX_RESPONSE_BYTES: Final = 1 << 20
_REQUEST_TIMEOUT_S: Final = 60.0
# The server has 12 s to end; docs/serve.md.
_STOP_TIMEOUT_S: Final = 15.0
_KEY_BYTES: Final = 24
_LOG_NAME_BYTES: Final = 4
# Errors with the exit codes of a server that cannot start.
_ERRORS: Final[dict[int, type[EdgechatError]]] = {2: UsageError, 3: ModelFileError, 5: PlanError, 6: HubError}


class LaunchedServer:
    """Server process on a free port with a random API key. It ends when `close` is called or this process ends.

    The server is not in the terminal's foreground process group, so Ctrl-C does not reach it. Its standard error is
    written to a log file of its own, which is deleted in the end unless the server has failed.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        """Start the server with the arguments of `edgechat serve`; `wait_for_address` waits until it is ready."""
        self.api_key = secrets.token_urlsafe(_KEY_BYTES)
        self.log_path = paths.launch_logs_dir() / f"{secrets.token_hex(_LOG_NAME_BYTES)}.log"
        log = _open_log(self.log_path)
        command = process.make_command_line("serve", "--port", "0", "--json", "--stop-on-stdin-eof", *arguments)
        options: dict[str, Any] = {"start_new_session": True}
        if sys.platform == "win32":
            options = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=log if log is not None else subprocess.DEVNULL,
                env={**os.environ, KEY_VARIABLE: self.api_key}, **options,
            )  # fmt: skip
        except OSError as error:
            raise EngineError(f"Cannot start an edgechat process: {format_reason(error)}.") from error
        finally:
            if log is not None:
                log.close()

    @property
    def pid(self) -> int:
        """Process ID of the server."""
        return self._process.pid

    def wait_for_address(self) -> str:
        """Return the address of the server when its model is loaded, without `/v1`. Raises EdgechatError if it ends."""
        assert self._process.stdout is not None  # noqa: S101  (for mypy)
        line = self._process.stdout.readline()
        if not line:
            self._close()
            raise self._make_start_error()
        url: str = json.loads(line)["url"]
        return url.removesuffix("/v1")

    def _make_start_error(self) -> EdgechatError:
        code = self._process.returncode
        lines = self.read_log_lines()
        reason = lines[-1] if lines else f"The server ended with exit code {code}."
        return _ERRORS.get(code, EngineError)(f"{reason} (log of the server: {self.log_path})")

    def read_log_lines(self) -> list[str]:
        """Return the lines of the server's log without the prefix `edgechat:`."""
        try:
            with files.open_regular(self.log_path) as log:
                text = log.read(_MAX_READ_BYTES).decode("utf-8", "replace")
        except OSError:
            return []
        return [line.removeprefix("edgechat: ") for line in text.splitlines() if line.strip()]

    def describe_early_exit(self) -> str:
        """Return a sentence if the server has ended before it was closed; "" if it is running."""
        code = self._process.poll()
        return "" if code is None else f"The server ended with exit code {code}. Its log is {self.log_path}."

    def close(self) -> None:
        """End the server: it accepts no new requests, and gets killed if it does not end. Can be called repeatedly.

        Deletes the log, unless the server had already ended by itself.
        """
        is_running = self._process.poll() is None
        self._close()
        if is_running:
            with contextlib.suppress(OSError):
                self.log_path.unlink()

    def _close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _open_log(path: Path) -> IO[bytes] | None:
    """Create a log, and delete the logs that are older than a week; None if it cannot be created."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _delete_old_logs(path.parent)
        return files.open_new_private(path)
    except OSError:
        return None


def _delete_old_logs(folder: Path) -> None:
    for path in folder.glob("*.log"):
        with contextlib.suppress(OSError):  # another launch may have deleted it
            if path.stat().st_mtime < time.time() - _MAX_LOG_AGE_S:
                path.unlink()


def normalize_address(url: str) -> str:
    """Return the address of a running server without path, `/v1` and slash. Raises UsageError."""
    address = url.rstrip("/").removesuffix("/v1").rstrip("/")
    try:
        parts = urllib.parse.urlsplit(address)
        is_valid = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_valid = False
    if not is_valid or parts.query or parts.fragment or parts.username is not None:
        raise UsageError(f"{url!r} is not the address of a server. Example: http://127.0.0.1:8080")
    return address


def fetch_endpoint(address: str, api_key: str, model: str | None = None) -> Endpoint:
    """Ask a server for a model, or for its first chat model. Raises UsageError and HubError.

    `api_key` is "" for a server without a key. The endpoint has a key in each case.
    """
    body = _get_json(f"{address}/v1/models", api_key)
    try:
        rows = [row for row in body["data"] if row["owned_by"] == "edgechat" and _is_chat_model(row["meta"])]
        names = [row["id"] for row in rows]
        if model is not None and model not in names:
            raise UsageError(f"{address} does not serve the chat model {model!r}. It serves: {', '.join(names)}.")
        row = rows[names.index(model) if model is not None else 0]
        n_ctx, has_native_tools = int(row["meta"]["n_ctx"]), bool(row["meta"]["has_native_tools"])
    except IndexError:
        raise UsageError(f"{address} serves no chat model. Start `edgechat serve` with another model.") from None
    except (KeyError, TypeError, ValueError):
        raise UsageError(f"{address} is not a server of this version of edgechat. Start one with `edgechat serve`.") \
            from None  # fmt: skip
    return Endpoint(address, api_key or UNUSED_KEY, row["id"], n_ctx, has_native_tools)


def _is_chat_model(meta: Mapping[str, Any]) -> bool:
    return not meta["is_embedding"] and not meta["is_reranker"]


def _get_json(url: str, api_key: str) -> Any:
    """Return the JSON body of a response. Does not use proxies, because the server is usually on this machine."""
    parts = urllib.parse.urlsplit(url)
    connection_type = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = connection_type(parts.netloc, timeout=_REQUEST_TIMEOUT_S)
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        connection.request("GET", parts.path, headers=headers)
        response = connection.getresponse()
        if response.status == http.client.UNAUTHORIZED:
            problem = f"{KEY_VARIABLE} has another key" if api_key else f"{KEY_VARIABLE} is not set"
            raise UsageError(f"The server needs its API key, and {problem}. Set {KEY_VARIABLE} to the server's key.")
        if response.status != http.client.OK:
            raise HubError(f"{url} responds with status {response.status}.")
        return json.loads(response.read(_MAX_RESPONSE_BYTES))
    except (OSError, http.client.HTTPException) as error:
        raise HubError(f"No server responds at {url}: {error}. Start one with `edgechat serve`.") from error
    except ValueError:
        raise UsageError(f"{url} does not return JSON. Is it the address of `edgechat serve`?") from None
    finally:
        connection.close()
