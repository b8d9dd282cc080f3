"""Pieces of a message as rows of cells: laid out when they come near the screen, forgotten when they are far away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual.strip import Strip

from edgechat.tui.render.markdown_blocks import MarkdownBlock

if TYPE_CHECKING:
    from rich.console import Console

    from edgechat.tui.render.palette import Palette

# Of code: colouring more than this is noticed, and done beside the screen.
SYNC_HIGHLIGHT_CHARS: Final = 4000
_TAB: Final = 4


class LayoutBlock:
    """Some rows. `lay_out` makes them for a width; before that there is only a guess of how many they will be."""

    gap = False
    """True if there is an empty row before it."""
    needs_highlighting = False
    """True if it is complete, shown plain, and long enough to be coloured beside the screen."""

    def __init__(self) -> None:
        self.layout_width = 0
        """The width it is laid out for; 0 if it is not."""
        self.is_stale = False
        """True if what it shows has changed since."""
        self.first_changed_row = 0
        """The first row that was not the same before it was laid out the last time."""
        self._rows: list[Strip] = []
        self._n_rows = 0
        self._measured_width = 0

    def height(self, width: int) -> int:
        """Rows at this width: as it was when it was laid out, or else a guess."""
        return self._n_rows if self._measured_width == width else max(1, self.estimate_height(width))

    def estimate_height(self, width: int) -> int:  # noqa: ARG002
        """How many rows it may be."""
        return 1

    def lay_out(self, width: int, palette: Palette) -> None:
        """Make the rows."""
        self._store_rows(self.render(width, palette), width)

    def _store_rows(self, rows: list[Strip], width: int) -> None:
        pairs = enumerate(zip(self._rows, rows))  # noqa: B905  (as far as both go)
        self.first_changed_row = next((i for i, (a, b) in pairs if a != b), min(len(self._rows), len(rows)))
        self._rows, self._n_rows = rows, len(rows)
        self.layout_width = self._measured_width = width
        self.is_stale = False

    def render(self, width: int, palette: Palette) -> list[Strip]:
        """The rows at this width."""
        raise NotImplementedError

    def discard_rows(self) -> None:
        """Keep only how high it is."""
        self._rows = []
        self.layout_width = 0

    def row(self, number: int) -> Strip:
        """One of its rows; empty beyond the last."""
        return self._rows[number] if number < len(self._rows) else Strip.blank(0)


class PlainTextLayout(LayoutBlock):
    """Plain text in one style, wrapped at words."""

    def __init__(self, text: str, style: str = "", *, gap: bool = False) -> None:
        super().__init__()
        self.text = text
        self.style = style
        self.gap = gap

    def estimate_height(self, width: int) -> int:
        """By its characters."""
        return estimate_rows(self.text, width)

    def render(self, width: int, palette: Palette) -> list[Strip]:
        """Wrapped."""
        style = getattr(palette, self.style) if self.style else Style.null()
        return wrap_text(Text(self.text, style=style, end=""), width, palette.console)


class MarkdownLayout(LayoutBlock):
    """A block of Markdown, with the line at its end that is not complete yet."""

    def __init__(self, block: MarkdownBlock, partial: str = "") -> None:
        super().__init__()
        self.block = block
        self.partial = partial
        self.gap = block.gap
        self._shown = (-1, True, "")

    def set_partial(self, partial: str) -> None:
        """Take what the block has become; it is laid out again if that is more."""
        now = (self.block.n_chars, self.block.is_open, partial)
        if now != self._shown:
            self._shown, self.partial, self.is_stale = now, partial, True


class ProseLayout(MarkdownLayout):
    """A block that is no code."""

    def estimate_height(self, width: int) -> int:
        """By its characters."""
        return estimate_rows(self.block.source, width)

    def render(self, width: int, palette: Palette) -> list[Strip]:
        """As Markdown says, with the indent it had in the whole."""
        source = "\n".join([*self.block.lines, self.partial] if self.partial else self.block.lines)
        indent = min(self.block.indent, width // 2)
        rows = markdown_rows(source, max(8, width - indent), palette)
        return [Strip([Segment(" " * indent), *row]) for row in rows] if indent else rows


class CodeLayout(MarkdownLayout):
    """What stands between fences: plain while it grows, coloured once it is complete."""

    def __init__(self, block: MarkdownBlock) -> None:
        super().__init__(block)
        self._n_lines = 0
        self._n_complete = 0
        self.is_highlighted = False

    def estimate_height(self, width: int) -> int:
        """By its characters."""
        return sum(1 + len(line) // max(1, width - 2) for line in self.block.lines) + 1

    @property
    def needs_highlighting(self) -> bool:  # type: ignore[override]
        """See Piece."""
        return not (self.is_highlighted or self.block.is_open) and bool(self.block.language) and self.layout_width > 0

    def lay_out(self, width: int, palette: Palette) -> None:
        """Only lines that are new are looked at, while it grows."""
        block = self.block
        if not block.is_open and block.language and block.n_chars <= SYNC_HIGHLIGHT_CHARS:
            self.set_highlighted_rows(highlight_code(block, width, palette), width)
            return
        is_on = self.layout_width == width and not self.is_highlighted
        if not is_on:
            self._rows, self._n_lines, self._n_complete, self.is_highlighted = [], 0, 0, False
            if block.language:
                self._rows.append(_caption(block, width, palette))
                self._n_complete = 1
        first_new = self._n_complete if is_on else 0
        del self._rows[self._n_complete :]
        for line in block.lines[self._n_lines :]:
            self._rows += wrap_code_line([Segment(expand_tabs(line), palette.code)], width, palette.code)
        self._n_lines, self._n_complete = len(block.lines), len(self._rows)
        if self.partial:
            self._rows += wrap_code_line([Segment(expand_tabs(self.partial), palette.code)], width, palette.code)
        self._store_rows(self._rows, width)
        self.first_changed_row = first_new

    def set_highlighted_rows(self, rows: list[Strip], width: int) -> None:
        """Rows that were made elsewhere, with `coloured`."""
        self._store_rows(rows, width)
        self.is_highlighted = True

    def discard_rows(self) -> None:
        """Keep only how high it is."""
        super().discard_rows()
        self.is_highlighted = False
        self._n_lines = self._n_complete = 0


def highlight_code(block: MarkdownBlock, width: int, palette: Palette) -> list[Strip]:
    """The rows of a block of code in colours; as many as without. Slow for long ones: may run in a thread."""
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound
    from rich.syntax import Syntax

    caption = [_caption(block, width, palette)] if block.language else []
    plain = [[Segment(expand_tabs(line), palette.code)] for line in block.lines]
    try:
        lexer = get_lexer_by_name(block.language.split()[0], stripnl=False)
    except ClassNotFound:
        return caption + [row for line in plain for row in wrap_code_line(line, width, palette.code)]
    theme = Syntax.get_theme(palette.code_theme)
    lines: list[list[Segment]] = [[]]
    for kind, text in lexer.get_tokens(expand_tabs(block.source)):
        style = _on(theme, kind, palette)
        first, *more = text.split("\n")
        lines[-1].append(Segment(first, style))
        lines += [[Segment(part, style)] for part in more]
    lines = lines[: len(plain)]
    if ["".join(s.text for s in line) for line in lines] != [line[0].text for line in plain]:  # a lexer that loses some
        lines = plain
    return caption + [row for line in lines for row in wrap_code_line(line, width, palette.code)]


def _on(theme: Any, kind: Any, palette: Palette) -> Style:
    """A token's own style on our background."""
    found = theme.get_style_for_token(kind)
    return Style(color=found.color, bold=found.bold, italic=found.italic) + palette.code


