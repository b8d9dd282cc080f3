"""Reuse transcript entries when the conversation on the screen changes."""

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
    """Return the entries for a path of messages, each with (number, count) of its alternatives.

    Messages that are already in `before` keep their entry and with it their layout. A note stays below the message
    that it was added after, and disappears together with that message.
    """
    reusable: dict[str, MessageEntry] = {}
    notes: dict[str | None, list[TranscriptEntry]] = {None: []}
    last_id: str | None = None
    for old in before:
        message_entry = old.as_message
        if message_entry is None:
            notes[last_id].append(old)
        else:
            last_id = message_entry.message.id
            reusable[last_id] = message_entry
            notes[last_id] = []
    entries = list(notes[None])
    for message, alternative in path:
        entry = reusable.get(message.id)
        if entry is None:
            entry = MessageEntry(message, alternative, glyphs, shows_stats=shows_stats)
        elif not entry.is_streaming:
            entry.update(message, alternative, shows_stats=shows_stats)
        entries += [entry, *notes.get(message.id, ())]
    return entries
