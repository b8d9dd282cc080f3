"""Text of rows in lists: Markdown without its marks, and titles."""

from __future__ import annotations

import pytest

from edgechat.tui.row_text import format_title_row, strip_markup


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a **bold** word", "a bold word"),
        ("**a** and **b**", "a and b"),
        ("use `code` here", "use code here"),
        ("``a ` b``", "a ` b"),
        ("# Title\n## Second", "Title\nSecond"),
        ("text\n```python\nx = 1\n```\nmore", "text\nx = 1\nmore"),
        ("~~~\nx\n~~~", "x\n"),
        ("2**3 and 4 ** 5", "2**3 and 4 ** 5"),
        ("f(**options)", "f(**options)"),
        ("src/**/x.py", "src/**/x.py"),
        ("C# and #hashtag", "C# and #hashtag"),
        ("__init__ and snake_case", "__init__ and snake_case"),
        ("one ` alone", "one ` alone"),
        ("", ""),
    ],
)
def test_marks_of_markdown_are_removed(text: str, expected: str) -> None:
    assert strip_markup(text) == expected


def test_long_texts_without_pairs_are_stripped() -> None:
    for text in (" **a" * 20_000, "**" * 20_000, "`a" * 20_000, "**a" * 20_000, "# " * 20_000):
        assert len(strip_markup(text)) <= len(text)


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("**Hello** world", "Hello world"), ("", "(no title)"), ("\n \n", "(no title)"), ("# ", "(no title)"),
        ("a\x1b[31mb", "a\u241b[31mb"), ("```python", "(no title)"), ("first\nsecond", "first"),
    ],
)  # fmt: skip
def test_title_of_a_row(title: str, expected: str) -> None:
    assert format_title_row(title) == expected
