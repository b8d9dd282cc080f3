"""Painter of the screen: writes only changed cells, and no more output than a slow connection can transfer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from rich.cells import cell_len

from edgechat.tui.render.screen_image import ScreenImage, erases_with_colour

if TYPE_CHECKING:
    from textual.geometry import Offset, Size
    from textual.strip import Strip

_NOT_ASCII: Final = re.compile(r"[^\x00-\x7f]+")


def replace_non_ascii(text: str) -> str:
    """Replace each character outside of ASCII with one question mark for each of its columns."""
    return _NOT_ASCII.sub(lambda match: "?" * cell_len(match[0]), text)


class Painter:
    """Collects screen updates and returns the output for them."""

    def __init__(self, render: Callable[[Strip], str], get_budget: Callable[[], int | None]) -> None:
        """`render` returns the escape sequences and the text of a strip.

        `get_budget` returns the number of bytes that may be written now; None for no limit.
        """
        self.ascii_only = False
        """True if the terminal can show only ASCII: each column of another character becomes a question mark."""
        self._image = ScreenImage(render, erases_with_colour=erases_with_colour())
        self._get_budget = get_budget
        self._cursor: Offset | None = None
        self._is_cursor_late = False
        """True if the cursor has moved while nothing could be written."""

    def add(self, rows: Iterable[tuple[int, list[tuple[int, Strip]]]], size: Size) -> None:
        """Add changed rows of a screen of this size: row numbers, and pairs of a column and cells."""
        self._image.resize(size.width, size.height)
        for y, strips in rows:
            self._image.set_row(y, strips)

    @property
    def is_behind(self) -> bool:
        """True if the terminal does not show everything yet."""
        return self._is_cursor_late or not self._image.is_current

    def invalidate(self) -> None:
        """Write the whole screen with the next frames."""
        self._image.invalidate()

    def take(self, cursor: Offset) -> str:
        """Return the output of the next frame, the rows near the cursor first.

        It is empty if nothing has changed, or if nothing may be written now.
        """
        budget = self._get_budget()
        has_moved = cursor != self._cursor
        self._is_cursor_late = has_moved and budget == 0
        if budget == 0:
            return ""
        output = self._image.flush(budget, cursor.y)
        self._cursor = cursor
        if self.ascii_only and not output.isascii():
            output = replace_non_ascii(output)
        return output or ("\x1b[m" if has_moved else "")
