"""Markdown in blocks: the same however it comes, and nothing of it gone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgechat.tui.render.markdown_blocks import MarkdownSplitter, code_blocks, split_markdown

PIECES = st.sampled_from(
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
TEXTS = st.lists(PIECES, max_size=40).map("".join)


def shape(splitter: MarkdownSplitter) -> list[tuple[str, int, str, list[str], bool]]:
    return [(b.kind, b.indent, b.language, b.lines, b.gap) for b in splitter.blocks]


@given(TEXTS, st.lists(st.integers(1, 50), max_size=60))
def test_blocks_do_not_depend_on_how_the_text_was_cut(text: str, sizes: list[int]) -> None:
    whole, grown = MarkdownSplitter(text), MarkdownSplitter()
    at = 0
    for size in [*sizes, len(text) + 1]:
        grown.feed(text[at : at + size])
        at += size
    whole.finish()
    grown.finish()
    assert shape(whole) == shape(grown)


@given(TEXTS)
def test_nothing_is_gone(text: str) -> None:
    """Every letter is in a block, but for fences and the spaces around lines."""
    marks = set("`~ \n\t")
    kept = "".join(block.source + block.language for block in split_markdown(text))
    for letter in set(text) - marks:
        assert kept.count(letter) == text.count(letter)


@given(TEXTS)
def test_no_block_is_long(text: str) -> None:
    for block in split_markdown(text):
        if block.kind == "text":
            assert block.n_chars <= 4096 + 1
        assert all(len(line) <= 4096 for line in block.lines)


def test_a_conversation_with_code() -> None:
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
    assert code_blocks("x\n```\na\n```\n```\nb") == ["a", "b"]


def test_long_lines_of_code_are_one_when_they_are_copied() -> None:
    code = "a" * 4096 + "\n" + "b" * 4097 + "\n  x" + "```" * 3000 + "\nend"
    text = f"```js\n{code}\n```\n"
    assert code_blocks(text) == [code]
    grown = MarkdownSplitter()
    for start in range(0, len(text), 1000):
        grown.feed(text[start : start + 1000])
    assert grown.blocks[0].source == code


def test_a_fence_that_never_ends_and_one_that_is_none() -> None:
    assert [(b.kind, b.source) for b in split_markdown("````\n```\nx")] == [("code", "```\nx")]
    assert [b.kind for b in split_markdown("```not `code`\n")] == ["text"]
    assert [b.kind for b in split_markdown("`" * 1_000_000)] == ["text"] * len(split_markdown("`" * 1_000_000))


def test_the_line_that_is_not_complete_is_known() -> None:
    splitter = MarkdownSplitter("one\ntw")
    assert (splitter.partial, splitter.visible_partial) == ("tw", "tw")
    assert splitter.open_block is splitter.blocks[0]
    splitter.feed("o\n\n```p")
    assert (splitter.partial, splitter.visible_partial) == ("```p", "")
    assert not splitter.blocks[-1].is_open
