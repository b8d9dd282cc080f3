"""Processes that are killed, interrupted, or cut off from their output."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from tests.conftest import edgechat_command, remove_notes
from tests.models import write_tiny_llama
from tests.waiting import has_ended, until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
LONG = [
    "ask",
    "-m",
    "starter",
    "Tell me a very long story about the sea.",
    "--temperature",
    "0",
    "--max-tokens",
    "2000",
]


def engine_of(parent: int) -> psutil.Process | None:
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(parent).children():
            with contextlib.suppress(psutil.NoSuchProcess):  # another child that has ended
                if "_engine" in child.cmdline():
                    return child
    return None


def wait_for_end(process: psutil.Process) -> None:
    """Wait until a process that is not a child of this one has ended."""
    until(lambda: has_ended(process))


def start(program: Sequence[str] = ()) -> subprocess.Popen[bytes]:
    """Start `edgechat ask` with a long reply and wait for its first bytes; `program` is used instead of `edgechat`."""
    process = subprocess.Popen(
        [*(program or edgechat_command()), *LONG], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.read(20)
    return process


def test_killed_engine_ends_ask_with_code_4_and_names_the_signal() -> None:
    process = start()
    engine = engine_of(process.pid)
    assert engine is not None
    engine.kill()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 4
    assert b"SIGKILL" in err
    assert b"Traceback" not in err
    assert out.endswith(b"\n")


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM])
def test_engine_exits_when_its_client_is_killed(kill: signal.Signals) -> None:
    process = start()
    engine = engine_of(process.pid)
    assert engine is not None
    process.send_signal(kill)
    process.communicate(timeout=120)
    wait_for_end(engine)


def test_ctrl_c_exits_with_code_130_and_a_complete_line() -> None:
    process = start()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert out.endswith(b"\n")
    assert b"Traceback" not in err


def test_closed_output_pipe_exits_with_code_141_and_no_message() -> None:
    process = start()
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.wait(timeout=120) == 141
    assert remove_notes(process.stderr.read().decode()) == ""
    process.stderr.close()


def test_engine_has_a_higher_oom_score_than_its_client() -> None:
    if sys.platform != "linux":
        pytest.skip("needs OOM scores of Linux")
    process = start()
    engine = engine_of(process.pid)
    assert engine is not None
    scores = [int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in (engine.pid, process.pid)]
    process.kill()
    process.communicate()
    assert scores[0] > scores[1]


def test_output_of_libraries_goes_to_the_log_and_not_into_the_protocol(tmp_path: Path, home: Path) -> None:
    # sitecustomize runs in every child before the code of edgechat, and prints from a thread.
    (tmp_path / "sitecustomize.py").write_text(
        "import os, threading, time\n"
        "def print_noise():\n"
        "    while True:\n"
        "        os.write(1, b'NOISE' * 100); os.write(2, b'NOISE' * 100); time.sleep(0.001)\n"
        "import sys\n"
        "if '_engine' in sys.orig_argv: threading.Thread(target=print_noise, daemon=True).start()\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    result = subprocess.run(
        edgechat_command("ask", "Hi", "--temperature", "0", "--max-tokens", "8"),
        env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert "NOISE" not in result.stdout + result.stderr
    assert "NOISE" in (home / "cache" / "engine.log").read_text()


def run_on_terminal(*arguments: str) -> bytes:
    """Run edgechat on a pseudo-terminal and return its output."""
    main, side = pty.openpty()
    child = subprocess.Popen(edgechat_command(*arguments), stdin=side, stdout=side, stderr=side)
    os.close(side)
    output = b""
    while True:
        try:
            output += os.read(main, 65536)
        except OSError:  # the child closed its end
            break
    child.wait(timeout=120)
    os.close(main)
    return output


def test_control_characters_of_a_model_are_escaped_in_terminal_output(tmp_path: Path) -> None:
    # A random byte-level model generates every byte, including ESC.
    path = write_tiny_llama(tmp_path / "babbler.gguf")
    output = run_on_terminal(
        "ask", "Hi", "-m", str(path), "--max-tokens", "200", "--temperature", "10", "--seed", "1", "--top-p", "1"
    )
    reply = output.rpartition(b"\x1b[2K")[2]
    assert b"\xe2\x90" in reply  # a control picture: at least one character was escaped
    assert not any(byte in reply for byte in (0x1B, 0x07, 0x08, 0x0B))


def test_crashed_engine_shows_its_last_log_lines() -> None:
    process = start()
    engine = engine_of(process.pid)
    assert engine is not None
    engine.send_signal(signal.SIGSEGV)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 4
    assert b"SIGSEGV" in err
    assert b"last log lines" in err
