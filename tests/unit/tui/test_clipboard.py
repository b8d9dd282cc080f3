"""Ways to the clipboard: programs of the desktop and of tmux, and OSC 52."""

from __future__ import annotations

import base64
import os
import sys
from pathlib import Path

import pytest

from edgechat.tui import clipboard
from edgechat.tui.clipboard import ClipboardProgram, list_programs, make_osc52_sequence, run_program, summary

PLAIN = "\x1b]52;c;" + base64.b64encode(b"hi").decode() + "\x07"
IN_TMUX = "\x1bPtmux;\x1b" + PLAIN + "\x1b\\"
IN_SCREEN = f"\x1bP{PLAIN}\x1b\\"


@pytest.mark.parametrize(
    ("environment", "sequence"),
    [
        ({}, PLAIN),
        ({"TERM": "xterm-kitty"}, PLAIN),
        ({"TMUX": "x", "TERM": "screen-256color"}, PLAIN + IN_TMUX),
        ({"STY": "x", "TERM": "screen"}, IN_SCREEN),
        ({"SSH_TTY": "x", "TERM": "tmux-256color"}, PLAIN + IN_TMUX),
        ({"SSH_TTY": "x", "TERM": "screen-256color"}, PLAIN + IN_TMUX + IN_SCREEN),
    ],
)
def test_sequence_has_the_forms_that_can_reach_the_terminal(environment: dict[str, str], sequence: str) -> None:
    assert make_osc52_sequence("hi", environment) == sequence


def test_plain_sequence_is_left_out_if_tmux_has_the_text() -> None:
    assert make_osc52_sequence("hi", {"TMUX": "x"}, is_in_tmux=True) == IN_TMUX


def test_sequence_for_screen_is_split() -> None:
    parts = make_osc52_sequence("x" * 2000, {"STY": "x"}).split("\x1b\\")
    assert all(len(part) <= 768 for part in parts)
    assert "".join(part.removeprefix("\x1bP") for part in parts) == make_osc52_sequence("x" * 2000, {})


@pytest.mark.skipif(sys.platform != "linux", reason="the desktops of Linux")
@pytest.mark.parametrize(
    ("environment", "names"),
    [
        ({}, []),
        ({"DISPLAY": ":0"}, ["xclip"]),
        ({"DISPLAY": ":0", "WAYLAND_DISPLAY": "wayland-0"}, ["wl-copy"]),
        ({"WSL_DISTRO_NAME": "Debian"}, ["clip.exe"]),
        ({"DISPLAY": ":0", "TMUX": "x"}, ["tmux", "xclip"]),
        ({"DISPLAY": "localhost:10", "SSH_CONNECTION": "x", "TMUX": "x"}, ["tmux"]),
    ],
)
def test_programs_fit_the_session(environment: dict[str, str], names: list[str]) -> None:
    assert [program.command[0] for program in list_programs(environment, lambda name: name)] == names


@pytest.mark.skipif(sys.platform != "linux", reason="the desktops of Linux")
def test_program_that_is_not_installed_is_not_used() -> None:
    assert list_programs({"DISPLAY": ":0"}, lambda name: name if name == "xsel" else None)[0].command[0] == "xsel"
    assert list_programs({"DISPLAY": ":0", "TMUX": "x"}, lambda _name: None) == []


def test_program_gets_the_text_and_its_failure_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clipboard, "_TIMEOUT_S", 60.0)  # the start of Python takes seconds on a busy machine
    file = tmp_path / "text"
    code = f"import sys; open({str(file)!r}, 'wb').write(sys.stdin.buffer.read())"
    assert run_program(ClipboardProgram((sys.executable, "-c", code), "here"), "späß")
    assert file.read_text(encoding="utf-8") == "späß"
    assert not run_program(ClipboardProgram((sys.executable, "-c", "raise SystemExit(1)"), "here"), "x")
    assert not run_program(ClipboardProgram((str(tmp_path / "missing"),), "here"), "x")


def test_program_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clipboard, "_TIMEOUT_S", 0.2)
    assert not run_program(ClipboardProgram((sys.executable, "-c", "import time; time.sleep(60)"), "here"), "x")


def test_notification_is_one_short_sentence_that_says_what_was_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", os.path.abspath("/home/user"))  # noqa: PTH100
    file = Path(os.path.abspath("/home/user/.cache/edgechat/copied.txt"))  # noqa: PTH100
    label = "Code block 3"
    assert summary("Reply", ["the clipboard"], file, was_sent=True) == "Copied reply to the clipboard"
    assert summary(label, [clipboard.TMUX], file, was_sent=True) == "Copied code block 3 to tmux and the terminal"
    assert summary(label, [clipboard.TMUX], file, was_sent=False) == "Copied code block 3 to tmux"
    assert summary("Reply", [], None, was_sent=True) == "Sent reply to the terminal"
    sent = summary(label, [], file, was_sent=True)
    assert sent == "Sent code block 3 to the terminal, saved it in ~/.cache/edgechat/copied.txt"
    too_long = summary("Reply", [], file, was_sent=False)
    assert too_long == "Reply is too long for the terminal, saved it in ~/.cache/edgechat/copied.txt"
    assert max(map(len, (sent, too_long))) <= 76
    assert len(summary(label, [], Path("/" + "x" * 99) / "copied.txt", was_sent=True)) <= 76
