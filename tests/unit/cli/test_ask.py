"""Standard input of `edgechat ask` and of the line-by-line chat: limits, a notice while waiting, `--no-stdin`."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from edgechat.cli import ask, plain_chat
from edgechat.errors import UsageError
from tests.conftest import ROOT, edgechat_command
from tests.waiting import until

READ_QUESTION = (
    "import sys; from edgechat.cli import ask; ask.MAX_STDIN_BYTES, ask._STDIN_NOTICE_S = 1000, 0.2; "
    "print(ask.read_question('hi', no_stdin='--no-stdin' in sys.argv))"
)


def start(*arguments: str) -> subprocess.Popen[str]:
    """Start a process that prints a question; its standard input may have 1000 bytes."""
    return subprocess.Popen(
        [sys.executable, "-c", READ_QUESTION, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip


def test_open_pipe_is_reported_and_read_to_its_end() -> None:
    child = start()
    assert child.stderr is not None
    assert "Waiting for the end of standard input" in child.stderr.readline()
    assert child.communicate("more")[0] == "hi\n\nmore\n"


@pytest.mark.skipif(not hasattr(os, "O_NONBLOCK"), reason="pipes always block")
@pytest.mark.parametrize(
    ("read", "expected"),
    [
        ("print(ask.read_question(None), end='')", "part one part two\n"),
        ("print(plain_chat._read_line())", "part one part two\n"),
        ("sys.stdin.buffer.peek(1); print('x' * 999_999)", "x" * 999_999 + "\n"),
    ],
    ids=["question", "line", "output"],
)
def test_streams_that_do_not_block_lose_nothing(read: str, expected: str) -> None:
    code = (
        "import sys; from edgechat.cli import ask, main, plain_chat; main.ensure_standard_streams(); "
        f"print('started', file=sys.stderr, flush=True); {read}"
    )
    stdin, stdout = os.pipe(), os.pipe()
    os.set_blocking(stdin[0], False)
    os.set_blocking(stdout[1], False)
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=stdin[0], stdout=stdout[1], stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert child.stderr is not None
    os.close(stdin[0])
    os.close(stdout[1])
    os.write(stdin[1], b"part one ")
    assert child.stderr.readline() == "started\n"
    process = psutil.Process(child.pid)
    until(lambda: not process.is_running() or process.status() != psutil.STATUS_RUNNING)  # it reads or writes
    os.write(stdin[1], b"part two\n")
    os.close(stdin[1])
    with os.fdopen(stdout[0]) as output:
        assert output.read().endswith(expected)
    assert child.wait(timeout=60) == 0, child.stderr.read()
    child.stderr.close()


def test_no_stdin_does_not_read_an_open_pipe() -> None:
    child = start("--no-stdin")
    assert child.wait(timeout=60) == 0
    out, error = child.communicate()
    assert (out, error) == ("hi\n", "")


def test_short_input_causes_no_notice(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"more")))
    assert ask.read_question("hi") == "hi\n\nmore"
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX device")
def test_endless_input_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    started = time.monotonic()
    with Path("/dev/zero").open() as endless:
        monkeypatch.setattr(sys, "stdin", endless)
        with pytest.raises(UsageError, match="larger than 34 MB"):
            ask.read_question("hi")
    assert time.monotonic() - started < 10


def test_endless_input_of_the_command_is_one_line() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "while True: print('y' * 1000)"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as endless:
        result = subprocess.run(
            edgechat_command("ask", "hi"), stdin=endless.stdout, capture_output=True, text=True, check=False
        )
        endless.kill()
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert "larger than" in result.stderr


def test_line_of_the_plain_chat_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_chat, "MAX_STDIN_BYTES", 1000)
    monkeypatch.setattr(sys, "stdin", io.StringIO("x" * 999 + "\nlast"))
    assert plain_chat._read_line() == "x" * 999
    assert plain_chat._read_line() == "last"
    with pytest.raises(EOFError):
        plain_chat._read_line()
    monkeypatch.setattr(sys, "stdin", io.StringIO("x" * 1002))
    with pytest.raises(UsageError, match="more than"):
        plain_chat._read_line()


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX limit")
def test_lack_of_memory_is_one_line(tmp_path: Path) -> None:
    code = (
        "from edgechat.cli import history, root; import sys; "
        "history.import_.callback = lambda **options: bytearray(1 << 60); sys.exit(root.run())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, "history", "import", os.devnull], capture_output=True, text=True, check=False,
        cwd=ROOT,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (4, "edgechat: There is not enough memory.\n")
