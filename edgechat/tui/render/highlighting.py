"""Syntax highlighting: of a complete block at once, and of a growing block in updates of bounded cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from rich.segment import Segment

if TYPE_CHECKING:
    from types import GeneratorType

    from pygments.lexer import Lexer

    from edgechat.tui.render.palette import Palette

MAX_SYNC_CHARS: Final = 4000
"""Maximum length of code that is highlighted on the event loop, in 10 to 40 ms. Longer code would delay key presses."""
_LOOK_BACK_CHARS: Final = 512
"""Number of characters at the end of a growing block that each update highlights again.

A token of several lines, such as a comment, is only recognised when its end has arrived.
"""
_TAB_COLUMNS: Final = 4
_START: Final = ("root",)
"""State stack of a lexer at the start of a text."""

Line = list[Segment]


def expand_tabs(line: str) -> str:
    """Replace tabs with spaces, with tab stops every 4 columns."""
    return line.expandtabs(_TAB_COLUMNS) if "\t" in line else line


def make_plain_lines(lines: Sequence[str], palette: Palette) -> list[Line]:
    """Return lines of code without syntax colours."""
    return [[Segment(expand_tabs(line), palette.code)] for line in lines]


def find_lexer(language: str) -> Lexer | None:
    """Return the lexer for the info string of a code block; None if the language is unknown."""
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    try:
        lexer: Lexer = get_lexer_by_name(language.split(maxsplit=1)[0], stripnl=False)
    except (ClassNotFound, IndexError):
        return None
    return lexer


def highlight(lines: Sequence[str], source: str, language: str, palette: Palette) -> list[Line]:
    """Highlight all lines of a complete block; `source` is their text. Thread-safe; slow for long code."""
    lexer = find_lexer(language)
    plain_lines = make_plain_lines(lines, palette)
    if lexer is None:
        return plain_lines
    return _colour(plain_lines, lexer.get_tokens(expand_tabs(source)), palette)


def _colour(plain_lines: list[Line], tokens: Any, palette: Palette) -> list[Line]:
    lines: list[Line] = [[]]
    for token_type, text in tokens:
        style = palette.code_style(token_type)
        first_line, *next_lines = text.split("\n")
        lines[-1].append(Segment(first_line, style))
        lines += [[Segment(part, style)] for part in next_lines]
    lines = lines[: len(plain_lines)]
    # Some lexers drop characters. In this case, show the code without colours.
    if ["".join(s.text for s in line) for line in lines] != [line[0].text for line in plain_lines]:
        return plain_lines
    return lines


class GrowingHighlighter:
    """Highlights a code block while it grows.

    An update reads only the end of the block, from the start of a line at which no token is open, and restores the
    state that the lexer had there. The colours may differ from those of `highlight` until the block is complete, for
    example inside a comment of more than 512 characters.
    """

    def __init__(self, lexer: Lexer, palette: Palette) -> None:
        self._lexer = lexer
        self._palette = palette
        self._first_line = 0
        """Number of the line at which the next update starts."""
        self._stack: tuple[str, ...] = _START
        """State of the lexer at that line."""

    def update(self, lines: Sequence[str], partial_line: str) -> tuple[int, list[Line]]:
        """Highlight new lines; return the number of the first line that may have changed, and all lines from it.

        `lines` are all complete lines of the block. An empty `partial_line` does not count as a line.
        """
        first_line = self._first_line
        texts = [*lines[first_line:], *([partial_line] if partial_line else [])]
        plain_lines = make_plain_lines(texts, self._palette)
        n_skipped = self._skip_old_lines([line[0].text for line in plain_lines])
        window = plain_lines[n_skipped:]
        text = "".join(f"{line[0].text}\n" for line in window)
        if not text:
            return first_line, plain_lines
        try:
            tokens, restarts = self._read_tokens(text)
        except Exception:  # noqa: BLE001  (if a lexer fails on incomplete code, the code has no colours)
            return first_line, plain_lines
        coloured_lines = _colour(window, tokens, self._palette)
        for position, stack in restarts:
            if position <= len(text) - _LOOK_BACK_CHARS:
                self._first_line = first_line + n_skipped + text.count("\n", 0, position)
                self._stack = stack
        return first_line, plain_lines[:n_skipped] + coloured_lines

    def _skip_old_lines(self, texts: list[str]) -> int:
        """Return the number of leading lines to leave without colours, so that the lexer reads only a bounded length.

        If lines are skipped, the lexer restarts in its initial state. This happens when a long block is shown for the
        first time and when a token is very long.
        """
        n_chars = sum(map(len, texts))
        n_skipped = 0
        if n_chars > MAX_SYNC_CHARS:
            while n_chars > MAX_SYNC_CHARS // 2 and n_skipped < len(texts) - 1:
                n_chars -= len(texts[n_skipped])
                n_skipped += 1
            self._first_line += n_skipped
            self._stack = _START
        return n_skipped

    def _read_tokens(self, text: str) -> tuple[list[tuple[Any, str]], list[tuple[int, tuple[str, ...]]]]:
        """Return the tokens of `text`, and the starts of lines where no token is open, each with the lexer's state."""
        tokens: list[tuple[Any, str]] = []
        restarts: list[tuple[int, tuple[str, ...]]] = []
        generator: Any = self._lexer.get_tokens_unprocessed(*([text] if self._stack == _START else [text, self._stack]))
        for position, token_type, value in generator:
            tokens.append((token_type, value))
            if position and text[position - 1] == "\n":
                stack = _find_stack(generator, position)
                if stack is not None:
                    restarts.append((position, stack))
        return tokens, restarts


def _find_stack(generator: GeneratorType[Any, Any, Any], position: int) -> tuple[str, ...] | None:
    """Return the state stack of a lexer before the token at `position`; None if it is not the first token of a match.

    `RegexLexer` has no interface for its state, so this reads the local variables of its generator (checked against
    Pygments 2.20). Lexers that process the tokens of a `RegexLexer` hide these variables, and other lexers have no
    state: for both, return the initial state.
    """
    frame = getattr(generator, "gi_frame", None)
    variables = frame.f_locals if frame is not None else {}
    if "statestack" not in variables or "pos" not in variables:
        return _START
    return tuple(variables["statestack"]) if variables["pos"] == position else None
