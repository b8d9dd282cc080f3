"""The line above the input: what goes on, how fast, and how full the context is."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from textual.widgets import Static

from edgechat.terminal import visible

if TYPE_CHECKING:
    from edgechat.tui.app import ChatApp
    from edgechat.tui.screens.chat import ChatScreen

# It changes so often at most while an answer comes.
_EVERY_S: Final = 0.25
# Before this a speed is mostly noise.
_SETTLED_S: Final = 0.2
_WIDE: Final = 60
_HINT: Final = "y copy  c code  e edit  r again  b branch  d delete  Enter: write"
_SHORT_HINT: Final = "y c e r b d   Enter: write"


class StatusLine(Static):
    """Fixed in its place: writing it lays nothing out."""

    app: ChatApp
    DEFAULT_CSS = """
    StatusLine { height: 1; padding: 0 2; color: $text-muted; }
    """

    def __init__(self, chat: ChatScreen) -> None:
        super().__init__("", id="live", markup=False)
        self._chat = chat
        self.state = "starting"
        self.detail = ""
        self.context_tokens = 0
        self._shown_s = 0.0
        self._first_s = 0.0
        self._n_tokens = 0

    def on_resize(self) -> None:
        """There is room for more, or for less."""
        self.redraw()

    def show_state(self, state: str, detail: str = "") -> None:
        """Something else goes on."""
        self.state, self.detail = state, detail
        self.redraw()

    def start_reply(self) -> None:
        """An answer is to come."""
        self._n_tokens, self._first_s = 0, 0.0

    def count_tokens(self, n_tokens: int, *, thinks: bool) -> None:
        """So many more tokens of it came."""
        now_s = time.monotonic()
        if not self._first_s:
            self._first_s, self._n_tokens = now_s, -n_tokens  # the first ones took no decoding time
        self._n_tokens += n_tokens
        self.context_tokens += n_tokens
        if now_s - self._shown_s >= _EVERY_S:
            elapsed_s = now_s - self._first_s
            known = elapsed_s > _SETTLED_S and self._n_tokens > 0
            speed = f"{self._n_tokens / elapsed_s:.0f} tokens/s" if known else ""
            self.show_state("thinking" if thinks else "answering", speed)

    def redraw(self) -> None:
        """Write it anew."""
        self._shown_s = time.monotonic()
        chat, session = self._chat, self.app.worker.session
        if chat.transcript.has_focus and not chat.is_busy:
            self._write(_HINT if self.size.width >= len(_HINT) + 4 else _SHORT_HINT)
            return
        parts = [self.state, self.detail, *chat.composer.words]
        if not chat.transcript.follows_end:
            parts.append("more below (Ctrl+End)")
        if session is not None and session.loaded is not None:
            parts.append(f"context {self.context_tokens}/{session.loaded.n_ctx}")
            if self.size.width >= _WIDE:
                parts.append(session.model_path.stem)
        parts.append(self.app.download_status)
        self._write("  ".join(p for p in parts if p))

    def _write(self, words: str) -> None:
        self.update(visible(words).replace("\n", " "), layout=False)
