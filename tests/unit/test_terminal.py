"""Untrusted text on terminals: controls, invisible characters and combining marks; and what terminals interpret."""

from __future__ import annotations

import io
import json
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat import terminal
from edgechat.terminal import TextEscaper, escape_controls, escape_input, escape_json, supports_escapes
from tests.time_limit import ends_within

SPECIAL = (
    "\r\n\t\x07\x1b\x7f\x85\x9b\xad\u061c\u200b\u200c\u200d\u200e\u2028\u202e\u2066\u2069\u2060\ufeff\ufff9\ufe0f\u0301\u0e47"
    "\U000e0041\U000e007f\U0001f3f4\U0001f469\u06cc\u0915a "
)
TEXTS = st.text(st.one_of(st.sampled_from(SPECIAL), st.characters()), max_size=60)

INVISIBLE = {
    "zero width space": "\u200b", "joiner": "\u200d", "non-joiner": "\u200c", "word joiner": "\u2060",
    "byte order mark": "\ufeff", "left-to-right mark": "\u200e", "right-to-left mark": "\u200f",
    "arabic letter mark": "\u061c", "override": "\u202e", "isolate": "\u2066", "tag": "\U000e0041",
    "annotation": "\ufff9", "hangul filler": "\u3164", "line separator": "\u2028", "C1": "\x85", "surrogate": "\ud800",
    "deprecated": "\u206a", "function application": "\u2061", "shorthand": "\U0001bca0", "music": "\U0001d173",
}  # fmt: skip

KEPT = {
    "family": "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466",
    "astronaut": "\U0001f469\U0001f3fd\u200d\U0001f680",
    "witness": "\U0001f441\ufe0f\u200d\U0001f5e8\ufe0f",
    "flag of Scotland": "\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",
    "black flag": "\U0001f3f4 x",
    "Persian": "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
    "Persian with Latin": "PDF\u200c\u0647\u0627",
    "Hindi": "\u0915\u094d\u200d\u0937",
    "Khmer": "\u1797\u17b6\u179f\u17b6\u200b\u1781\u17d2\u1798\u17c2\u179a",
    "keycap": "1\ufe0f\u20e3",
    "accents": "\u00e9 n\u0303",
    "Vietnamese": "e\u0302\u0301",
    "Hebrew": "\u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd",
    "Tibetan": "\u0f67\u0f71\u0f74\u0f83",
    "Arabic": "\u0627\u0644\u0633\u064e\u0651\u0644\u064e\u0627\u0645\u064f",
}


@given(TEXTS)
def test_escaped_text_has_no_invisible_character(text: str) -> None:
    escaped = escape_controls(text)
    assert not any((ord(c) < 32 and c not in "\t\n") or 0x7F <= ord(c) < 0xA0 for c in escaped)
    for index, char in enumerate(escaped):
        if unicodedata.category(char) in {"Cf", "Cs"} and char not in "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd":
            neighbours = escaped[max(0, index - 1) : index] + escaped[index + 1 : index + 2]
            assert ord(char) in range(0x200B, 0x200E) or ord(char) > 0xE0000 or char >= "\u070f", hex(ord(char))
            assert any(c >= "\u0590" for c in neighbours) or char >= "\u070f"
    if text.isascii() and text.isprintable():
        assert escaped == text
    assert escape_controls(escaped) == escaped


@given(TEXTS, st.lists(st.integers(0, 6), max_size=40), st.booleans())
def test_escaped_parts_are_the_escaped_whole(text: str, sizes: list[int], is_input: bool) -> None:
    escaper = TextEscaper(is_input=is_input)
    whole = escape_input(text) if is_input else escape_controls(text)
    parts = []
    for size in [*sizes, len(text)]:
        parts.append(escaper.feed(text[:size]))
        text = text[size:]
    assert "".join([*parts, escaper.finish()]) == whole


