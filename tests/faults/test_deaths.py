"""Processes killed for real, at the worst moment."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.conftest import edgechat_command
from tests.models import write_tiny_llama
from tests.waiting import until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")
LONG = ["ask", "Tell me a very long story about the sea.", "--temperature", "0", "--max-tokens", "2000"]


def engine_of(parent: int) -> psutil.Process | None:
    for child in psutil.Process(parent).children():
        if "_engine" in child.cmdline():
            return child
    return None


def start() -> subprocess.Popen[bytes]:
    """Ask for a long answer and wait for its first words."""
    asking = subprocess.Popen(
        edgechat_command(*LONG), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert asking.stdout is not None
    assert asking.stdout.read(20)
    return asking


def test_killing_the_engine_ends_the_answer_with_code_4_and_says_why() -> None:
    asking = start()
    engine = engine_of(asking.pid)
    assert engine is not None
    engine.kill()
    out, err = asking.communicate(timeout=10)
    assert asking.returncode == 4
    assert b"SIGKILL" in err
    assert b"Traceback" not in err
    assert out.endswith(b"\n")


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM])
def test_an_engine_does_not_outlive_its_client(kill: signal.Signals) -> None:
    asking = start()
    engine = engine_of(asking.pid)
    assert engine is not None
    asking.send_signal(kill)
    asking.communicate(timeout=10)
    until(lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE, timeout_s=1)


def test_ctrl_c_ends_with_130_and_keeps_what_was_said() -> None:
    asking = start()
    asking.send_signal(signal.SIGINT)
    out, err = asking.communicate(timeout=10)
    assert asking.returncode == 130
    assert out.endswith(b"\n")
    assert b"Traceback" not in err


def test_nobody_reading_is_not_a_crash() -> None:
    asking = start()
    assert asking.stdout is not None
    assert asking.stderr is not None
    asking.stdout.close()
    assert asking.wait(timeout=20) == 141
    assert asking.stderr.read() == b""
    asking.stderr.close()


def test_the_engine_goes_first_when_memory_runs_out() -> None:
    if sys.platform != "linux":
        pytest.skip("OOM scores are Linux's")
    asking = start()
    engine = engine_of(asking.pid)
    assert engine is not None
    scores = [int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in (engine.pid, asking.pid)]
    asking.kill()
    asking.communicate()
    assert scores[0] > scores[1]


def test_a_library_that_prints_cannot_corrupt_the_protocol(tmp_path: Path, home: Path) -> None:
    # sitecustomize runs in every child before anything of ours, and keeps printing from a thread.
    (tmp_path / "sitecustomize.py").write_text(
        "import os, threading, time\n"
        "def shout():\n"
        "    while True:\n"
        "        os.write(1, b'NOISE' * 100); os.write(2, b'NOISE' * 100); time.sleep(0.001)\n"
        "import sys\n"
        "if '_engine' in sys.orig_argv: threading.Thread(target=shout, daemon=True).start()\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    result = subprocess.run(
        edgechat_command("ask", "Hi", "--temperature", "0", "--max-tokens", "8"),
        env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert "NOISE" not in result.stdout + result.stderr
    assert "NOISE" in (home / "cache" / "engine.log").read_text()


def on_a_terminal(*arguments: str) -> bytes:
    """What a terminal gets to see."""
    main, side = pty.openpty()
    child = subprocess.Popen(edgechat_command(*arguments), stdin=side, stdout=side, stderr=side)
    os.close(side)
    seen = b""
    while True:
        try:
            seen += os.read(main, 65536)
        except OSError:  # the other end was closed
            break
    child.wait(timeout=30)
    os.close(main)
    return seen


def test_model_output_cannot_act_on_a_terminal(tmp_path: Path) -> None:
    # A random byte-level model says every byte sooner or later, escape among them.
    path = write_tiny_llama(tmp_path / "babbler.gguf")
    seen = on_a_terminal(
        "ask", "Hi", "-m", str(path), "--max-tokens", "200", "--temperature", "10", "--seed", "1", "--top-p", "1"
    )
    answer = seen.rpartition(b"\x1b[2K")[2]
    assert b"\xe2\x90" in answer  # a control picture: there was something to neutralise
    assert not any(byte in answer for byte in (0x1B, 0x07, 0x08, 0x0B))


def test_the_last_words_of_a_crashing_engine_are_shown(tmp_path: Path) -> None:
    asking = start()
    engine = engine_of(asking.pid)
    assert engine is not None
    engine.send_signal(signal.SIGSEGV)
    _, err = asking.communicate(timeout=10)
    assert asking.returncode == 4
    assert b"SIGSEGV" in err
    assert b"last log lines" in err
