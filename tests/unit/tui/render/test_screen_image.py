"""The terminal shows what the image says, with little output."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from edgechat.tui.render.screen_image import ScreenImage, erases_with_colour

WIDTH, HEIGHT = 24, 9
STYLES = ["", "red", "bold red on blue", "on #102030", "underline", "reverse on #405060", "dim"]
TEXTS = ["a", "ab ", "   ", "          ", "日本", "x-", "é"]
ROWS = st.lists(st.tuples(st.sampled_from(TEXTS), st.sampled_from(STYLES)))
SCREENS = st.lists(ROWS, min_size=HEIGHT, max_size=HEIGHT)


class Emulator:
    """A terminal that reads the output of an image."""

    def __init__(self, *, has_colour_erase: bool = True) -> None:
        pyte: Any = importlib.import_module("pyte")  # pyte has no type hints
        console = Console(force_terminal=True, color_system="truecolor", width=WIDTH)
        self.image = ScreenImage(lambda strip: strip.render(console), erases_with_colour=has_colour_erase)
        self.image.resize(WIDTH, HEIGHT)
        self.screen: Any = pyte.Screen(WIDTH, HEIGHT)
        self._stream: Any = pyte.Stream(self.screen)
        self.render: Callable[[Strip], str] = lambda strip: strip.render(console)

    def show(self, rows: list[Strip], *, max_bytes: int | None = None) -> str:
        for y, row in enumerate(rows):
            self.image.set_row(y, [(0, row)])
        return self.flush(max_bytes)

    def flush(self, max_bytes: int | None = None) -> str:
        output = self.image.flush(max_bytes)
        self._stream.feed(output)
        return output

    def cells(self) -> list[list[object]]:
        return _cells(self.screen)

    def expected_cells(self, rows: list[Strip]) -> list[list[object]]:
        pyte: Any = importlib.import_module("pyte")
        screen = pyte.Screen(WIDTH, HEIGHT)
        stream = pyte.Stream(screen)
        for y, row in enumerate(rows):
            stream.feed(f"\x1b[{y + 1};1H{self.render(row)}")
        return _cells(screen)


def _cells(screen: Any) -> list[list[object]]:
    """Return what can be seen: the colour of a space is only its background."""
    result: list[list[object]] = []
    for y in range(HEIGHT):
        cells = [screen.buffer[y][x] for x in range(WIDTH)]
        result.append([
            (c.data, c.bg if c.data == " " and not (c.underscore or c.reverse) else c[1:]) for c in cells
        ])  # fmt: skip
    return result


def row(*parts: tuple[str, str]) -> Strip:
    segments = [Segment(text, Style.parse(style) if style else None) for text, style in parts]
    return Strip(segments).adjust_cell_length(WIDTH)


def words(first: int, n_rows: int = HEIGHT) -> list[Strip]:
    return [row((f"line {n} of a long text", "red on #101010")) for n in range(first, first + n_rows)]


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.lists(SCREENS, min_size=1, max_size=4), st.booleans(), st.sampled_from([None, 1, 60]))
def test_terminal_shows_any_sequence_of_screens(
    screens: list[list[list[tuple[str, str]]]], has_colour_erase: bool, max_bytes: int | None
) -> None:
    emulator = Emulator(has_colour_erase=has_colour_erase)
    for screen in screens:
        rows = [row(*parts) for parts in screen]
        emulator.show(rows, max_bytes=max_bytes)
        while not emulator.image.is_current:
            emulator.flush(max_bytes)
        assert emulator.cells() == emulator.expected_cells(rows)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, HEIGHT - 1)), min_size=2, max_size=6))
def test_terminal_shows_rows_that_scrolled(steps: list[tuple[int, int]]) -> None:
    emulator = Emulator()
    for first, other in steps:
        rows = words(first)
        rows[other] = row(("something else", "on #102030"))
        emulator.show(rows)
        assert emulator.cells() == emulator.expected_cells(rows)


def test_unchanged_cells_are_not_written() -> None:
    emulator = Emulator()
    emulator.show(words(1))
    assert emulator.show(words(1)) == ""
    changed = words(1)
    changed[3] = row(("line 4 of a LONG text", "red on #101010"))
    output = emulator.show(changed)
    assert "LONG" in output
    assert "line" not in output
    assert "text" not in output


@pytest.mark.parametrize("step", [1, 2, -1, -3])
def test_scrolled_rows_are_moved_by_the_terminal(step: int) -> None:
    emulator = Emulator()
    emulator.show(words(10))
    output = emulator.show(words(10 + step))
    assert output.count("of a long text") == abs(step)


def test_repeated_rows_move_by_the_smallest_step() -> None:
    emulator = Emulator()
    period = [*words(1, 3), *words(1, 3), *words(1, 3), *words(1, 3)]
    emulator.show(period[:HEIGHT])
    assert len(emulator.show(period[1 : HEIGHT + 1])) < 150


def test_rows_near_the_cursor_come_first() -> None:
    emulator = Emulator()
    for y, strip in enumerate(words(1)):
        emulator.image.set_row(y, [(0, strip)])
    assert "line 8 " in emulator.image.flush(1, first_row=7)
    assert not emulator.image.is_current


def test_output_is_limited_in_bytes() -> None:
    emulator = Emulator()
    for y in range(2):
        emulator.image.set_row(y, [(0, row(("日本" * 5, "")))])
    assert emulator.image.flush(30, first_row=0).count("日") == 5  # 10 characters, 30 bytes


def test_forgotten_screen_is_written_again() -> None:
    emulator = Emulator()
    output = emulator.show(words(1))
    emulator.image.invalidate()
    assert emulator.flush() == output


def test_text_after_emoji_of_unsure_width_has_an_explicit_position() -> None:
    """Some terminals show a family of four as one emoji of 2 columns, others as four of 8 columns together."""
    emulator = Emulator()
    family = row(("👨‍👩‍👧‍👦|after", ""))
    column = family.crop(0, WIDTH).text.index("|")
    output = emulator.show([family, *words(1)[1:]])
    assert "|after" in output.split("H")[2]
    assert column


def test_gnu_screen_does_not_erase_with_colour() -> None:
    assert erases_with_colour({"TERM": "xterm-256color"})
    assert erases_with_colour({"TERM": "screen-256color", "TMUX": "socket,1,0"})
    assert not erases_with_colour({"TERM": "screen-256color"})
    assert not erases_with_colour({"TERM": "xterm", "STY": "1.pts-0"})
    assert not erases_with_colour({})
