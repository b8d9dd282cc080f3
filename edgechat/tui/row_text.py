"""Rows of lists: filters by words, and text that is cut to a number of columns."""

from __future__ import annotations

from rich.cells import cell_len


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
