"""The chat in a pseudo-terminal that sends nonsense: nothing of it is typed, and no part of it ends the program."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from edgechat import paths
from tests.terminal import Terminal, terminal
from tests.unit.tui.test_input_filter import IGNORED

pytestmark = pytest.mark.cold

PROGRAM = [sys.executable, "-m", "tests.tui.scripted_program"]


def input_text(t: Terminal) -> str:
    """Return the words in the box of the input."""
    return " ".join(" ".join(row.strip("│ ") for row in t.text().splitlines() if row.startswith("│")).split())


def send(t: Terminal, data: bytes) -> None:
    os.write(t._master, data)


def test_nonsense_is_not_typed_and_opens_no_editor(tmp_path: Path) -> None:
    marker = tmp_path / "opened"
    editor = tmp_path / "editor"
    editor.write_text(f"#!/bin/sh\ntouch {marker}\n")
    editor.chmod(0o755)
    with terminal(*PROGRAM, size=(140, 24), env=os.environ | {"EDITOR": str(editor)}) as t:
        t.until_stable("Ready")
        for number, report in enumerate(IGNORED.values()):
            send(t, f"a{number}".encode() + report + b" ")
        t.until(lambda: input_text(t) == " ".join(f"a{number}" for number in range(len(IGNORED))))
        send(t, b"\x11")
        assert t.wait() == 0
    assert not marker.exists()


def test_bytes_that_are_not_utf8_are_replaced_in_keys_and_pastes() -> None:
    with terminal(*PROGRAM) as t:
        t.until_stable("Ready")
        send(t, b"caf\xe9 x \x1b[200~na\xefve\x1b[201~")
        t.until("caf\ufffd x na\ufffdve")
        send(t, b"\x1b[200~unfinished paste")
        t.until("unfinished paste")
        send(t, b" and keys\x11")
        assert t.wait() == 0


def test_error_in_the_input_thread_shows_the_crash_screen() -> None:
    code = (
        "from edgechat.tui.terminal_parser import TerminalParser\n"
        "def fail(self, data): raise RuntimeError('parser bug')\n"
        "TerminalParser.feed = fail\n"
        "from tests.tui.scripted_program import main\n"
        "raise SystemExit(main())"
    )
    with terminal(sys.executable, "-c", code) as t:
        t.until_stable("Ready")
        t.type("a")
        assert t.wait() == 1
        t.until("edgechat failed: RuntimeError: parser bug")
        assert "Traceback" not in t.text()
        assert t.modes() == t.initial_modes
    assert "parser bug" in (paths.cache_dir() / "crash.log").read_text()
