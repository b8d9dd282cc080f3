"""Control characters: escaping, and terminals that interpret them."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat.terminal import escape_controls, supports_escapes


@given(st.text())
def test_escaped_text_has_no_control_characters(text: str) -> None:
    escaped = escape_controls(text)
    assert not any((ord(c) < 32 and c not in "\t\n") or 0x7F <= ord(c) < 0xA0 for c in escaped)
    if text.isascii() and text.isprintable():
        assert escaped == text


def test_control_characters_become_their_pictures() -> None:
    assert escape_controls("a\x1b[2Jb\r\nc\rd\x9b31m") == "a␛[2Jb\nc␍d\ufffd31m"


@pytest.mark.parametrize(
    ("is_terminal", "term", "expected"), [(True, "xterm", True), (True, "dumb", False), (False, "xterm", False)]
)
def test_dumb_terminal_gets_no_escape_sequences(
    monkeypatch: pytest.MonkeyPatch, is_terminal: bool, term: str, expected: bool
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: is_terminal)
    monkeypatch.setenv("TERM", term)
    assert supports_escapes(stream) is expected
