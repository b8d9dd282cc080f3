"""What threads tell the screen."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from textual.message import Message

if TYPE_CHECKING:
    from pathlib import Path

    from edgechat.chat.events import TurnFinished, TurnInterrupted
    from edgechat.chat.messages import Conversation
    from edgechat.chat.messages import Message as ChatMessage
    from edgechat.tui.widgets.prompt import PromptState


class ConversationView(NamedTuple):
    """A conversation as it stands, at one moment."""

    conversation: Conversation
    path: list[tuple[ChatMessage, tuple[int, int]]]
    """Its messages from the first to the head, each with which of how many alternatives it is."""


class OutgoingMessage(NamedTuple):
    """What is to be said."""

    text: str
    files: tuple[Path, ...] = ()
    editing: str | None = None
    """The message that it is said instead of; None for a new one."""
    held: PromptState | None = None
    """What the input held."""


class StatusChanged(Message):
    """Something that takes time goes on."""

    def __init__(self, words: str) -> None:
        super().__init__()
        self.words = words


class ModelReady(Message):
    """The model is ready."""


class ConversationChanged(Message):
    """The conversation, or what is said of it, is another one."""

    def __init__(self, view: ConversationView, goal: str | None = None, draft: str = "") -> None:
        """`goal` is a message to be brought into view, `draft` what was typed there and not sent."""
        super().__init__()
        self.view = view
        self.goal = goal
        self.draft = draft


class ReplyStarted(Message):
    """An answer begins to be written; what it answers is kept."""

    def __init__(self, view: ConversationView, answer_id: str) -> None:
        super().__init__()
        self.view = view
        self.answer_id = answer_id


class TitleChanged(Message):
    """The conversation has another title."""

    def __init__(self, conversation: Conversation) -> None:
        super().__init__()
        self.conversation = conversation


class ContextMeasured(Message):
    """How much of the context would be in use if `text` were sent now; 0 if it would not fit."""

    def __init__(self, text: str, context_tokens: int, words: str) -> None:
        super().__init__()
        self.text = text
        self.context_tokens = context_tokens
        self.words = words


class TextArrived(Message):
    """More of the answer."""

    def __init__(self, text: str, reasoning: str, n_tokens: int) -> None:
        super().__init__()
        self.text = text
        self.reasoning = reasoning
        self.n_tokens = n_tokens


class ReplyEnded(Message):
    """The answer is complete, or was stopped."""

    def __init__(self, turn: TurnFinished | TurnInterrupted, view: ConversationView) -> None:
        super().__init__()
        self.turn = turn
        self.view = view


class NoteAdded(Message):
    """Something that a person should know, and that stays on the screen."""

    def __init__(self, words: str) -> None:
        super().__init__()
        self.words = words


class SessionFailed(Message):
    """Something failed; `taken_back` is what could not be said."""

    def __init__(
        self,
        words: str,
        view: ConversationView | None,
        taken_back: OutgoingMessage | None = None,
        *,
        ends: bool = False,
    ) -> None:
        """With `ends`, what failed was an answer or the load that the screen waits for."""
        super().__init__()
        self.words = words
        self.view = view
        self.taken_back = taken_back
        self.ends = ends


class DownloadEnded(Message):
    """A download ended: with the name that the model has now, or with a problem."""

    def __init__(self, reference: str, name: str, problem: str) -> None:
        super().__init__()
        self.reference = reference
        self.name = name
        self.problem = problem


class TextBatch:
    """Text that waits to be painted."""

    def __init__(self) -> None:
        self._text = ""
        self._reasoning = ""
        self._n_tokens = 0
        self._since_s = 0.0  # long ago: the first text is painted at once

    def add(self, text: str, reasoning: str, n_tokens: int) -> None:
        """Wait with the rest."""
        self._text += text
        self._reasoning += reasoning
        self._n_tokens += n_tokens

    def age_s(self) -> float:
        """Seconds since the last `take`."""
        return time.monotonic() - self._since_s

    def take(self) -> TextArrived:
        """All of it, as a message."""
        message = TextArrived(self._text, self._reasoning, self._n_tokens)
        self._text, self._reasoning, self._n_tokens, self._since_s = "", "", 0, time.monotonic()
        return message
