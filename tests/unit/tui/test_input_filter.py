"""Input of a terminal: keys, pastes and known reports pass; other answers, broken reports and stray bytes do not."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from textual import constants, events, messages
from textual._ansi_sequences import ANSI_SEQUENCES_KEYS
from textual._keyboard_protocol import FUNCTIONAL_KEYS

from edgechat.tui.control_sequences import Background, KeyTables
from edgechat.tui.input_filter import InputFilter
from edgechat.tui.paste_reader import Paste
from edgechat.tui.terminal_parser import TerminalParser

DELAY_S = constants.ESCAPE_DELAY
LATER_S = 10.0
"""A time after which nothing is incomplete any more."""

EIGHT_BIT_REPORTS = {
    "device attributes": "\x9b?62;1;4c",
    "colour": "\x9b31m",
    "background colour": "\x9d11;rgb:1414/1919/1f1f\x9c",
    "background colour with BEL": "\x9d11;rgb:1414/1919/1f1f\x07",
    "terminal name": "\x90>|Konsole 26.04.0\x9c",
    "terminal name with ESC": "\x90>|Konsole 26.04.0\x1b\\",
    "application command": "\x9fGi=31;OK\x9c",
    "privacy message": "\x9ex\x9c",
    "start of string": "\x98x\x9c",
    "mouse x10": "\x9bM#!!",
    "mouse NaN": "\x9b<32;NaN;NaNM",
    "single shift": "\x8ex",
}
"""Reports with controls of eight bits."""

IGNORED = {
    "device attributes": b"\x1b[?62;1;4c",
    "secondary device attributes": b"\x1b[>1;115;0c",
    "tertiary device attributes": b"\x1bP!|00000000\x1b\\",
    "kitty flags": b"\x1b[?31u",
    "terminal name": b"\x1bP>|Konsole 26.04.0\x1b\\",
    "capabilities": b"\x1bP1+r544e=787465726d\x1b\\",
    "background colour": b"\x1b]11;rgb:1414/1919/1f1f\x07",
    "foreground colour": b"\x1b]10;rgb:ffff/ffff/ffff\x1b\\",
    "palette": b"\x1b]4;1;rgb:cdcd/0000/0000\x1b\\",
    "clipboard": b"\x1b]52;c;" + b"QUJD" * 30_000 + b"\x07",
    "title": "\x1b]lMein Fenster \N{BLACK STAR}\x1b\\".encode(),
    "application command": b"\x1b_Gi=31;OK\x1b\\",
    "privacy message": b"\x1b^x\x1b\\",
    "start of string": b"\x1bXx\x1b\\",
    "status": b"\x1b[0n",
    "size in characters": b"\x1b[8;24;80t",
    "size in pixels": b"\x1b[4;600;800t",
    "other mode": b"\x1b[?2027;0$y",
    "mouse NaN": b"\x1b[<32;NaN;NaNM",
    "mouse infinite": b"\x1b[<0;-Infinity;1e+21m",
    "mouse undefined": b"\x1b[<0;undefined;3M",
    "mouse without numbers": b"\x1b[<M",
    "mouse urxvt": b"\x1b[32;10;20M",
    "mouse x10": b"\x1b[M\x23\x98\x21",
    "mouse x10, wide and high": b"\x1b[M\x23\xd2\x98",
    "mouse x10, outside": b"\x1b[M\x23\x00\x21",
    "mouse x10 as utf-8": "\x1b[M\x23\x98\x21".encode(),
    "mouse x10 as utf-8, high": "\x1b[M\x23\x98\xa1".encode(),
    **{f"C1, {name}": report.encode() for name, report in EIGHT_BIT_REPORTS.items()},
    **{f"C1 bytes, {name}": report.encode("latin-1") for name, report in EIGHT_BIT_REPORTS.items()},
    "title that ends with a C1 control": "\x1b]lFenster \N{BLACK STAR} \u071c\x9c".encode(),
    "title that ends with a C1 byte": "\x1b]lFenster \N{BLACK STAR} \u071c".encode() + b"\x9c",
    "C1 controls without a meaning": "\x80\x85\x9c\x99".encode(),
    "stray terminator": b"\x9c",
    "mouse with NaN in the middle": b"\x1b[<0;NaM;1M",
    "mouse with NaN at the end": b"\x1b[<0;1;NaNm",
    "cursor of a VT52": b"\x1bY!!",
    "identity of a VT52": b"\x1b/Z",
    "character set": b"\x1b(B",
    "character set of many signs": b'\x1b%/G\x1b$)"C',
    "single shift": b"\x1bNx",
    "SS3 with parameters": b"\x1bO1;99Z",
    "key beyond unicode": b"\x1b[99999999u",
    "surrogate": b"\x1b[55296;;55296u",
    "key released": b"\x1b[97;1:3u",
    "huge size": b"\x1b[48;100000;100000;1;1t",
    "no size": b"\x1b[48;0;0;0;0t",
    "end of a paste": b"\x1b[201~",
    "terminator": b"\x1b\\",
    "unknown key": b"\x1b[99~",
    "function key of an unknown kind": b"\x1b[24;80H",
}  # fmt: skip

KEYS = {
    b"a": "a", "é".encode(): "é", "中".encode(): "中", b"\x07": "\x07", b"\x1b[A": "\x1b[A", b"\x1bOP": "\x1bOP",
    b"\x1b[1;5C": "\x1b[1;5C", b"\x1b[15~": "\x1b[15~", b"\x1b[[A": "\x1b[[A", b"\x1b[Z": "\x1b[Z",
    b"\x1b[97;5u": "\x1b[97;5u", b"\x1b[97:65;2:1;65u": "\x1b[97;2;65u", b"\x1b[57358u": "\x1b[57358u",
    b"\x1b[13;2u": "\x1b[13;2u", b"\x1b[I": "\x1b[I", b"\x1b[O": "\x1b[O", b"\x1b[<0;10;20M": "\x1b[<0;10;20M",
    b"\x1b[<35;1200;-1m": "\x1b[<35;1200;-1m", b"\x1b[?2026;2$y": "\x1b[?2026;2$y", b"\x1b[?2048;1$y": "\x1b[?2048;1$y",
    b"\x1b[12;40R": "\x1b[12;40R", b"\x1b[48;24;80;480;800t": "\x1b[48;24;80;480;800t",
    b"\x1b[48;24;80;0;0t": "\x1b[48;24;80;24;80t", b"\x1b\r": "\x1b\r", b"\x1bb": "\x1bb", "\x1bé".encode(): "\x1bé",
    b"\x1b\x7f": "\x1b\x7f", b"\x9bA": "\x1b[A", "\x8fP".encode(): "\x1bOP", "\x9b<0;10;20M".encode(): "\x1b[<0;10;20M",
    b"\x9b15~": "\x1b[15~", b"\x9b[A": "\x1b[[A", "\x9b200~p\x9b201~".encode(): "p", b"\x9b200~p\x9b201~": "p",
}  # fmt: skip


def make_filter() -> InputFilter:
    from edgechat.tui import textual_private

    textual_private.register_alt_enter()
    return InputFilter(KeyTables(ANSI_SEQUENCES_KEYS.__contains__, FUNCTIONAL_KEYS.__contains__), DELAY_S)


def split(data: bytes, sizes: list[int]) -> list[bytes]:
    """Cut `data` into parts of these sizes, and the rest."""
    parts = []
    for size in sizes:
        parts.append(data[:size])
        data = data[size:]
    return [*parts, data]


def read(data: bytes, sizes: list[int] | None = None) -> str:
    """Return the tokens of `data`, which arrives in parts without delay, as one text."""
    filter_ = make_filter()
    tokens = [t for part in split(data, sizes or []) for t in filter_.feed(part, 0.0)]
    tokens += filter_.expire(LATER_S)
    return "".join(t.text if isinstance(t, Paste) else t for t in tokens if not isinstance(t, Background))


@pytest.mark.slow
@pytest.mark.parametrize("report", IGNORED.values(), ids=IGNORED.keys())
def test_unused_report_is_dropped_in_every_split(report: bytes) -> None:
    assert read(b"draft" + report + b" more") == "draft more"
    for position in range(min(len(report), 60)):
        assert read(b"draft" + report + b" more", [5 + position]) == "draft more"
    assert read(report, [1] * min(len(report), 60)) == ""


@pytest.mark.parametrize(("key", "token"), KEYS.items())
def test_keys_and_known_reports_pass(key: bytes, token: str) -> None:
    assert read(key) == token
    assert read(key, [1] * len(key)) == token
    assert read(b"x" + key + b"y") == f"x{token}y"


def test_escape_before_a_report_with_eight_bits_is_a_key() -> None:
    assert read(b"\x1b\x9b?62;1;4c") == "\x1b"
    assert read("\x1b\x9b?62;1;4c".encode(), [2]) == "\x1b"


def test_keys_typed_after_alt_are_no_report() -> None:
    for keys in (b"\x1b(B", b"\x1bY!!", b"\x1bNx"):
        filter_ = make_filter()
        tokens = [t for n, byte in enumerate(keys) for t in filter_.feed(bytes((byte,)), n * 0.03)]
        tokens += filter_.expire(LATER_S)
        assert "".join(map(str, tokens)) == keys.decode()
        assert make_filter().feed(keys[:2], 0.0) == []
    filter_ = make_filter()
    assert filter_.feed(b"\x1bY!", 0.0) == []
    assert filter_.expire(DELAY_S) == ["\x1bY", "!"]


def test_later_text_is_not_a_part_of_a_finished_string() -> None:
    for end in (b"\x9c", b"\xc2\x9c", b"\x1b\\", b"\x07"):
        assert make_filter().feed(b"\x1b]12;rgb:1/2/3" + end + b"hello", 0.0) == ["hello"]
        assert make_filter().feed(b"\x9d12;rgb:1/2/3" + end + b"hello", 0.0) == ["hello"]


@pytest.mark.parametrize(
    ("content", "is_light"),
    [
        ("rgb:1e1e/1e1e/2e2e", False), ("rgb:ffff/ffff/dddd", True), ("rgb:f/f/f", True), ("rgb:00/00/80", False),
        ("rgba:fdfd/f6f6/e3e3/ffff", True), ("rgb:7777/7777/7777", True), ("rgb:6f/6f/6f", False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("end", [b"\x07", b"\x1b\\", b"\xc2\x9c"])
def test_background_is_reported_in_every_split_however_late(content: str, *, is_light: bool, end: bytes) -> None:
    report = b"\x1b]11;" + content.encode() + end
    for position in range(2, len(report)):
        filter_ = make_filter()
        tokens = filter_.feed(b"a" + report[:position], 0.0)
        tokens += filter_.expire(0.09 if report[position - 1 : position] == b"\x1b" or position == 2 else 3.0)
        tokens += filter_.feed(report[position:] + b"b", 3.1)
        assert [token for token in tokens if isinstance(token, str)] == ["a", "b"], position
        [background] = [token for token in tokens if isinstance(token, Background)]
        assert background.is_light == is_light


@pytest.mark.parametrize(
    "content",
    [
        b"?", b"", b"rgb:", b"rgb:1/2", b"rgb:1/2/3/4/5", b"rgb:12345/1/1", b"rgb:g/0/0", b"rgb:-1/0/0", b"#ffffff",
        b"rgb:1/2/3" + b"0" * 100_000, b"rgb:1/2/3;x", b"white", b"rgb: 1/2/3",
        "rgb:\u0661/2/3".encode(), b"rgb:1/2/3\n",
    ],
)  # fmt: skip
def test_hostile_report_of_the_background_is_dropped(content: bytes) -> None:
    tokens = make_filter().feed(b"\x1b]11;" + content + b"\x07x", 0.0)
    assert not any(isinstance(token, Background) for token in tokens)
    assert str(tokens[-1]).endswith("x")


def test_unfinished_report_of_the_background_does_not_swallow_keys_for_ever() -> None:
    filter_ = make_filter()
    assert filter_.feed(b"\x1b]11;rgb:12/", 0.0) == []
    assert filter_.expire(9.0) == []
    assert filter_.feed(b"q", 9.0) == []  # no part of a report: the sequence is abandoned
    assert filter_.expire(9.0) == []
    assert filter_.feed(b"later", 9.1) == ["later"]


def test_every_key_that_textual_knows_passes() -> None:
    for sequence in ANSI_SEQUENCES_KEYS:
        if sequence not in {"\x1b\x1b", "\x9b"}:  # Escape twice; a control of eight bits
            assert read(sequence.encode()) == sequence, repr(sequence)


def test_text_of_an_input_method_arrives_character_by_character() -> None:
    text = "你好世界这是一个很长的句子"
    sequence = f"\x1b[0;;{':'.join(str(ord(c)) for c in text)}u"
    assert read(sequence.encode()) == "".join(f"\x1b[0;;{ord(c)}u" for c in text)
    keys = list(TerminalParser().feed(sequence.encode()))
    assert "".join(key.character or "" for key in keys if isinstance(key, events.Key)) == text


def test_bytes_that_are_not_utf8_are_replaced() -> None:
    assert read(b"caf\xe9 x") == "caf\ufffd x"
    assert read("é".encode(), [1]) == "é"
    filter_ = make_filter()
    assert filter_.feed(b"caf\xe9", 0.0) == ["caf"]
    assert filter_.expire(DELAY_S) == ["\ufffd"]


def test_paste_is_one_token_with_any_content() -> None:
    filter_ = make_filter()
    paste = b"\x1b[200~caf\xe9\n\x1b[A\x1b]11;x\x07 end\x00\x1b[201~"
    assert filter_.feed(paste + b"a", 0.0) == [Paste("caf\ufffd\n\x1b[A\x1b]11;x\x07 end"), "a"]
    for position in range(len(paste)):
        part_filter = make_filter()
        assert part_filter.feed(paste[:position], 0.0) == []
        assert part_filter.feed(paste[position:], 0.0) == [Paste("caf\ufffd\n\x1b[A\x1b]11;x\x07 end")]


def test_paste_without_end_is_delivered_after_a_pause() -> None:
    filter_ = make_filter()
    assert filter_.feed(b"\x1b[200~one", 0.0) == []
    assert filter_.feed(b" two", 1.5) == []
    assert filter_.deadline == 3.5
    assert filter_.expire(3.5) == [Paste("one two")]
    assert filter_.feed(b"three", 3.6) == ["three"]


def test_long_paste_is_delivered_in_parts_without_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgechat.tui.paste_reader._MAX_PASTE_BYTES", 1000)
    text = "".join(f"line {number} é\n" for number in range(1000))
    tokens = make_filter().feed(f"\x1b[200~{text}\x1b[201~x".encode(), 0.0)
    assert all(len(t.text) <= 1000 for t in tokens if isinstance(t, Paste))
    assert "".join(t.text for t in tokens if isinstance(t, Paste)).replace("\ufffd", "") == text.replace("é", "é")
    assert tokens[-1] == "x"


def test_escape_key_needs_a_pause_or_another_key() -> None:
    filter_ = make_filter()
    assert filter_.feed(b"\x1b", 0.0) == []
    assert filter_.expire(DELAY_S / 2) == []
    assert filter_.expire(DELAY_S) == ["\x1b"]
    assert make_filter().feed(b"\x1b\x11", 0.0) == ["\x1b", "\x11"]
    assert make_filter().feed(b"\x1b\x1b[A", 0.0) == ["\x1b", "\x1b[A"]


def test_alt_with_a_letter_that_starts_a_string_is_a_key_after_a_pause() -> None:
    filter_ = make_filter()
    assert filter_.feed(b"\x1bP", 0.0) == []
    assert filter_.expire(DELAY_S) == ["\x1bP"]
    assert filter_.feed(b"\x1b]", 1.0) == []
    assert filter_.expire(1.0 + DELAY_S) == []  # as Alt+], it would type the bracket
    assert filter_.feed(b"x", 2.0) == ["x"]


@pytest.mark.parametrize("start", [b"\x1b]12;", b"\x1bP>|x", b"\x1b_G", b"\x1b[?6", b"\x1b[<3;", b"\x1b[M#"])
def test_sequence_without_end_is_dropped_after_a_second(start: bytes) -> None:
    filter_ = make_filter()
    assert filter_.feed(start, 0.0) == []
    assert filter_.expire(1.0) == []
    assert filter_.feed(b"later", 1.0) == ["later"]


def test_sequence_that_waited_to_be_read_is_complete() -> None:
    """A busy program reads late; then the second half of a sequence is not a text."""
    filter_ = make_filter()
    assert filter_.feed(b"\x1b[", 0.0) == []
    assert filter_.feed(b"5~", LATER_S) == ["\x1b[5~"]


def test_control_characters_and_escape_sequences_end_a_string() -> None:
    assert read(b"\x1b]11;rgb\x03x") == "\x03x"
    assert read(b"\x1b]11;rgb\r") == "\r"
    assert read(b"\x1b]11;rgb\x1b[A") == "\x1b[A"
    assert read(b"\x1b]11;rgb\x7f") == "\x7f"


def test_terminal_parser_makes_events() -> None:
    parser = TerminalParser()
    data = (
        "ab\x1b[A\x1bx\x1b[200~p\x1b[q\x1b[201~\x1b[?2026;2$y\x1b[<0;3;4M\x1b[48;30;90;600;900t\x1b[<0;15;41M"
        "\x1b[48;30;90;0;0t\x1b[<0;3;4M\x1b[99;5u"
    )
    parsed_events = list(parser.feed(data.encode()))
    assert [e.key for e in parsed_events if isinstance(e, events.Key)] == ["a", "b", "up", "alt+x", "ctrl+c"]
    assert [e.text for e in parsed_events if isinstance(e, events.Paste)] == ["p\x1b[q"]
    assert any(isinstance(e, messages.TerminalSupportsSynchronizedOutput) for e in parsed_events)
    assert [(e.x, e.y) for e in parsed_events if isinstance(e, events.MouseDown)] == [(2, 3), (1, 2), (2, 3)]
    assert [tuple(e.size) for e in parsed_events if isinstance(e, events.Resize)] == [(90, 30), (90, 30)]


PARTS = st.one_of(
    st.binary(max_size=8), st.sampled_from([*IGNORED.values(), *KEYS]),
    st.sampled_from([b"\x9b", b"\x9d", b"\x9c", b"\xc2", b"\x1b(", b"\x1bY", b"\x1bN"]),
    st.sampled_from([b"\x1b", b"\x1b[", b"\x1b[<", b"\x1b[M", b"\x1b]", b"\x1bP", b"\x1b[200~", b"\x1bO", b"\xc3"]),
    st.from_regex(r"\x1b\[[<?>]?[0-9;:]{0,12}[@-~]", fullmatch=True).map(str.encode),
)  # fmt: skip
TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1)


@given(st.lists(PARTS, max_size=20).map(b"".join), st.lists(st.integers(0, 9), max_size=60), TEXT)
@example(b"\x1b[99999999u\x1b[48;0;0;0;0t\x1b[<0;1;1M", [], "a")
def test_any_input_in_any_split_leaves_later_text_unchanged(data: bytes, sizes: list[int], text: str) -> None:
    """Textual's parser takes every token without an exception, and a text that follows after a pause arrives."""
    parser = TerminalParser()
    filter_ = parser._filter
    for part in split(data, sizes):
        list(parser._parse(filter_.feed(part, 0.0)))
    list(parser._parse(filter_.expire(LATER_S)))
    assert filter_.deadline is None
    keys = [e for e in parser._parse(filter_.feed(text.encode(), LATER_S)) if isinstance(e, events.Key)]
    assert "".join(key.character or "" for key in keys) == text


@given(st.lists(PARTS, max_size=20).map(b"".join), st.lists(st.integers(0, 9), max_size=60))
def test_tokens_do_not_depend_on_the_split(data: bytes, sizes: list[int]) -> None:
    assert read(data, sizes) == read(data)
