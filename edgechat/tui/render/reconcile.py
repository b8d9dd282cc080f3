"""Reuse transcript entries when the conversation on the screen changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgechat.tui.render.entries import MessageEntry, TranscriptEntry

if TYPE_CHECKING:
    from edgechat.chat.messages import Message
    from edgechat.tui.conversation_passages import ConversationPassages
    from edgechat.tui.render.palette import Glyphs


def reconcile_entries(
    old_entries: Sequence[TranscriptEntry],
    path: Sequence[tuple[Message, tuple[int, int]]],
    glyphs: Glyphs,
    *,
    show_stats: bool,
    passages: ConversationPassages | None = None,
) -> list[TranscriptEntry]:
    """Return the transcript entries for `path`, reusing entries and notes of `old_entries`.

    `path` contains each message with (its number among its alternatives, number of alternatives). A message that is
    already in `old_entries` keeps its entry and layout. A note stays below the message after which it was added, and is
    removed together with this message.
    """
    reusable_entries: dict[str, MessageEntry] = {}
    notes_by_message_id: dict[str | None, list[TranscriptEntry]] = {None: []}
    last_id: str | None = None
    for old_entry in old_entries:
        message_entry = old_entry.as_message
        if message_entry is None:
            notes_by_message_id[last_id].append(old_entry)
        else:
            last_id = message_entry.message.id
            reusable_entries[last_id] = message_entry
            notes_by_message_id[last_id] = []
    entries = list(notes_by_message_id[None])
    for message, alternative in path:
        entry = reusable_entries.get(message.id)
        if entry is None:
            entry = MessageEntry(message, alternative, glyphs, show_stats=show_stats, passages=passages)
        elif entry.is_streaming:
            entry.number(alternative)
        else:
            entry.update(message, alternative, show_stats=show_stats, passages=passages)
        entries += [entry, *notes_by_message_id.get(message.id, ())]
    return entries
