"""`ask` and `--plain` with an engine that hangs: they recover, and Ctrl-C ends them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import IO

import pytest

from edgechat.engine.hang_detector import CANCELLED_TICKS, STOPPED_TICKS
from tests.conftest import Cli, edgechat_command
from tests.faults.test_deaths import engine_of, start
from tests.waiting import until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")


def suspend_engine_of(process: subprocess.Popen[bytes]) -> None:
    engine = engine_of(process.pid)
    assert engine is not None
    engine.suspend()


def test_ask_ends_with_an_error_and_keeps_the_text(cli: Cli) -> None:
    process = start()
    suspend_engine_of(process)
    started_at = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - started_at < STOPPED_TICKS + 25
    assert process.returncode == 4
    assert err.decode().splitlines()[-1] == (
        f"edgechat: The engine process was killed, because it was suspended for {STOPPED_TICKS} s. "
        "Send the request again."
    )
    assert out
    assert out.decode().strip()[:40] in cli("history", "export", "--all").stdout


@pytest.mark.parametrize(("n_signals", "max_s"), [(1, CANCELLED_TICKS + 20), (2, CANCELLED_TICKS - 2)])
def test_ctrl_c_ends_ask(n_signals: int, max_s: int) -> None:
    process = start()
    suspend_engine_of(process)
    started_at = time.monotonic()
    for _ in range(n_signals):
        process.send_signal(signal.SIGINT)
        threading.Event().wait(0.4)
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - started_at < max_s
    assert process.returncode == 130
    assert out.endswith(b"\n")
    assert b"Traceback" not in err


class PlainChat:
    """`edgechat --plain` with pipes, and its output so far."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            edgechat_command("--plain", "--temperature", "0", "--max-tokens", "2000"),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.output = b""
        assert self.process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self.process.stdout,))
        self._reader.start()

    def _read(self, stream: IO[bytes]) -> None:
        while data := os.read(stream.fileno(), 4096):
            self.output += data

    def send(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode() + b"\n")
        self.process.stdin.flush()

    def wait(self) -> int:
        code = self.process.wait(60)
        self._reader.join()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()
        return code


def test_plain_chat_reports_the_error_and_answers_the_next_message() -> None:
    chat = PlainChat()
    chat.send("Tell me a very long story about the sea.")
    until(lambda: len(chat.output) > 200, timeout_s=60)
    suspend_engine_of(chat.process)
    until(lambda: b"was suspended for" in chat.output)
    n_bytes = len(chat.output)
    chat.send("Tell me a very long story about the sky.")
    until(lambda: len(chat.output) > n_bytes + 200, timeout_s=60)
    assert chat.process.stdin is not None
    chat.process.send_signal(signal.SIGINT)
    until(lambda: b"Stopped" in chat.output)
    chat.send("/quit")
    assert chat.wait() == 4  # the code of the error


def test_second_ctrl_c_ends_the_plain_chat() -> None:
    chat = PlainChat()
    chat.send("Tell me a very long story about the sea.")
    until(lambda: len(chat.output) > 200, timeout_s=60)
    suspend_engine_of(chat.process)
    started_at = time.monotonic()
    for _ in range(2):
        chat.process.send_signal(signal.SIGINT)
        threading.Event().wait(0.4)
    assert chat.wait() == 130
    assert time.monotonic() - started_at < CANCELLED_TICKS - 2
    assert b"Traceback" not in chat.output
