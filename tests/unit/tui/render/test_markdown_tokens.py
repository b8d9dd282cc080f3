"""Tasks, footnotes, definitions, images and diagrams, in Unicode and in ASCII."""

from __future__ import annotations

import pytest

from edgechat.tui.render.code_layout import describe_code
from edgechat.tui.render.markdown_blocks import split_markdown
from edgechat.tui.render.palette import Palette
from tests.unit.tui.layouts import PALETTE, make_entry

ASCII_PALETTE = Palette({"background": "#000000"}, dark=True, ansi=False, ascii_only=True)


def show(source: str, palette: Palette = PALETTE, width: int = 60) -> list[str]:
    rows = []
    for block in make_entry(source).blocks:
        block.lay_out(width, palette)
        rows += [block.row(i).text.rstrip() for i in range(block.height(width))]
    return rows


def test_tasks_have_boxes() -> None:
    source = "- [ ] open *task*\n- [x] done\n- item [x]\n  - [X] inner\n\n1. [x] first\n2. second\n"
    assert show(source) == [
        " ☐ open task", " ☑ done", " • item [x]", "    ☑ inner", "1. ☑ first", "2. second",
    ]  # fmt: skip
    assert show(source, ASCII_PALETTE)[:2] == [" * [ ] open task", " * [x] done"]
    assert show("[x] no task\n\n- [x]\n- [y] neither\n") == ["[x] no task", " • [x]", " • [y] neither"]


def test_footnotes_are_raised_numbers() -> None:
    source = "A claim[^1] and more[^12]: so[^note].\n\n[^1]: First *note*\n[^12]: Second\n\n[^note]: Third\n"
    assert show(source) == ["A claim¹ and more¹²: so[note].", "¹ First note", "¹² Second", "[note] Third"]
    assert all(row.isascii() for row in show(source, ASCII_PALETTE))
    assert "[^1]" in show(source, ASCII_PALETTE)[0]
    assert show("`a[^1]`") == ["a[^1]"]


def test_definitions_are_indented_below_their_terms() -> None:
    source = "Term *one*\n: Its definition, " + "which is long " * 6 + "\n: Another\n\nNo term\n"
    rows = show(source)
    assert rows[0] == "Term one"
    assert rows[1].startswith("    Its definition")
    assert rows[2].startswith("    ")
    assert rows[-2:] == ["    Another", "No term"]


def test_image_in_a_paragraph_of_its_own_is_a_labelled_block() -> None:
    source = '![A cat](http://x/cat.png "Tom")\n'
    assert show(source) == ["▣ Image: A cat", '  http://x/cat.png "Tom"']
    assert show(source, ASCII_PALETTE) == ["[image] A cat", '  http://x/cat.png "Tom"']
    assert show("![a](b.png)\n![](c.png)\n") == ["▣ Image: a", "  b.png", "▣ Image:", "  c.png"]


@pytest.mark.parametrize(
    ("source", "caption"),
    [
        ("graph TD\n  A-->B", "Mermaid flowchart"), ("sequenceDiagram\n  title Log in\n  A->>B: x", None),
        ("---\ntitle: My plan\n---\ngantt\n", "Mermaid Gantt chart: My plan"), ("", "Mermaid diagram"),
        ('pie title Pets\n "a": 1', "Mermaid pie chart: Pets"), ("stateDiagram-v2\n", "Mermaid state diagram"),
        ("%% note\nclassDiagram\n", "Mermaid class diagram"),
    ],
)  # fmt: skip
def test_diagrams_are_labelled_with_kind_and_title(source: str, caption: str | None) -> None:
    [block] = split_markdown(f"```mermaid\n{source}\n```\n")
    assert describe_code(block) == (caption or "Mermaid sequence diagram: Log in")
    rows = show(f"```mermaid\n{source}\n```\n")
    assert rows[0].strip() == f"[1] {describe_code(block)}"
    assert [row.strip() for row in rows[1:]] == [line.strip() for line in source.split("\n")]


def test_caption_of_a_growing_diagram_follows_its_first_line() -> None:
    entry = make_entry("")
    entry.start_streaming()
    entry.append("```mermaid\n", "")
    for text, caption in [("flow", "diagram"), ("chart LR\n", "flowchart"), ("A-->B\n", "flowchart")]:
        entry.append(text, "")
        [block] = entry.blocks
        block.lay_out(60, PALETTE)
        assert block.row(0).text.strip() == f"[1] Mermaid {caption}"
    assert describe_code(split_markdown("```dot\ndigraph {}\n```")[0]) == "Graphviz diagram"
    assert describe_code(split_markdown("```python\ntitle x\n```")[0]) == "python"