def _caption(block: MarkdownBlock, width: int, palette: Palette) -> Strip:
    words = f" {block.language}"[:width]
    return Strip([Segment(words + " " * (width - len(words)), palette.code + palette.muted)], width)


def expand_tabs(line: str) -> str:
    """Tabs as spaces."""
    return line.expandtabs(_TAB) if "\t" in line else line


def wrap_code_line(segments: Sequence[Segment], width: int, background: Style) -> list[Strip]:
    """A line of code cut at the width, with a margin on both sides, on its background to the end."""
    inner = max(1, width - 2)
    line = Strip([s for s in segments if s.text])
    margin = Segment(" ", background)
    length = line.cell_length
    rows = []
    for start in range(0, max(1, length), inner):
        part = line if length <= inner else line.crop(start, start + inner)
        padding = Segment(" " * (inner - part.cell_length), background)
        rows.append(Strip([margin, *part, padding, margin], width))
    return rows


def estimate_rows(text: str, width: int) -> int:
    """About how many rows a text takes."""
    return 1 + text.count("\n") + len(text) // max(1, width)


def wrap_text(text: Text, width: int, console: Console) -> list[Strip]:
    """Rows of a text, cut at words."""
    options = console.options.update(width=max(1, width), height=None)
    return [Strip(line) for line in console.render_lines(text, options, pad=False)]


def markdown_rows(source: str, width: int, palette: Palette) -> list[Strip]:
    """Rows of a piece of Markdown; of what the renderer chokes on, the source."""
    try:
        from edgechat.tui.render.markdown_renderer import render_markdown

        rows = render_markdown(source, width, palette)
    except RecursionError:  # quotes in quotes in quotes
        return wrap_text(Text(source), width, palette.console)
    return rows or wrap_text(Text(source), width, palette.console)
