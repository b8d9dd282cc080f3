"""Passages of documents that are saved with messages: read them, choose their numbers, and write them into prompts."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from edgechat.chat.messages import Attachment, Message
from edgechat.documents import prompt_text
from edgechat.documents.passages import PASSAGES_MEDIA_TYPE, Passage, PassageSet, decode_passages, encode_passages
from edgechat.errors import DocumentError, StoreError

PASSAGES_NAME: Final = "documents"
"""Name of the attachment with the passages of a message."""

ReadAttachment = Callable[[str], bytes]


def make_attachment(passages: PassageSet) -> tuple[Attachment, bytes]:
    """Return the attachment that saves a set of passages with its message, and its content."""
    data = encode_passages(passages)
    sha256 = hashlib.sha256(data).hexdigest()
    return (
        Attachment(sha256=sha256, name=PASSAGES_NAME, media_type=PASSAGES_MEDIA_TYPE, size_bytes=len(data)),
        data,
    )


def read_passages(message: Message, read_attachment: ReadAttachment) -> PassageSet | None:
    """Return the passages that were saved with a message; None if there are none.

    Raises DocumentError if they are missing or damaged.
    """
    attachment = next((a for a in message.attachments if a.is_passages), None)
    if attachment is None:
        return None
    try:
        return decode_passages(read_attachment(attachment.sha256))
    except StoreError as error:
        raise DocumentError(f"The saved passages are missing: {error}") from error


def find_readable_passages(path: Sequence[Message], read_attachment: ReadAttachment) -> list[PassageSet | None]:
    """Return the passages of each message in `path`; None for a message without passages, and for damaged ones.

    Whole documents that several messages have are read once.
    """
    sets: dict[tuple[Attachment, ...], PassageSet | None] = {}
    for message in path:
        key = tuple(a for a in message.attachments if a.is_passages)
        if key not in sets:
            sets[key] = _try_to_read(message, read_attachment)
    return [sets[tuple(a for a in message.attachments if a.is_passages)] for message in path]


def find_last_whole(sets: Sequence[PassageSet | None]) -> PassageSet | None:
    """Return the last set of whole documents, with which the prompt begins; None if there is none."""
    return next((s for s in reversed(sets) if s is not None and s.is_whole and s.passages), None)


def format_for_message(message: Message, passages: PassageSet | None) -> str:
    """Return the text in the prompt before the text of a message; "" if the message has no passages of its own.

    Whole documents are at the beginning of the prompt instead. `passages` is None for a message without passages and
    for damaged ones; a note stands for the latter.
    """
    if not any(a.is_passages for a in message.attachments):
        return ""
    if passages is None:
        return prompt_text.MISSING_NOTE
    return "" if passages.is_whole else prompt_text.format_retrieved(passages.passages, passages.n_omitted)


def list_texts(passages: PassageSet | None) -> list[str]:
    """Return the text of each document in a set of passages, in order."""
    texts: dict[tuple[str, str], list[str]] = {}
    for passage in passages.passages if passages is not None else ():
        texts.setdefault((passage.collection, passage.document), []).append(passage.text)
    return ["\n".join(parts) for parts in texts.values()]


def choose_numbers(passages: PassageSet, path_sets: Sequence[PassageSet | None]) -> PassageSet:
    """Return the set with numbers that are unique among those of `path_sets`, the sets of the messages before it.

    Passages at the beginning of whole documents that are the same as in the last ones keep their numbers, so that the
    beginning of the prompt remains the same.
    """
    previous = find_last_whole(path_sets)
    numbers: list[int] = []
    if passages.is_whole and previous is not None:
        pairs = zip(passages.passages, previous.passages, strict=False)
        same_pairs = itertools.takewhile(lambda pair: _replace_number(pair[0], pair[1].number) == pair[1], pairs)
        numbers = [earlier.number for _, earlier in same_pairs]
    first_number = 1 + max((p.number for s in path_sets if s is not None for p in s.passages), default=0)
    numbers += range(first_number, first_number + len(passages.passages) - len(numbers))
    renumbered = (_replace_number(p, number) for p, number in zip(passages.passages, numbers, strict=True))
    return msgspec.structs.replace(passages, passages=tuple(renumbered))


def _replace_number(passage: Passage, number: int) -> Passage:
    return msgspec.structs.replace(passage, number=number)


def _try_to_read(message: Message, read_attachment: ReadAttachment) -> PassageSet | None:
    try:
        return read_passages(message, read_attachment)
    except DocumentError:
        return None