def test_control_characters_become_their_pictures() -> None:
    assert escape_controls("a\x1b[2Jb\r\nc\rd\x9b31m") == "a␛[2Jb\nc␍d\ufffd31m"


@pytest.mark.parametrize("char", INVISIBLE.values(), ids=INVISIBLE.keys())
def test_invisible_character_becomes_visible_in_latin_text(char: str) -> None:
    assert escape_controls(f"rm{char} -rf") == "rm\ufffd -rf"
    assert escape_controls(f"{char * 3}x") == "\ufffd\ufffd\ufffdx"


@pytest.mark.parametrize("text", KEPT.values(), ids=KEPT.keys())
def test_text_that_needs_invisible_characters_is_unchanged(text: str) -> None:
    assert escape_controls(text) == text
    assert escape_input(text) == text


def test_only_one_joiner_stays_beside_an_emoji() -> None:
    assert escape_controls("👩\u200d\u200d\u200dx") == "👩\u200d\ufffd\ufffdx"


def test_tags_without_a_flag_or_with_too_many_letters_are_visible() -> None:
    hidden = "".join(chr(0xE0000 + ord(c)) for c in "ignore all")
    assert escape_controls(f"x{hidden}") == "x" + "\ufffd" * 10
    assert escape_controls(f"🏴{hidden}\U000e007f") == "🏴" + "\ufffd" * 11


@pytest.mark.parametrize("mark", ["\u0301", "\u0e47", "\ufe0f", "\U000e0100", "\u20d0", "\u3099", "\U0001e8d0"])
def test_run_of_combining_marks_is_limited(mark: str) -> None:
    assert escape_controls(f"a{mark * 300}b") == f"a{mark * 10}\ufffdb"
    assert escape_controls(f"a{mark * 10}b") == f"a{mark * 10}b"
    assert escape_controls(f"{mark * 11}") == f"{mark * 10}\ufffd"


def test_every_combining_mark_can_be_part_of_a_limited_run() -> None:
    for code in range(sys.maxunicode + 1):
        if unicodedata.category(chr(code)).startswith("M"):
            assert terminal._POSSIBLE_MARKS.compiled.fullmatch(chr(code) * 11), hex(code)


def test_pasted_line_separators_become_newlines_and_isolates_stay() -> None:
    pasted = "a\u2028b\u2029c\x85d \u2066x\u2069 e\u200bf\u200eg\ufeffh\r\ni\xadj"
    assert escape_input(pasted) == "a\nb\nc\nd \u2066x\u2069 e\u200bf\u200eg\ufeffh\ni\xadj"
    assert escape_input("a\x1b[2J\x9b\u202e\U000e0041\ud800b\x00") == "a␛[2J\ufffd\ufffd\ufffd\ufffdb␀"


@given(st.recursive(st.none() | st.integers() | TEXTS.filter(str.isprintable) | TEXTS, st.lists))
def test_escaped_json_has_the_same_value(value: object) -> None:
    text = json.dumps(value, ensure_ascii=False)
    escaped = escape_json(text)
    assert json.loads(escaped) == value
    assert not terminal._SPECIAL.compiled.search(escaped)


def test_escaped_json_shows_the_numbers_of_characters() -> None:
    assert escape_json('["\x9b\x7f\u202e\U000e0041é क"]') == '["\\u009b\\u007f\\u202e\\udb40\\udc41é क"]'
    assert escape_json('["\x7f\u00e9"]', ascii_only=True) == '["\\u007f\\u00e9"]'
    assert escape_json('["a' + "\u0301" * 11 + '"]') == '["a' + "\\u0301" * 11 + '"]'


@pytest.mark.parametrize("char", ["x", "é", "क", "\u0301", "\u200b", "\U000e0041", "\r", "👩\u200d"])
def test_long_text_is_escaped_in_linear_time(char: str) -> None:
    for escape in (escape_controls, escape_json):
        with ends_within():  # takes less than a second, and minutes if the time grew with the square of the length
            assert escape(char * 800_000)


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
