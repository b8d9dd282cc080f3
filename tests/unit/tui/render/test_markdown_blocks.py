"""Markdown blocks: independent of how the text arrives, complete, and short."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgechat.tui.render.markdown_blocks import MarkdownSplitter, find_code_blocks, split_markdown

PARTS = st.sampled_from(
    [
        "a",
        "word ",
        "\n",
        "\n\n",
        "```",
        "```py\n",
        "~~~\n",
        "    ",
        "- item\n",
        "1. one\n",
        "   ",
        "> ",
        "`",
        "x" * 5000,
        "y" * 4096,
        "z" * 4095,
        "é",
        "中",
    ]
)
TEXTS = st.lists(PARTS, max_size=40).map("".join)


def shape(splitter: MarkdownSplitter) -> list[tuple[str, int, str, list[str], bool]]:
    return [(b.kind, b.indent, b.language, b.lines, b.gap) for b in splitter.blocks]


@given(TEXTS, st.lists(st.integers(1, 50), max_size=60))
def test_blocks_do_not_depend_on_how_the_text_is_divided(text: str, sizes: list[int]) -> None:
    whole, grown = MarkdownSplitter(text), MarkdownSplitter()
    at = 0
    for size in [*sizes, len(text) + 1]:
        grown.feed(text[at : at + size])
        at += size
    whole.finish()
    grown.finish()
    assert shape(whole) == shape(grown)


@given(TEXTS)
def test_no_character_is_lost(text: str) -> None:
    """Every character is in a block, except fences and the spaces around lines."""
    excluded = set("`~ \n\t")
    contents = "".join(block.source + block.language for block in split_markdown(text))
    for letter in set(text) - excluded:
        assert contents.count(letter) == text.count(letter)


@given(TEXTS)
def test_blocks_are_short(text: str) -> None:
    for block in split_markdown(text):
        if block.kind == "text":
            assert block.n_chars <= 4096 + 1
        assert all(len(line) <= 4096 for line in block.lines)


def test_code_in_text_and_in_lists() -> None:
    blocks = split_markdown(
        "Do this:\n```python\nprint()\n```\nand\n\n1. so\n   ```sh\n   ls\n     -l\n   ```\n   then\n2. more"
    )
    assert [(b.kind, b.source, b.gap) for b in blocks] == [
        ("text", "Do this:", False),
        ("code", "print()", True),
        ("text", "and", True),
        ("text", "1. so", True),
        ("code", "ls\n  -l", True),
        ("text", "then", True),
        ("text", "2. more", False),
    ]
    assert [b.indent for b in blocks] == [0, 0, 0, 0, 3, 3, 0]
    assert find_code_blocks("x\n```\na\n```\n```\nb") == ["a", "b"]


def test_long_code_lines_are_rejoined_in_the_source() -> None:
    code = "a" * 4096 + "\n" + "b" * 4097 + "\n  x" + "```" * 3000 + "\nend"
    text = f"```js\n{code}\n```\n"
    assert find_code_blocks(text) == [code]
    grown = MarkdownSplitter()
    for start in range(0, len(text), 1000):
        grown.feed(text[start : start + 1000])
    assert grown.blocks[0].source == code


def test_unclosed_and_invalid_fences() -> None:
    assert [(b.kind, b.source) for b in split_markdown("````\n```\nx")] == [("code", "```\nx")]
    assert [b.kind for b in split_markdown("```not `code`\n")] == ["text"]
    assert [b.kind for b in split_markdown("`" * 1_000_000)] == ["text"] * len(split_markdown("`" * 1_000_000))


def test_incomplete_line_is_available_but_not_while_it_may_be_a_fence() -> None:
    splitter = MarkdownSplitter("one\ntw")
    assert (splitter.partial_line, splitter.visible_partial_line) == ("tw", "tw")
    assert splitter.open_block is splitter.blocks[0]
    splitter.feed("o\n\n```p")
    assert (splitter.partial_line, splitter.visible_partial_line) == ("```p", "")
    assert not splitter.blocks[-1].is_open
