"""Entries, a palette, and rows of an entry, for tests of the layout."""

from __future__ import annotations

from textual.theme import BUILTIN_THEMES

from edgechat.chat.messages import Message, new_id
from edgechat.tui.render.entries import MessageEntry, TranscriptEntry
from edgechat.tui.render.palette import UNICODE_GLYPHS, Palette

PALETTE = Palette(BUILTIN_THEMES["textual-dark"].to_color_system().generate(), dark=True, ansi=False)


def make_entry(text: str, role: str = "assistant", finish_reason: str | None = None) -> MessageEntry:
    finish_reason = finish_reason or ("stop" if role == "assistant" else "")
    message = Message(id=new_id(), role=role, text=text, finish_reason=finish_reason)  # type: ignore[arg-type]
    return MessageEntry(message, (1, 1), UNICODE_GLYPHS)


def rendered_rows(entry: TranscriptEntry, width: int) -> list[str]:
    """Return all rows as text, rendering blocks as the transcript does."""
    rows: list[str] = []
    for block in entry.blocks:
        if block.layout_width != width or block.is_stale:
            block.lay_out(width, PALETTE)
        rows += [""] * block.gap
        rows += [block.row(i).text for i in range(block.height(width))]
    return rows
