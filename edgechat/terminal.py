"""Escape untrusted text for terminals: make control and invisible characters visible. Check the state of terminals."""

from __future__ import annotations

import errno
import os
import re
import sys
import unicodedata
from collections.abc import Iterator
from typing import Final, TextIO

from edgechat.lazy_pattern import LazyPattern

_REPLACEMENT: Final = "\ufffd"
_BLACK_FLAG: Final = "\U0001f3f4"
_TAGS: Final = "\U000e0020-\U000e007e"
"""Copies of ASCII that are invisible; after a black flag they name a region, such as Scotland."""

# Controls, and characters that are invisible or that change the order of the text around them, so that a harmful
# command could look harmless: Unicode's default-ignorable characters except combining marks.
_CONTROLS: Final = "\x00-\x08\x0b-\x1f\x7f-\x9f"
_JOINERS: Final = "\u200b-\u200d"
"""Zero-width space, non-joiner and joiner: part of emoji and of the spelling of many scripts, for example Persian."""
_INVISIBLE: Final = (
    "\xad\u061c\u115f\u1160\u17b4\u17b5\u180e\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff0-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
)
_NEVER_SHOWN: Final = "\ud800-\udfff\U000e0000-\U000e00ff\U000e01f0-\U000e0fff"
"""Halves of surrogate pairs, and the block of tags."""
_SPECIAL: Final = LazyPattern(f"[{_CONTROLS}{_JOINERS}{_INVISIBLE}{_NEVER_SHOWN}]")
_JOINER_RUN: Final = LazyPattern(f"[{_JOINERS}]+")
_NEVER_SHOWN_RUN: Final = LazyPattern(f"[{_NEVER_SHOWN}]+")
_FLAG: Final = LazyPattern(f"({_BLACK_FLAG}[{_TAGS}]{{1,6}}\U000e007f)")
# End of a part of a text whose meaning depends on the next part.
_OPEN_END: Final = LazyPattern(f"(?:[\r{_JOINERS}]|{_BLACK_FLAG}[{_TAGS}]{{0,6}})\\Z")
_FIRST_JOINING_CHAR: Final = "\u0590"
"""The scripts before this character (Latin, Greek, Cyrillic, Armenian) need no joiners."""
_SOFT_HYPHEN: Final = 0xAD
_LAST_BMP_CODE: Final = 0xFFFF

_CONTROL_ESCAPES: Final[dict[int, int | str | None]] = {
    **{code: 0x2400 + code for code in range(0x20) if code not in (0x09, 0x0A)},
    0x7F: 0x2421,
    **dict.fromkeys(range(0x80, 0xA0), _REPLACEMENT),  # on some terminals 0x9B alone starts an escape sequence
}
_OUTPUT_ESCAPES: Final[dict[int, int | str | None]] = {
    **_CONTROL_ESCAPES,
    **dict.fromkeys(
        (0x61C, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x180E, 0x200E, 0x200F, 0x3164, 0xFEFF, 0xFFA0,
         *range(0x2028, 0x202F), *range(0x2060, 0x2070), *range(0xFFF0, 0xFFFC), *range(0x1BCA0, 0x1BCA4),
         *range(0x1D173, 0x1D17B)), _REPLACEMENT,
    ),
    _SOFT_HYPHEN: None,
}  # fmt: skip
# Messages of the user keep their invisible characters, except those that reverse the direction of text.
_INPUT_ESCAPES: Final[dict[int, int | str | None]] = {
    **_CONTROL_ESCAPES,
    **dict.fromkeys(range(0x202A, 0x202F), _REPLACEMENT),
    **dict.fromkeys((0x85, 0x2028, 0x2029), "\n"),
}

# Maximum number of combining marks on a character. Living scripts use up to nine (Tibetan). Without a limit, marks can
# cover other lines.
_MAX_MARKS: Final = 10
# Ranges of common characters that are not combining marks. Only runs of other characters can contain too many marks.
_NO_MARKS: Final = (
    "\x00-\u02ff\u2000-\u20cf\u2100-\u2ce0\u3040-\u3098\u309b-\ua66e\uac00-\ufb1d\ufe30-\uffff\U0001f000-\U000e00ff"
)
_POSSIBLE_MARKS: Final = LazyPattern(f"[^{_NO_MARKS}]{{{_MAX_MARKS + 1},}}")


