"""Passages of documents in the exports for readers: what was searched for a question, and the places a reply cites."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from edgechat.chat.message_passages import find_readable_passages
from edgechat.chat.messages import Message
from edgechat.documents.citations import CitationFinder
from edgechat.documents.descriptions import describe_set, list_cited_places, list_problems


class PassageLines(NamedTuple):
    """Lines about the passages of one message; "" and an empty list for a message without passages."""

    description: str = ""
    """What was searched or read for a user message."""
    cited_places: Sequence[str] = ()
    """The places that a reply cites."""
    problems: Sequence[str] = ()
    """What the reader should check in the reply."""


def describe_passages(path: Sequence[Message], read_attachment: Callable[[str], bytes]) -> dict[str, PassageLines]:
    """Return the lines of the messages of a path by message ID; leave out damaged and missing passages.

    `read_attachment` returns the bytes of an attachment by SHA-256 hash, or raises StoreError.
    """
    message_sets = find_readable_passages(path, read_attachment)
    sets = {message.id: passages for message, passages in zip(path, message_sets, strict=True)}
    finder = CitationFinder(p for passages in sets.values() if passages is not None for p in passages.passages)
    lines = {}
    for message in path:
        passages = sets[message.id]
        if passages is not None:
            lines[message.id] = PassageLines(f"Documents: {describe_set(passages)}")
        elif message.role == "assistant" and (citations := finder.find(message.text)):
            lines[message.id] = PassageLines("", list_cited_places(citations), list_problems(citations))
    return lines
