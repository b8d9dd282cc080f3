"""Marks of searched words in rows."""

from __future__ import annotations

import pytest
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from edgechat.tui.render.palette import CONTINUES_LINE
from edgechat.tui.render.word_marks import WordMarks


def make_rows(*texts: str) -> list[Strip]:
    return [Strip([Segment(f"  {text}")]) for text in texts]


@pytest.mark.parametrize(
    ("words", "rows", "index", "spans"),
    [
        (["zebra"], ["a Zebra, a zebra"], 0, [(4, 9), (13, 18)]),
        (["zebra"], ["no horse"], 0, []),
        (["料理"], ["日本料理 zebra"], 0, [(6, 10)]),
        (["zebra"], ["料理 zebra"], 0, [(7, 12)]),
        (["two words"], ["here are two", "words of text"], 0, [(11, 14)]),
        (["two words"], ["here are two", "words of text"], 1, [(2, 7)]),
        (["a", "ab"], ["abc"], 0, [(2, 4)]),
        (["x.y"], ["xzy x.y"], 0, [(6, 9)]),
        ([" "], ["a b"], 0, []),
    ],
)
def test_columns_of_marked_words(words: list[str], rows: list[str], index: int, spans: list[tuple[int, int]]) -> None:
    assert WordMarks("id", words).find_spans(make_rows(*rows), index) == spans


def test_word_that_is_wrapped_in_code_is_marked_in_both_rows() -> None:
    first = Strip([Segment("   merge_sort(va ")])
    second = Strip([Segment("  "), Segment("↪", Style(meta={CONTINUES_LINE: True})), Segment("lues) ")])
    marks = WordMarks("id", ["values"])
    assert marks.find_spans([first, second], 0) == [(14, 16)]
    assert marks.find_spans([first, second], 1) == [(3, 7)]