class TextEscaper:
    """Makes control characters and invisible characters visible in a text that arrives in parts.

    The result does not depend on the division into parts. C0 controls become their Unicode pictures (U+2400...) and
    other characters U+FFFD; soft hyphens are dropped, and so are the combining marks beyond `_MAX_MARKS`.
    """

    def __init__(self, *, is_input: bool = False) -> None:
        """If `is_input`, the text becomes a message of the user, whose invisible characters are kept.

        In this case, only controls, tags and characters that override the direction are replaced, and other line ends
        become newlines.
        """
        self._is_input = is_input
        self._pending = ""
        self._last_char = ""
        self._n_marks = 0
        """Number of combining marks at the end of the text so far."""

    def feed(self, text: str) -> str:
        """Return the next part of the text; its end can be held back until the part after it is known."""
        text = self._pending + text
        end = _OPEN_END.compiled.search(text)
        self._pending = "" if end is None else end[0]
        return self._escape(text[: end.start()] if end is not None else text, self._pending)

    def finish(self) -> str:
        """Return the remaining text that `feed` held back."""
        text, self._pending = self._pending, ""
        return self._escape(text, "")

    def _escape(self, text: str, next_text: str) -> str:
        if not text:
            return ""
        escaped = text
        if _SPECIAL.compiled.search(text):
            if not self._is_input:
                escaped = _JOINER_RUN.compiled.sub(lambda match: self._escape_joiners(match, next_text), text)
            parts = _FLAG.compiled.split(escaped.replace("\r\n", "\n"))
            parts[::2] = map(self._escape_special, parts[::2])
            escaped = "".join(parts)
        if not escaped.isascii():
            escaped = self._limit_marks(escaped)
        elif escaped:
            self._n_marks = 0
        self._last_char = text[-1]
        return escaped

    def _escape_joiners(self, run: re.Match[str], next_text: str) -> str:
        """Keep the first joiner after, and the last joiner before, a character that joins."""
        text = run.string
        is_first_kept = _joins(text[run.start() - 1] if run.start() else self._last_char)
        is_last_kept = _joins(text[run.end() : run.end() + 1] or next_text[:1])
        if len(run[0]) == 1:
            return run[0] if is_first_kept or is_last_kept else _REPLACEMENT
        first = run[0][0] if is_first_kept else _REPLACEMENT
        last = run[0][-1] if is_last_kept else _REPLACEMENT
        return first + _REPLACEMENT * (len(run[0]) - 2) + last

    def _escape_special(self, text: str) -> str:
        text = _NEVER_SHOWN_RUN.compiled.sub(lambda match: _REPLACEMENT * len(match[0]), text)
        return text.translate(_INPUT_ESCAPES if self._is_input else _OUTPUT_ESCAPES)

    def _limit_marks(self, text: str) -> str:
        n_leading = next((i for i, char in enumerate(text) if not _is_mark(char)), len(text))
        start, self._n_marks = self._n_marks, 0
        leading = _limit_run(text[:n_leading], start)
        rest = _POSSIBLE_MARKS.compiled.sub(
            lambda match: "".join(_limit_run(marks, 0) + char for marks, char in _split_runs(match[0])),
            text[n_leading:],
        )
        n_trailing = next((i for i, char in enumerate(reversed(text)) if not _is_mark(char)), len(text))
        self._n_marks = n_trailing + (start if n_trailing == len(text) else 0)
        return leading + rest


def escape_controls(text: str) -> str:
    """Escape a complete text, so that it is safe on a terminal; see `TextEscaper`. Tabs and newlines are kept."""
    escaper = TextEscaper()
    return escaper.feed(text) + escaper.finish()


def escape_line(text: str) -> str:
    """Escape a complete text that must stay on one line, such as the name of a file; see `TextEscaper`.

    Newlines and tabs become their Unicode pictures (U+240A, U+2409), as other controls do.
    """
    return escape_controls(text.translate({ord("\n"): "\u240a", ord("\t"): "\u2409"}))


def escape_input(text: str) -> str:
    """Escape control characters in text that is pasted, or loaded from a file, into the input for messages."""
    escaper = TextEscaper(is_input=True)
    return escaper.feed(text) + escaper.finish()


def escape_json(text: str, *, ascii_only: bool = False) -> str:
    r"""Replace characters of JSON that are special on a terminal with `\uXXXX`, which means the same in JSON.

    With `ascii_only`, replace all characters outside of ASCII.
    """
    pattern = r"[^\x00-\x7e]+" if ascii_only else f"{_SPECIAL.source}+"
    text = re.sub(pattern, lambda match: "".join(map(_escape_json_char, match[0])), text)
    return _POSSIBLE_MARKS.compiled.sub(
        lambda match: "".join(
            (marks if len(marks) <= _MAX_MARKS else "".join(map(_escape_json_char, marks))) + char
            for marks, char in _split_runs(match[0])
        ),
        text,
    )


def _escape_json_char(char: str) -> str:
    code = ord(char)
    if char in "\r\n":
        return char
    if code <= _LAST_BMP_CODE:
        return f"\\u{code:04x}"
    code -= _LAST_BMP_CODE + 1
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"


def _joins(char: str) -> bool:
    """Return whether a joiner next to `char` is part of an emoji, or of the spelling in scripts that need joiners."""
    return char >= _FIRST_JOINING_CHAR and unicodedata.category(char) not in ("Cf", "Cc", "Cn", "Zs", "Zl", "Zp")


def _is_mark(char: str) -> bool:
    return char > "\u02ff" and unicodedata.category(char).startswith("M")


def _split_runs(text: str) -> Iterator[tuple[str, str]]:
    """Split `text` into pairs of a run of combining marks, often empty, and the character after it, "" at the end."""
    start = 0
    for end, char in enumerate(text):
        if not _is_mark(char):
            yield text[start:end], char
            start = end + 1
    yield text[start:], ""


def _limit_run(marks: str, n_before: int) -> str:
    """Shorten a run of marks that continues a run of `n_before` marks; U+FFFD replaces the excess marks."""
    n_kept = max(0, _MAX_MARKS - n_before)
    rest = _REPLACEMENT if n_before <= _MAX_MARKS < n_before + len(marks) else ""
    return marks[:n_kept] + rest


def supports_escapes(stream: TextIO) -> bool:
    """Return whether `stream` is a terminal that interprets escape sequences; with TERM=dumb, it prints them."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def is_gone(stream: TextIO) -> bool:
    """Return whether `stream` is a terminal that was closed, so that reading and writing fail."""
    if sys.platform == "win32":
        return False
    import termios

    try:
        termios.tcgetattr(stream.fileno())
    except termios.error as error:
        return bool(error.args[0] == errno.EIO)
    except (OSError, ValueError):
        return False
    return False


def discard_broken_output() -> None:
    """Redirect standard output and standard error to the null device if they can no longer be written.

    Otherwise the interpreter reports an error and changes the exit code when it closes them.
    """
    for stream in (sys.stdout, sys.stderr):
        if not stream.closed and not _can_flush(stream):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _can_flush(stream: TextIO) -> bool:
    try:
        stream.flush()
    except OSError:
        return False
    return True
