"""llama-server as a peer: the same tokens over its own HTTP interface."""

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

_START_S: Final = 120.0
_ANSWER_S: Final = 600.0


class LlamaServer:
    """A llama-server with one model on a port of its own; conversations can be saved to its slots' files."""

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
        """`module` is the backend that it is to use. Raises EngineError if it does not start."""
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
        # The same module, and no other: an empty directory, since ggml also searches the current one.
        self._environment = os.environ | {"GGML_BACKEND_PATH": module}
        self._child = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        empty = Path(self._scratch.name) / "empty"
        empty.mkdir(exist_ok=True)
        with self._log.open("ab") as log:
            child = subprocess.Popen(self._command, stdout=log, stderr=log, cwd=empty, env=self._environment)
        until_s = time.monotonic() + _START_S
        while time.monotonic() < until_s and child.poll() is None:
            try:
                if self._get("/health") == http.client.OK:
                    return child
            except OSError:
                pass
            time.sleep(0.05)
        child.kill()
        raise EngineError(f"llama-server did not start: {self._log.read_text('utf-8', 'replace')[-500:]}")

    def _get(self, path: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        connection.request("GET", path)
        status = connection.getresponse().status
        connection.close()
        return status

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_ANSWER_S)
        connection.request("POST", path, msgspec.json.encode(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = response.read()
        connection.close()
        if response.status != http.client.OK:
            raise EngineError(f"llama-server answered {response.status}: {answer[:300].decode('utf-8', 'replace')}")
        return msgspec.json.decode(answer, type=dict[str, Any])

    def first_token(self, tokens: list[int]) -> tuple[float, int]:
        """Seconds from sending a prompt to its first token, and how many tokens of it were cached."""
        started = time.monotonic()
        answer = self._post(
            "/completion",
            {"prompt": tokens, "n_predict": 1, "cache_prompt": True, "temperature": 0.0, "ignore_eos": True},
        )
        return time.monotonic() - started, len(tokens) - int(answer["timings"]["prompt_n"])

    def decode_tps(self, tokens: list[int], n_predict: int) -> float:
        """Tokens per second of an answer after its first token, by the server's own clock."""
        answer = self._post("/completion", {"prompt": tokens, "n_predict": n_predict, "temperature": 0.0})
        return float(answer["timings"]["predicted_per_second"])

    def restart(self) -> None:
        """Save the conversation that was used last, and start anew; `resume` brings it back."""
        self._slot = 0
        slots = self._get_json("/slots")
        used = max(slots, key=lambda slot: slot.get("n_prompt_tokens", slot.get("id_task", -1)))
        self._slot = int(used["id"])
        self._post(f"/slots/{self._slot}?action=save", {"filename": "talk.bin"})
        self._end()
        self._child = self._start()

    def _get_json(self, path: str) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        connection.request("GET", path)
        answer = connection.getresponse().read()
        connection.close()
        return msgspec.json.decode(answer)

    def resume(self) -> None:
        """Restore what `restart` saved."""
        self._post(f"/slots/{self._slot}?action=restore", {"filename": "talk.bin"})

    def _end(self) -> None:
        self._child.terminate()
        try:
            self._child.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def close(self) -> None:
        """End the process, and remove what it wrote."""
        self._end()
        self._scratch.cleanup()
