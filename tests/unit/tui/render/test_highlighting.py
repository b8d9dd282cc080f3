"""Colours of code while it grows: equal to the final ones, and at a cost that does not grow with the block."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pygments.lexers import get_all_lexers, get_lexer_by_name

from edgechat.tui.render import highlighting
from edgechat.tui.render.code_layout import CodeLayout
from edgechat.tui.render.highlighting import GrowingHighlighter, highlight
from edgechat.tui.render.markdown_blocks import MarkdownSplitter
from tests.unit.tui.layouts import PALETTE, make_entry

if TYPE_CHECKING:
    from rich.segment import Segment
    from textual.strip import Strip

PYTHON = inspect.getsource(highlighting)
C_CODE = (
    """#include <stdio.h>

/* A comment
 * of several lines
 */
static int count(const char *text, size_t n) {
    int total = 0;  // all of them
    for (size_t i = 0; i < n; i++) {
        if (text[i] == '\\n') total += 1;
    }
    return total;
}
"""
    * 20
)
JS_CODE = (
    """export async function load(url) {
  // reads a value
  const reply = await fetch(`${url}?n=${1 + `${2}`}`);
  const { items = [] } = await reply.json();
  return items.map((item) => ({ ...item, name: "x" + item.name }));
}
"""
    * 40
)
SAMPLES = {
    "python": PYTHON, "c": C_CODE, "js": JS_CODE,
    "rust": 'fn main() {\n    let s = r#"a"#; println!("{}", s);\n}\n' * 60,
    "bash": 'for f in *.txt; do\n  echo "$f: $(wc -l < "$f")"  # lines\ndone\ncat <<EOF\n$HOME\nEOF\n' * 30,
    "json": '{"a": [1, 2.5, true],\n "b": {"c": null, "d": "e"}},\n' * 60,
    "yaml": "a:\n  - b: 1\n    c: 'x'  # note\nd: [1, 2]\n" * 60,
    "html": "<p class='x'>text <b>bold</b></p>\n<script>\nlet a = 1;\n</script>\n" * 60,
    "diff": "--- a\n+++ b\n@@ -1 +1 @@\n-x = 1\n+x = 2\n y\n" * 60,
    "sql": "SELECT a, 'b' FROM t -- c\nWHERE x > 1;\n" * 60,
}  # fmt: skip


def split_styles(lines: list[list[Segment]]) -> list[list[tuple[str, Any]]]:
    """Return the characters of lines with their styles."""
    return [[(char, segment.style) for segment in line for char in segment.text] for line in lines]


def grow(language: str, source: str, n_chars: int) -> list[list[Segment]]:
    """Return the coloured lines of code that arrived in parts of `n_chars`."""
    highlighter = GrowingHighlighter(get_lexer_by_name(language, stripnl=False), PALETTE)
    lines: list[list[Segment]] = []
    for end in range(n_chars, len(source) + n_chars, n_chars):
        *complete, partial = source[:end].split("\n")
        first, new_lines = highlighter.update(complete, partial)
        lines[first:] = new_lines
    return lines


@pytest.mark.parametrize("language", SAMPLES)
def test_growing_code_has_the_colours_of_the_complete_code(language: str) -> None:
    source = SAMPLES[language].rstrip("\n")
    lines = source.split("\n")
    final = split_styles(highlight(lines, source, language, PALETTE))
    grown = split_styles(grow(language, source, 23))
    assert len(grown) == len(final)
    assert len({style for line in grown for _, style in line}) > 2
    n_different = sum(a != b for a, b in zip(grown, final, strict=True))
    assert n_different <= len(lines) // 20, [
        (number, lines[number]) for number in range(len(lines)) if grown[number] != final[number]
    ]


def test_code_is_coloured_before_its_end_has_arrived() -> None:
    splitter = MarkdownSplitter("```python\ndef add(a, b):\n    return a ")
    layout = CodeLayout(splitter.blocks[0])
    layout.set_partial_line(splitter.visible_partial_line)
    layout.lay_out(40, PALETTE)
    keyword = next(segment for segment in layout.row(2) if segment.text == "return")
    assert keyword.style != PALETTE.code
    assert layout.first_changed_row == 0
    layout.set_partial_line("    return a + b")
    layout.lay_out(40, PALETTE)
    assert layout.first_changed_row == 2
    assert layout.row(2).text.strip() == "return a + b"


@pytest.mark.slow
def test_cost_of_an_update_does_not_depend_on_the_length_of_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    lexer = get_lexer_by_name("python", stripnl=False)
    n_chars: list[int] = []
    read = lexer.get_tokens_unprocessed

    def count_chars(text: str, *arguments: Any) -> Any:
        n_chars.append(len(text))
        return read(text, *arguments)

    monkeypatch.setattr(lexer, "get_tokens_unprocessed", count_chars)
    highlighter = GrowingHighlighter(lexer, PALETTE)
    lines: list[str] = []
    for number in range(2000):
        lines.append(f"value_{number} = compute({number}, name='x')  # number {number}")
        first, new_lines = highlighter.update(lines, "")
        assert len(new_lines) < 40
        assert first + len(new_lines) == len(lines)
    assert max(n_chars) < 1200


def test_first_layout_of_long_growing_code_is_bounded() -> None:
    highlighter = GrowingHighlighter(get_lexer_by_name("python", stripnl=False), PALETTE)
    lines = ["x = 'a'"] * 100_000
    first, new_lines = highlighter.update(lines, "y =")
    assert (first, len(new_lines)) == (0, 100_001)
    assert len(new_lines[0]) == 1
    assert len(new_lines[-2]) > 1
    assert highlighter.update([*lines, "y = 1"], "")[0] > 99_000


def test_token_that_never_ends_does_not_slow_down_the_next_updates() -> None:
    highlighter = GrowingHighlighter(get_lexer_by_name("c", stripnl=False), PALETTE)
    lines = ["/*"]
    for _ in range(1000):
        lines.append("a comment that goes on and on, line after line")
        first, new_lines = highlighter.update(lines, "")
        assert sum(len(s.text) for line in new_lines for s in line) <= highlighting.MAX_SYNC_CHARS + 100
        assert first + len(new_lines) == len(lines)


@pytest.mark.slow
def test_every_lexer_can_read_growing_code() -> None:
    source = "$ pip install x\n>>> y = 1\n\n- z: 1\tend\n<a b='c'>\n/* d\n" * 20
    for _, names, _, _ in get_all_lexers():
        for name in names[:1]:
            lines = grow(name, source, 300)
            shown = ["".join(segment.text for segment in line) for line in lines]
            assert shown == [line.expandtabs(4) for line in source.rstrip("\n").split("\n")], name


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(1, 60), max_size=60), st.integers(8, 70), st.sampled_from([*SAMPLES, "", "nosuch"]))
def test_streamed_code_ends_with_the_rows_and_colours_of_complete_code(
    sizes: list[int], width: int, language: str
) -> None:
    code = SAMPLES.get(language, PYTHON)[:2500].rstrip("\n")
    text = f"Words\n\n```{language}\n{code}\n```\nmore words"
    entry = make_entry("")
    entry.start_streaming()
    position = 0
    for size in [*sizes, len(text)]:
        entry.append(text[position : position + size], "")
        position += size
        rows_of(entry, width)
    entry.finish(make_entry(text).message)
    assert rows_of(entry, width) == rows_of(make_entry(text), width)


def rows_of(entry: Any, width: int) -> list[Strip]:
    rows: list[Strip] = []
    for block in entry.blocks:
        if block.layout_width != width or block.is_stale:
            block.lay_out(width, PALETTE)
        rows += [block.row(i) for i in range(block.height(width))]
    return rows


def test_width_can_change_while_code_grows() -> None:
    splitter = MarkdownSplitter("```python\n")
    layout = CodeLayout(splitter.blocks[0])
    for line in PYTHON.split("\n")[:60]:
        splitter.feed(f"{line}\n")
        layout.set_partial_line(splitter.visible_partial_line)
        layout.lay_out(60, PALETTE)
    layout.lay_out(30, PALETTE)
    rows = [layout.row(i) for i in range(layout.height(30))]
    assert {row.cell_length for row in rows} == {30}
    first_import = next(row for row in rows if "from __future__" in row.text)
    assert len({segment.style for segment in first_import}) > 2


def test_long_code_keeps_its_colours_until_the_final_ones_arrive() -> None:
    splitter = MarkdownSplitter("```python\n")
    layout = CodeLayout(splitter.blocks[0])
    for _ in range(300):
        splitter.feed("return 'text' + name\n")
        layout.set_partial_line("")
        layout.lay_out(40, PALETTE)
    splitter.feed("```\n")
    layout.set_partial_line("")
    layout.lay_out(40, PALETTE)
    assert layout.needs_highlighting
    assert len({segment.style for segment in layout.row(5)}) > 2
