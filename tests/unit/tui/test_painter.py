"""What the painter writes when the terminal is behind."""

from __future__ import annotations

from textual.geometry import Offset, Size
from textual.strip import Strip

from edgechat.tui.painter import Painter


def test_cursor_move_is_written_as_soon_as_the_terminal_takes_output() -> None:
    budgets: list[int | None] = [None, 0, None]
    painter = Painter(lambda strip: strip.text, lambda: budgets.pop(0))
    painter.add([(0, [(0, Strip.blank(10))])], Size(10, 1))
    painter.take(Offset(1, 0))
    assert not painter.is_behind
    assert painter.take(Offset(2, 0)) == ""
    assert painter.is_behind
    assert painter.take(Offset(2, 0)) != ""
    assert not painter.is_behind
