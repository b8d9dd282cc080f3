"""Helpers for the rows of lists: cut text to a number of columns, search it for words, remove marks of Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from rich.cells import cell_len

from edgechat.chat.messages import format_title

# Marks of Markdown: code fences, headings, and pairs of marks for bold text or code within one line.
_MARKS: Final = re.compile(
    r"(?P<fence>(?:`{3,}|~{3,})[\w+-]*\n?)|(?P<heading>^[ \t]{0,3}\#{1,6}[ \t]+)"
    r"|(?P<start>\*\*(?=[^\s*])|`{1,2}(?=[^\s`]))(?P<text>[^\n]{0,300}?[^\s*`])(?P<end>(?P=start))(?![*`])",
    re.MULTILINE,
)


def find_markup(text: str) -> Iterator[tuple[int, int]]:
    """Yield the ranges of Markdown's marks in `text`, in order: code fences, headings, bold text and inline code."""
    for match in _MARKS.finditer(text):
        yield from [match.span(name) for name in ("fence", "heading", "start", "end") if match[name] is not None]


def strip_markup(text: str) -> str:
    """Return `text` without the marks of Markdown that `find_markup` finds."""
    position, parts = 0, []
    for start, end in find_markup(text):
        parts.append(text[position:start])
        position = end
    return "".join([*parts, text[position:]])


def format_title_row(title: str) -> str:
    """Return the title of a conversation for a list: one line, without marks of Markdown."""
    return format_title(strip_markup(title))


def cut_to_columns(text: str, n_columns: int) -> str:
    """Return `text` in at most `n_columns` columns, with an ellipsis at the end if it is cut."""
    if cell_len(text) <= n_columns:
        return text
    text = text[: max(0, n_columns)]  # no character but combining ones has less than one column
    while text and cell_len(text) >= n_columns:
        text = text[:-1]
    return f"{text}…" if n_columns > 0 else ""


def contains_words(text: str, query: str) -> bool:
    """Return whether `text` contains all words of `query`, in any order and ignoring case."""
    lower_text = text.lower()
    return all(word in lower_text for word in query.lower().split())
