"""llama-server as a benchmark peer, queried through its HTTP API."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from edgechat.errors import EngineError

_START_TIMEOUT_S: Final = 120.0
_RESPONSE_TIMEOUT_S: Final = 600.0


class LlamaServer:
    """A running llama-server with one model on a free port, which can save its slots to files."""

    def __init__(
        self,
        binary: Path,
        module: str,
        model: str,
        *,
        n_ctx: int,
        n_threads: int,
        n_batch: int,
        arguments: Sequence[str] = (),
    ) -> None:
        """Start the server with the backend `module`. Raises EngineError if the server does not start in time."""
        self._scratch = tempfile.TemporaryDirectory()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._log = Path(self._scratch.name) / "log"
        self._command = [
            str(binary.resolve()), "-m", str(Path(model).resolve()), "-c", str(n_ctx), "-t", str(n_threads),
            "-b", str(n_batch), "-ub", str(n_batch), "--host", "127.0.0.1", "--port", str(self.port),
            "--slot-save-path", self._scratch.name, "--no-webui", *arguments,
        ]  # fmt: skip
        # GGML_BACKEND_PATH selects the module that edgechat uses. ggml also searches the current directory, so the
        # server runs in an empty directory.
        self._environment = os.environ | {"GGML_BACKEND_PATH": module}
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        empty_dir = Path(self._scratch.name) / "empty"
        empty_dir.mkdir(exist_ok=True)
        with self._log.open("ab") as log:
            process = subprocess.Popen(self._command, stdout=log, stderr=log, cwd=empty_dir, env=self._environment)
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline and process.poll() is None:
            try:
                if self._get("/health") == http.client.OK:
                    return process
            except OSError:
                pass
            time.sleep(0.05)
        process.kill()
        raise EngineError(
            f"llama-server did not start. The end of its log: {self._log.read_text('utf-8', 'replace')[-500:]}"
        )

    def _get(self, path: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        connection.request("GET", path)
        status = connection.getresponse().status
        connection.close()
        return status

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_RESPONSE_TIMEOUT_S)
        connection.request("POST", path, msgspec.json.encode(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = response.read()
        connection.close()
        if response.status != http.client.OK:
            message = content[:300].decode("utf-8", "replace")
            raise EngineError(f"llama-server responded with HTTP status {response.status}: {message}")
        return msgspec.json.decode(content, type=dict[str, Any])

    def measure_first_token(self, tokens: list[int]) -> tuple[float, int]:
        """Return the seconds from sending a prompt to its first token, and the number of cached prompt tokens."""
        started_at = time.monotonic()
        response = self._post(
            "/completion",
            {"prompt": tokens, "n_predict": 1, "cache_prompt": True, "temperature": 0.0, "ignore_eos": True},
        )
        return time.monotonic() - started_at, len(tokens) - int(response["timings"]["prompt_n"])

    def measure_decode_tps(self, tokens: list[int], n_predict: int) -> float:
        """Return the decode speed after the first token in tokens per second, as reported by the server."""
        response = self._post("/completion", {"prompt": tokens, "n_predict": n_predict, "temperature": 0.0})
        return float(response["timings"]["predicted_per_second"])

    def restart(self) -> None:
        """Save the most recently used slot, and restart the process. Call `restore_slot` afterwards."""
        self._slot = 0
        slots = self._get_json("/slots")
        last_slot = max(slots, key=lambda slot: slot.get("n_prompt_tokens", slot.get("id_task", -1)))
        self._slot = int(last_slot["id"])
        self._post(f"/slots/{self._slot}?action=save", {"filename": "conversation.bin"})
        self._terminate()
        self._process = self._start()

    def _get_json(self, path: str) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        connection.request("GET", path)
        content = connection.getresponse().read()
        connection.close()
        return msgspec.json.decode(content)

    def kill(self) -> None:
        """Kill the process with SIGKILL, and start it again."""
        self._process.kill()
        self._process.wait()
        self._process = self._start()

    def restore_slot(self) -> None:
        """Restore the slot that `restart` has saved."""
        self._post(f"/slots/{self._slot}?action=restore", {"filename": "conversation.bin"})

    def _terminate(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """Terminate the process and delete its scratch files."""
        self._terminate()
        self._scratch.cleanup()
