"""Copy of the terminal's contents, used to write only the changed cells.

Textual writes every row of a changed region with all its spaces. Over a slow connection, that takes seconds per frame.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from rich.cells import cell_len
from rich.style import Style
from textual.strip import Strip

from edgechat.lazy_pattern import LazyPattern

_MAX_CACHED_STYLES: Final = 4096
_MIN_ERASED_COLUMNS: Final = 8
"""Minimum number of spaces that are replaced by an erase sequence and a cursor movement, because these are shorter."""
_MIN_SCROLLED_ROWS: Final = 3
_MIN_SCROLL_GAIN: Final = 120
"""Minimum number of characters that scrolling must save; the sequences for scrolling take about 25 bytes."""
# Terminals disagree about the width of emoji sequences: joiners, variation selectors, keycaps, skin tones and flags.
_UNSURE_CHARS: Final = "\u200d\ufe0f\u20e3" + "".join(map(chr, (*range(0x1F3FB, 0x1F400), *range(0x1F1E6, 0x1F200))))
_UNSURE_CHAR_SET: Final = frozenset(_UNSURE_CHARS)
_UNSURE_WIDTH: Final = LazyPattern(f"[^\x00-\u1fff]*[{_UNSURE_CHARS}][^\x00-\u1fff]*")
# Terminals that erase with the current background colour, by the start of $TERM.
_ERASES_WITH_COLOUR: Final = (
    "xterm", "kitty", "tmux", "alacritty", "foot", "wezterm", "ghostty", "rxvt", "linux", "st", "konsole", "vte",
    "contour", "mintty",
)  # fmt: skip


class Run(NamedTuple):
    """Text in one style."""

    sgr: str
    """Escape sequence of the style; "" for the terminal's default colours."""
    text: str


def erases_with_colour(environment: dict[str, str] | os._Environ[str] = os.environ) -> bool:
    """Return whether erased cells get the current background colour; GNU screen erases with the default colour."""
    if environment.get("TMUX"):
        return True
    return environment.get("TERM", "").startswith(_ERASES_WITH_COLOUR) and not environment.get("STY")


