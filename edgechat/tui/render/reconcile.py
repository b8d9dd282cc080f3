"""Which entries stand for a conversation: those that were there, new ones, and the notes between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgechat.tui.render.entries import MessageEntry, TranscriptEntry

if TYPE_CHECKING:
    from edgechat.chat.messages import Message
    from edgechat.tui.render.palette import Glyphs


def reconcile(
    before: Sequence[TranscriptEntry],
    path: Sequence[tuple[Message, tuple[int, int]]],
    glyphs: Glyphs,
    *,
    shows_stats: bool,
) -> list[TranscriptEntry]:
    """Entries for a path. Those of `before` that are on it are used again, so that what was laid out stays.

    A note stays behind the message that it stood behind, and goes with it.
    """
    kept: dict[str, MessageEntry] = {}
    notes: dict[str | None, list[TranscriptEntry]] = {None: []}
    last: str | None = None
    for entry in before:
        message = entry.as_message
        if message is None:
            notes[last].append(entry)
        else:
            last = message.message.id
            kept[last] = message
            notes[last] = []
    entries = list(notes[None])
    for message_, place in path:
        found = kept.get(message_.id)
        if found is None:
            found = MessageEntry(message_, place, glyphs, shows_stats=shows_stats)
        elif not found.is_streaming:
            found.update(message_, place, figures=shows_stats)
        entries += [found, *notes.get(message_.id, ())]
    return entries
