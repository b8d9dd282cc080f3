"""`ask` and `--plain` with an engine that hangs: they recover, and Ctrl-C ends them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import IO

import pytest

from tests.conftest import Cli
from tests.faults.test_deaths import engine_of, start
from tests.waiting import until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")


# `edgechat` that kills a suspended engine, and one that does not end a cancelled request, after other numbers of
# seconds. It reports the first Ctrl-C when it has handled it, so that the next one is sent after that.
PROGRAM = """
import os, sys
from edgechat.cli.interruption import Interruption
from edgechat.cli.main import main
from edgechat.engine import hang_detector
def stop_and_report(interruption, stop=Interruption._stop_reply):
    stop(interruption)
    os.write(2, b"CANCELLED\\n")
Interruption._stop_reply = stop_and_report
hang_detector.STOPPED_TICKS, hang_detector.CANCELLED_TICKS = int(sys.argv.pop(1)), int(sys.argv.pop(1))
main()
"""
SHORT_TICKS = 2
NEVER = 1_000_000


def make_program(stopped_ticks: int, cancelled_ticks: int) -> list[str]:
    return [sys.executable, "-c", PROGRAM, str(stopped_ticks), str(cancelled_ticks)]


def suspend_engine_of(process: subprocess.Popen[bytes]) -> None:
    engine = engine_of(process.pid)
    assert engine is not None
    engine.suspend()


def test_ask_ends_with_an_error_and_keeps_the_text(cli: Cli) -> None:
    process = start(make_program(SHORT_TICKS, NEVER))
    suspend_engine_of(process)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 4
    assert err.decode().splitlines()[-1] == (
        f"edgechat: The engine process was killed, because it was suspended for {SHORT_TICKS} s. "
        "Send the request again."
    )
    assert out
    assert out.decode().strip()[:40] in cli("history", "export", "--all").stdout


@pytest.mark.parametrize(("n_signals", "cancelled_ticks"), [(1, SHORT_TICKS), (2, NEVER)])
def test_ctrl_c_ends_ask(n_signals: int, cancelled_ticks: int) -> None:
    """After the first one, the engine has some time to end the reply; the second one does not wait for it."""
    process = start(make_program(NEVER, cancelled_ticks))
    suspend_engine_of(process)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    assert any(line == b"CANCELLED\n" for line in process.stderr)
    if n_signals == 2:
        process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert out.endswith(b"\n")
    assert b"Traceback" not in err


class PlainChat:
    """`edgechat --plain` with pipes, and its output so far.

    Its errors are separate: they include the progress of a slow load, which is no reply.
    """

    def __init__(self, program: Sequence[str]) -> None:
        self.process = subprocess.Popen(
            [*program, "--plain", "--temperature", "0", "--max-tokens", "2000", "--no-speculation"],
            env={**os.environ, "EDGECHAT_STOP_REPETITION": "false"},  # the replies must not end by themselves
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.output = bytearray()
        self.errors = bytearray()
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._readers = [
            threading.Thread(target=self._read, args=(self.process.stdout, self.output)),
            threading.Thread(target=self._read, args=(self.process.stderr, self.errors)),
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: IO[bytes], output: bytearray) -> None:
        while data := os.read(stream.fileno(), 4096):
            output += data

    def send(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode() + b"\n")
        self.process.stdin.flush()

    def wait(self) -> int:
        code = self.process.wait(120)
        for reader in self._readers:
            reader.join()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
        return code


def test_plain_chat_reports_the_error_and_answers_the_next_message() -> None:
    chat = PlainChat(make_program(SHORT_TICKS, NEVER))
    chat.send("Tell me a very long story about the sea.")
    until(lambda: len(chat.output) > 200)
    suspend_engine_of(chat.process)
    until(lambda: b"was suspended for" in chat.errors)
    n_bytes = len(chat.output)
    chat.send("Tell me a very long story about the sky.")
    until(lambda: len(chat.output) > n_bytes + 200)
    assert chat.process.stdin is not None
    chat.process.send_signal(signal.SIGINT)
    until(lambda: b"Stopped" in chat.output + chat.errors)
    chat.send("/quit")
    assert chat.wait() == 4  # the code of the error


def test_second_ctrl_c_ends_the_plain_chat() -> None:
    chat = PlainChat(make_program(NEVER, NEVER))
    chat.send("Tell me a very long story about the sea.")
    until(lambda: len(chat.output) > 200)
    suspend_engine_of(chat.process)
    chat.process.send_signal(signal.SIGINT)
    until(lambda: b"CANCELLED" in chat.errors, description=lambda: f"cancelled: {chat.output!r}, {chat.errors!r}")
    chat.process.send_signal(signal.SIGINT)
    assert chat.wait() == 130
    assert b"Traceback" not in chat.errors