class ScreenImage:
    """Target rows of the screen, and the rows that the terminal shows. `flush` returns output that makes them equal."""

    def __init__(self, render: Callable[[Strip], str], *, erases_with_colour: bool) -> None:
        """`render` returns the output for a strip, with a reset after each styled segment."""
        self._render = render
        self._erases_with_colour = erases_with_colour
        self._styles: dict[Style, tuple[str, str]] = {}
        self._width = 0
        self._target: list[Strip] = []
        self._shown_rows: list[list[Run] | None] = []
        """Runs of each row that the terminal shows; None for a row whose content is unknown."""
        self._dirty: set[int] = set()

    @property
    def is_current(self) -> bool:
        """True if the terminal shows all target rows."""
        return not self._dirty

    def resize(self, width: int, height: int) -> None:
        """Set the size in cells. A changed size makes the content of the terminal unknown."""
        if (width, height) != (self._width, len(self._target)):
            self._width, self._target = width, [Strip.blank(width)] * height
            self.invalidate()

    def invalidate(self) -> None:
        """Make the next `flush` write every row again, for example because another program wrote to the terminal."""
        self._shown_rows = [None] * len(self._target)
        self._dirty = set(range(len(self._target)))

    def set_row(self, y: int, strips: Iterable[tuple[int, Strip]]) -> None:
        """Replace cells of row `y`: each pair is a column and the cells that begin there."""
        if not 0 <= y < len(self._target):
            return
        row = self._target[y]
        for x, strip in strips:
            end = x + strip.cell_length
            row = Strip.join([row.crop(0, x), strip, row.crop(end)]) if x or end < self._width else strip
        self._target[y] = row
        self._dirty.add(y)

    def flush(self, max_bytes: int | None = None, first_row: int = 0) -> str:
        """Return the output for the changed rows, nearest to `first_row` first.

        Rows after the first `max_bytes` bytes of output are left for the next call.
        """
        runs = {y: self._runs(self._target[y]) for y in self._dirty}
        changed = {y for y, new in runs.items() if new != self._shown_rows[y]}
        self._dirty = changed
        writer = _Writer(self._width, erases_with_colour=self._erases_with_colour)
        scroll = self._find_scroll(runs) if len(changed) >= _MIN_SCROLLED_ROWS else None
        if scroll is not None:
            self._scroll(writer, *scroll)
            bounds = range(min(scroll[0], scroll[0] + scroll[2]), max(scroll[1], scroll[1] + scroll[2]) + 1)
            self._dirty |= set(bounds)
            runs.update({y: self._runs(self._target[y]) for y in bounds if y not in runs})
        for y in sorted(self._dirty, key=lambda y: abs(y - first_row)):
            if max_bytes is not None and writer.n_bytes >= max_bytes:
                break
            if runs[y] != self._shown_rows[y]:
                writer.write_row(y, self._shown_rows[y], runs[y])
                self._shown_rows[y] = runs[y]
            self._dirty.discard(y)
        return writer.finish()

    def _runs(self, strip: Strip) -> list[Run]:
        """Return the runs of a row; spaces at the end of a segment have a style with only its background colour."""
        runs: list[Run] = []
        for text, style, _ in strip:
            sgr, blank_sgr = self._sgr(style) if style is not None else ("", "")
            visible = text.rstrip(" ") if sgr != blank_sgr else text
            for part_sgr, part in ((sgr, visible), (blank_sgr, text[len(visible) :])):
                if part and runs and runs[-1].sgr == part_sgr:
                    runs[-1] = Run(part_sgr, runs[-1].text + part)
                elif part:
                    runs.append(Run(part_sgr, part))
        return runs

    def _sgr(self, style: Style) -> tuple[str, str]:
        """Return the escape sequences of a style: for text, and for spaces."""
        from rich.segment import Segment

        sgr = self._styles.get(style)
        if sgr is None:
            if len(self._styles) >= _MAX_CACHED_STYLES:  # metadata makes styles differ at each screen position
                self._styles.clear()
            shows_on_spaces = style.underline or style.reverse or style.strike or style.overline or style.underline2
            plain = style.clear_meta_and_links()
            styles = (plain, plain if shows_on_spaces else Style(bgcolor=plain.bgcolor))
            first, second = (self._render(Strip([Segment("x", s)])).partition("x")[0] for s in styles)
            sgr = self._styles[style] = first, second
        return sgr

    # Scrolling

    def _find_scroll(self, runs: dict[int, list[Run]]) -> tuple[int, int, int] | None:
        """Find rows that moved; return (first row, last row, distance up, or down if negative), or None if few moved.

        The first and the last row are new positions.

        The last column is ignored, because a scrollbar may be there.
        """
        old_rows: dict[tuple[Run, ...], list[int]] = {}
        for y, old in enumerate(self._shown_rows):
            if old is not None:
                old_rows.setdefault(_without_last_column(old), []).append(y)
        moved_rows: dict[int, list[int]] = {}
        gains: Counter[int] = Counter()
        for y, new in runs.items():
            key = _without_last_column(new)
            weight = len("".join(run.text for run in key).strip())
            for old_y in old_rows.get(key, ()) if weight else ():
                gains[old_y - y] += weight
                moved_rows.setdefault(old_y - y, []).append(y)
        del gains[0]
        n_rows = max(gains, key=lambda n: (gains[n], -abs(n)), default=0)
        if not n_rows:
            return None
        first, last = min(moved_rows[n_rows]), max(moved_rows[n_rows])
        bounds = range(min(first, first + n_rows), max(last, last + n_rows) + 1)
        unmoved_rows = [old for y in bounds if (old := self._shown_rows[y]) is not None and old == runs.get(y, old)]
        loss = sum(len("".join(run.text for run in old).strip()) for old in unmoved_rows)
        return (first, last, n_rows) if gains[n_rows] - loss >= _MIN_SCROLL_GAIN else None

    def _scroll(self, writer: _Writer, first: int, last: int, n_rows: int) -> None:
        top, bottom = min(first, first + n_rows), max(last, last + n_rows)
        writer.scroll(top, bottom, n_rows)
        blank: list[list[Run] | None] = [[Run("", " " * self._width)]] * abs(n_rows)
        rows = self._shown_rows[top : bottom + 1]
        self._shown_rows[top : bottom + 1] = [*rows[n_rows:], *blank] if n_rows > 0 else [*blank, *rows[:n_rows]]


