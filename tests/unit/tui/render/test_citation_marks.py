"""Placeholders for citations: the text of a reply is unchanged, whatever it contains."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat.chat.messages import Message
from edgechat.documents.citations import find_citations
from edgechat.documents.passages import Passage, PassageSet
from edgechat.tui.conversation_passages import ConversationPassages
from edgechat.tui.render.citation_marks import insert_placeholders, restore_citations, split_at_placeholders
from edgechat.tui.render.entries import MessageEntry
from edgechat.tui.render.palette import CITATION, UNICODE_GLYPHS, Palette

PASSAGES = tuple(Passage(number=n, collection="c", document="d", text="text") for n in (1, 2, 3))
CONVERSATION = ConversationPassages({"q": PassageSet(collections=("c",), passages=PASSAGES)})
PIECES = st.sampled_from([
    "[1]", "[2, 3]", " ", "\n", "\n\n", "`", "```\n", "$", "\\[", "| a |", "- ", "> ", "**", "word", "\U000f0000",
    "1. ",     "\U00100000", "](x)", "[^1]", "# ", "    ", "|---|\n", "\u202e", "\x1b",
])  # fmt: skip


def _render(text: str, width: int = 60) -> list[tuple[str, int | None]]:
    """Return (text, index of the citation) of the segments of a reply."""
    message = Message(id="a", role="assistant", text=text, finish_reason="stop")
    entry = MessageEntry(message, (1, 1), UNICODE_GLYPHS, passages=CONVERSATION)
    palette = Palette({}, dark=True, ansi=False)
    segments = []
    for block in entry.blocks:
        block.lay_out(width, palette)
        for number in range(block.n_rows):
            segments += [(s.text, s.style.meta.get(CITATION) if s.style else None) for s in block.row(number)]
    return segments


@given(st.lists(PIECES, max_size=25).map("".join))
def test_restored_text_is_the_text(text: str) -> None:
    marked, marks = insert_placeholders(text, find_citations(text, PASSAGES))
    assert restore_citations(marked, marks) == text
    parts = split_at_placeholders(marked, marks)
    assert "".join(part if isinstance(part, str) else part.source for part in parts) == text


@given(st.lists(PIECES, max_size=25).map("".join))
def test_rows_contain_every_citation_and_no_placeholder(text: str) -> None:
    if "\U000f0000" in text:
        return
    segments = _render(text)
    shown = "".join(part for part, _ in segments)
    assert not any(0xF0000 <= ord(character) <= 0xFFFFD for character in shown)


@pytest.mark.parametrize(
    "text",
    [
        "It is [1].", "**It is [1]**", "- a [1]", "> a [1]", "# Title [1]", "| a | b |\n|---|---|\n| c [1] | d |",
        "*a* [1] `b`", "$x$ and [1]", "[link](http://x) [1]", "a[1]", "1. a\n   [1]",
    ],
)  # fmt: skip
def test_citation_is_a_link_in_every_kind_of_text(text: str) -> None:
    assert [(part, index) for part, index in _render(text) if index is not None] == [("[1]", 0)]


def test_citations_of_a_text_with_too_many_brackets_are_links() -> None:
    segments = _render("[a " * 600 + "[1] [2]")
    assert [index for _, index in segments if index is not None] == [0, 1]
