"""Small things that a screen shows or does, each by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.theme import BUILTIN_THEMES

from edgechat.chat.messages import Message
from edgechat.tui.confirm import Confirmation
from edgechat.tui.render.entries import MessageEntry
from edgechat.tui.render.palette import UNICODE_GLYPHS, Palette

if TYPE_CHECKING:
    import pytest

PALETTE = Palette(BUILTIN_THEMES["nord"].to_color_system().generate(), dark=True, ansi=False)


def shown(entry: MessageEntry) -> list[str]:
    for piece in entry.blocks:
        piece.lay_out(60, PALETTE)
    return [piece.row(n).text.rstrip() for piece in entry.blocks for n in range(piece.height(60))]


def test_reasoning_is_one_line_that_says_what_it_is_at() -> None:
    entry = MessageEntry(Message(id="a", role="assistant", finish_reason="streaming"), (1, 1), UNICODE_GLYPHS)
    entry.start_streaming()
    entry.append("", "First I look.\nThen I ")
    assert shown(entry) == ["▸ reasoning (5 words): Then I"]
    entry.append("", "think.")
    assert shown(entry) == ["▸ reasoning (6 words): Then I think."]
    entry.append("So it is.", "")
    assert shown(entry) == ["▸ reasoning (6 words)", "So it is."]
    entry.is_expanded = True
    entry.invalidate()
    assert shown(entry)[:3] == ["▾ reasoning (6 words)", "First I look.", "Then I think."]


def test_what_is_asked_for_twice_must_be_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    twice = Confirmation()
    assert [twice.confirm(key) for key in ("a", "b", "b", "b")] == [False, False, True, False]
    now[0] = 60.0
    assert not twice.confirm("b")
    assert twice.confirm("b")
