"""Sequences for the window title: one line without control characters, and no title on consoles."""

from __future__ import annotations

import pytest

from edgechat.tui.window_title import has_title, make_title_sequence


def test_title_is_one_short_line_without_control_characters() -> None:
    assert make_title_sequence("A talk") == "\x1b]2;A talk\x07"
    evil = make_title_sequence("a\x1b[2J\x07b\nc\u202e" + "x" * 1000)
    assert evil.count("\x1b") == evil.count("\x07") == 1
    assert "\n" not in evil
    assert "\u202e" not in evil
    assert len(evil) < 130


@pytest.mark.parametrize(
    ("term", "expected"), [("xterm-256color", True), ("tmux", True), ("linux", False), ("", False)]
)
def test_consoles_have_no_window_title(term: str, *, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", term)
    assert has_title() is expected
