"""`edgechat serve` as a process that benchmarks query, restart and kill."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from typing import Final

import msgspec

from edgechat import process
from edgechat.errors import EngineError
from edgechat.hardware.process_tree import list_process_tree

_SAVE_PAUSE_S: Final = 1.5


class EdgechatServer:
    """A running `edgechat serve` on a free port."""

    def __init__(self, *arguments: str, environment: Mapping[str, str]) -> None:
        """Start the server with further arguments. Raises EngineError if it does not start."""
        self._command = process.make_command_line("serve", "--port", "0", "--json", *arguments)
        self._environment = environment
        self.port = 0
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
            env=self._environment,
        )  # fmt: skip
        first_line = self._process.stdout.readline() if self._process.stdout is not None else b""
        if not first_line:
            raise EngineError("`edgechat serve` did not start. Run it in a terminal to see the error.")
        self.port = int(str(msgspec.json.decode(first_line)["url"]).removesuffix("/v1").rpartition(":")[2])

    def restart(self) -> None:
        """Restart the server, after waiting for the cache to save its segments."""
        time.sleep(_SAVE_PAUSE_S)
        self.close()
        self._start()

    def restore_slot(self) -> None:
        """Do nothing, because edgechat restores cached prefixes automatically."""

    def kill(self) -> None:
        """Kill all processes of the server with SIGKILL, and start it again."""
        # First the descendants: the engine would save its caches if it noticed the end of the server.
        for pid in reversed(list_process_tree(self._process.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, process.KILL_SIGNAL)
        self._wait()
        self._start()

    def close(self) -> None:
        """Interrupt the server, and wait until it has ended."""
        self._process.send_signal(signal.SIGINT)
        self._wait()

    def _wait(self) -> None:
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
