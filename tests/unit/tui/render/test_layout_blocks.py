"""Rows of prose and code: width, marks of wrapped code, colours; highlighting keeps every line of the code."""

from __future__ import annotations

import pytest
from pygments.lexers import get_all_lexers
from textual.color import Color
from textual.theme import BUILTIN_THEMES

from edgechat.tui.render.code_layout import CodeLayout, continues_line, highlight_code
from edgechat.tui.render.entries import TranscriptEntry
from edgechat.tui.render.markdown_blocks import MarkdownSplitter, split_markdown
from edgechat.tui.render.palette import Palette
from tests.unit.tui.layouts import PALETTE, make_entry, rendered_rows


@pytest.mark.slow
def test_highlighting_keeps_all_lines_with_every_lexer() -> None:
    source = "$ pip install x\n>>> y = 1\n\n- z: 1\tend"
    for _, names, _, _ in get_all_lexers():
        for name in names[:1]:
            [block] = split_markdown(f"```{name}\n{source}\n```\n")
            rows = [row.text.strip() for row in highlight_code(block, 60, PALETTE)][1:]
            assert rows == [line.expandtabs(4).strip() for line in source.split("\n")], name


def test_prose_is_at_most_100_columns_wide_but_code_and_tables_are_not() -> None:
    words, code, cells = "word " * 100, "x = " + "1 + " * 40, "a long cell with words " * 4
    text = f"{words}\n\n```py\n{code}\n```\n\n| a | b |\n|---|---|\n| {cells} | {cells} |\n"
    rows = rendered_rows(make_entry(text), 190)
    assert max(len(row.rstrip()) for row in rows if row.startswith("word")) <= 100
    assert any(len(row.rstrip()) > 100 for row in rows if "1 + 1" in row)
    assert any(len(row.rstrip()) > 100 for row in rows if "a long cell" in row)
    for entry in (make_entry(words, "user"), TranscriptEntry("note", words)):
        assert max(map(len, rendered_rows(entry, 190))) <= 100
    assert max(len(row) for row in rendered_rows(make_entry(words), 60)) <= 60


@pytest.mark.parametrize(("is_ascii", "mark"), [(False, "↪"), (True, "\\")])
def test_rows_that_continue_a_line_of_code_are_marked(*, is_ascii: bool, mark: str) -> None:
    variables = BUILTIN_THEMES["textual-dark"].to_color_system().generate()
    palette = Palette(variables, dark=True, ansi=False, ascii_only=is_ascii)
    line = "merge_sort(values[:middle], values[middle:])"
    for is_open in (True, False):
        source = f"```py\n{line}\nshort\n" + ("" if is_open else "```\n")
        splitter = MarkdownSplitter(source)
        layout = CodeLayout(splitter.blocks[0])
        layout.lay_out(22, palette)
        rows = [layout.row(i) for i in range(layout.height(22))]
        texts = [row.text for row in rows if row.text[1:5] in line or row.text.startswith(mark)]
        assert [text[0] for text in texts] == [" ", mark, mark]
        assert "".join(text[1:-1] for text in texts).rstrip() == line
        assert [continues_line(row) for row in rows] == [row.text.startswith(mark) for row in rows]
        assert {row.cell_length for row in rows} == {22}


@pytest.mark.parametrize("name", [name for name, theme in BUILTIN_THEMES.items() if not theme.ansi])
def test_user_messages_differ_from_replies_and_are_legible(name: str) -> None:
    variables = BUILTIN_THEMES[name].to_color_system().generate()
    style = Palette(variables, dark=BUILTIN_THEMES[name].dark, ansi=False).user_text
    assert style.bold
    assert style.color is not None
    foreground, background = style.color.get_truecolor(), Color.parse(variables["background"][:7]).rgb
    luminances = sorted(relative_luminance(rgb) for rgb in (foreground, background))
    assert (luminances[1] + 0.05) / (luminances[0] + 0.05) >= 4.5


def relative_luminance(rgb: tuple[int, int, int]) -> float:
    """Return the relative luminance of WCAG 2.2."""
    channels = [channel / 255 for channel in rgb]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
