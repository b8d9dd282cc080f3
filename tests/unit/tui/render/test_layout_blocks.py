"""Syntax highlighting keeps every line of the code."""

from __future__ import annotations

from pygments.lexers import get_all_lexers

from edgechat.tui.render.layout_blocks import highlight_code
from edgechat.tui.render.markdown_blocks import split_markdown
from tests.unit.tui.layouts import PALETTE


def test_highlighting_keeps_all_lines_with_every_lexer() -> None:
    source = "$ pip install x\n>>> y = 1\n\n- z: 1\tend"
    for _, names, _, _ in get_all_lexers():
        for name in names[:1]:
            [block] = split_markdown(f"```{name}\n{source}\n```\n")
            rows = [row.text.strip() for row in highlight_code(block, 60, PALETTE)][1:]
            assert rows == [line.expandtabs(4).strip() for line in source.split("\n")], name
