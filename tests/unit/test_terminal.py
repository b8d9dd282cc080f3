"""Escaping of control characters."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgechat.terminal import escape_controls


@given(st.text())
def test_escaped_text_has_no_control_characters(text: str) -> None:
    escaped = escape_controls(text)
    assert not any((ord(c) < 32 and c not in "\t\n") or 0x7F <= ord(c) < 0xA0 for c in escaped)
    if text.isascii() and text.isprintable():
        assert escaped == text


def test_control_characters_become_their_pictures() -> None:
    assert escape_controls("a\x1b[2Jb\r\nc\rd\x9b31m") == "a␛[2Jb\nc␍d\ufffd31m"
