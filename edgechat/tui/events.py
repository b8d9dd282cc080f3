"""What worker threads tell the screen."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from textual.message import Message

if TYPE_CHECKING:
    from edgechat.chat.events import TurnFinished, TurnInterrupted


class Working(Message):
    """Something that takes time goes on."""

    def __init__(self, words: str, context_tokens: int = 0) -> None:
        super().__init__()
        self.words = words
        self.context_tokens = context_tokens


class Opened(Message):
    """The model is ready."""


class Counted(Message):
    """How much of the context would be in use if `text` were sent now; 0 if it would not fit."""

    def __init__(self, text: str, context_tokens: int, words: str) -> None:
        super().__init__()
        self.text = text
        self.context_tokens = context_tokens
        self.words = words


class TextArrived(Message):
    """More of the answer."""

    def __init__(self, text: str, n_tokens: int) -> None:
        super().__init__()
        self.text = text
        self.n_tokens = n_tokens


class Ended(Message):
    """The answer is complete, or was stopped."""

    def __init__(self, turn: TurnFinished | TurnInterrupted) -> None:
        super().__init__()
        self.turn = turn


class Noted(Message):
    """Something that a person should know, and that stays on the screen."""

    def __init__(self, words: str) -> None:
        super().__init__()
        self.words = words


class Failed(Message):
    """The engine or the model failed; `taken_back` is a message that could not be asked."""

    def __init__(self, words: str, taken_back: str = "") -> None:
        super().__init__()
        self.words = words
        self.taken_back = taken_back


class Batch:
    """Text that waits to be painted."""

    def __init__(self) -> None:
        self._text = ""
        self._n_tokens = 0
        self._since_s = 0.0  # long ago: the first text is painted at once

    def add(self, text: str, n_tokens: int) -> None:
        """Wait with the rest."""
        self._text += text
        self._n_tokens += n_tokens

    def age_s(self) -> float:
        """Seconds since the last `take`."""
        return time.monotonic() - self._since_s

    def take(self) -> TextArrived:
        """All of it, as a message."""
        message = TextArrived(self._text, self._n_tokens)
        self._text, self._n_tokens, self._since_s = "", 0, time.monotonic()
        return message