class _Writer:
    """Builds the text and escape sequences that update changed rows."""

    def __init__(self, width: int, *, erases_with_colour: bool) -> None:
        self._width = width
        self._erases_with_colour = erases_with_colour
        self._parts: list[str] = []
        self._current_sgr = ""
        self.n_bytes = 0

    def _add(self, text: str) -> None:
        self._parts.append(text)
        self.n_bytes += count_bytes(text)

    def _set_style(self, sgr: str) -> None:
        if sgr != self._current_sgr:
            self._add(sgr.replace("\x1b[", "\x1b[0;", 1) if sgr and self._current_sgr else sgr or "\x1b[m")
            self._current_sgr = sgr

    def finish(self) -> str:
        """Return the output, which ends in the default style."""
        self._set_style("")
        return "".join(self._parts)

    def scroll(self, top: int, bottom: int, n_rows: int) -> None:
        """Move rows `top` to `bottom` up by `n_rows`, or down if negative; the new rows are blank."""
        self._set_style("")
        start, step = (bottom, "\n") if n_rows > 0 else (top, "\x1bM")
        self._add(f"\x1b[{top + 1};{bottom + 1}r\x1b[{start + 1};1H{step * abs(n_rows)}\x1b[r")

    def write_row(self, y: int, old: Sequence[Run] | None, new: Sequence[Run]) -> None:
        """Write the columns between the first and the last difference of two rows."""
        column, runs, is_tail_equal = 0, list(new), False
        if old is not None:
            column, rest = _cut_prefix(list(old), runs)
            if all(_UNSURE_CHAR_SET.isdisjoint(run.text) for run in runs):
                is_tail_equal = _cut_suffix(rest, runs)
        is_positioned = False
        for number, (sgr, text) in enumerate(runs):
            width = cell_len(text)
            if not is_positioned:
                self._add(f"\x1b[{y + 1};{column + 1}H")
                is_positioned = True
            is_last = number == len(runs) - 1
            is_blank = width >= _MIN_ERASED_COLUMNS and text.isspace() and text.isascii()
            if is_blank and (not sgr or (self._erases_with_colour and _has_only_background(sgr))):
                self._set_style(sgr)
                self._add("\x1b[K" if is_last and not is_tail_equal else f"\x1b[{width}X")
                is_positioned = False
            else:
                self._set_style(sgr)
                is_positioned = self._write_text(text, y, column)
            column += width

    def _write_text(self, text: str, y: int, column: int) -> bool:
        """Write text; return whether the position of the cursor after it is certain."""
        if _UNSURE_CHAR_SET.isdisjoint(text):
            self._add(text)
            return True
        start = 0
        for match in _UNSURE_WIDTH.compiled.finditer(text):
            self._add(text[start : match.end()])
            start = match.end()
            if start < len(text):
                self._add(f"\x1b[{y + 1};{column + cell_len(text[:start]) + 1}H")
        self._add(text[start:])
        return start < len(text) or start == 0


def count_bytes(text: str) -> int:
    """Return the length of a text in UTF-8 bytes."""
    return len(text.encode(errors="replace"))


def _has_only_background(sgr: str) -> bool:
    return sgr.startswith(("\x1b[48;", "\x1b[4", "\x1b[10")) and not sgr.startswith(("\x1b[4m", "\x1b[4;"))


def _without_last_column(runs: Sequence[Run]) -> tuple[Run, ...]:
    sgr, text = runs[-1] if runs else Run("", "")
    return (*runs[:-1], Run(sgr, text[:-1])) if len(text) > 1 else tuple(runs[:-1])


def _cut_prefix(old: list[Run], new: list[Run]) -> tuple[int, list[Run]]:
    """Remove the common start of two rows from both; return its width in cells and the rest of `old`."""
    n_equal = next((i for i, (a, b) in enumerate(zip(old, new)) if a != b), min(len(old), len(new)))  # noqa: B905
    column = sum(cell_len(run.text) for run in new[:n_equal])
    del old[:n_equal], new[:n_equal]
    if old and new and old[0].sgr == new[0].sgr:
        n_chars = _count_common_chars(old[0].text, new[0].text)
        # A combining character belongs to the character before it.
        if not (old[0].text[n_chars : n_chars + 1] + new[0].text[n_chars : n_chars + 1]).isascii():
            n_chars = max(0, n_chars - 1)
        if new[0].text[:n_chars].isascii():
            column += n_chars
            _cut_first(old, n_chars)
            _cut_first(new, n_chars)
    return column, old


def _count_common_chars(a: str, b: str) -> int:
    return len(os.path.commonprefix([a, b]))  # noqa: RUF071  (compares characters, as wanted here)


def _cut_first(runs: list[Run], n_chars: int) -> None:
    sgr, text = runs[0]
    runs[:1] = [Run(sgr, text[n_chars:])] if n_chars < len(text) else []


def _cut_suffix(old: list[Run], new: list[Run]) -> bool:
    """Remove the common end of two rows from `new`; return whether there is one."""
    n_equal = 0
    for a, b in zip(reversed(old), reversed(new)):  # noqa: B905
        if a != b:
            break
        n_equal += 1
    if n_equal:
        del old[-n_equal:], new[-n_equal:]
    if not (old and new and old[-1].sgr == new[-1].sgr):
        return n_equal > 0
    n_chars = _count_common_chars(old[-1].text[::-1], new[-1].text[::-1])
    if not n_chars or not new[-1].text[-n_chars:].isascii():
        return n_equal > 0
    sgr, text = new[-1]
    new[-1:] = [Run(sgr, text[:-n_chars])] if n_chars < len(text) else []
    return True
