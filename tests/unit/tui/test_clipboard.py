"""OSC 52 sequences for the clipboard of the terminal."""

from __future__ import annotations

import base64

from edgechat.tui.clipboard import make_osc52_sequence


def test_osc52_sequence_is_wrapped_for_tmux_and_screen() -> None:
    plain = "\x1b]52;c;" + base64.b64encode(b"hi").decode() + "\x07"
    assert make_osc52_sequence("hi", {}) == plain
    assert make_osc52_sequence("hi", {"TMUX": "x"}) == "\x1bPtmux;\x1b" + plain + "\x1b\\"
    parts = make_osc52_sequence("x" * 2000, {"STY": "x"}).split("\x1b\\")
    assert all(len(part) <= 768 for part in parts)
    assert "".join(part.removeprefix("\x1bP") for part in parts) == make_osc52_sequence("x" * 2000, {})
