"""What a Session says while it works."""

from __future__ import annotations

import msgspec

from edgechat.chat.messages import Message
from edgechat.models.events import ModelLoadProgressed


class TurnStarted(msgspec.Struct, frozen=True, kw_only=True):
    """The message is kept, and an empty answer with it; the engine has not seen them yet."""

    message: Message
    """What is answered."""
    reply: Message


class TurnsDropped(msgspec.Struct, frozen=True, kw_only=True):
    """The conversation is longer than the context: whole turns at its front are not shown to the model."""

    n_messages: int
    context_start_id: str
    """The first message that the model still sees."""


class PromptProgressed(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the prompt is computed."""

    done_tokens: int
    total_tokens: int


class ReplyTextGenerated(msgspec.Struct, frozen=True, kw_only=True):
    """More of the answer, or of the reasoning before it."""

    text: str
    reasoning: str
    n_tokens: int
    reply_index: int = 0
    """Which of the answers, if several are made side by side."""


class NotSaved(msgspec.Struct, frozen=True, kw_only=True):
    """What was said so far could not be written; it is tried again, and the answer goes on."""

    reason: str


class TurnFinished(msgspec.Struct, frozen=True, kw_only=True):
    """The answer is complete: the model ended it, or a length limit did."""

    reply: Message
    context_tokens: int
    alternatives: tuple[Message, ...] = ()
    """The other answers that were made beside it."""


class TurnInterrupted(msgspec.Struct, frozen=True, kw_only=True):
    """The answer was stopped; what was said is kept, and can be continued."""

    reply: Message
    context_tokens: int
    alternatives: tuple[Message, ...] = ()
    """The other answers that were made beside it."""


SessionEvent = (
    ModelLoadProgressed | TurnStarted | TurnsDropped | PromptProgressed | ReplyTextGenerated | NotSaved | TurnFinished
    | TurnInterrupted
)  # fmt: skip


def progress_text(event: SessionEvent) -> str:
    """What goes on, for a line that the next one replaces; "" if the event is not of that kind."""
    if isinstance(event, ModelLoadProgressed):
        return event.message
    if isinstance(event, PromptProgressed):
        return f"reading {event.done_tokens} of {event.total_tokens} tokens"
    return "thinking" if isinstance(event, ReplyTextGenerated) and event.reasoning and not event.text else ""


def notice_text(event: SessionEvent) -> str:
    """What a person should know and be able to read later; "" if the event is not of that kind."""
    if isinstance(event, TurnsDropped):
        return f"the context is full: the model no longer sees the first {event.n_messages} messages"
    return f"not saved: {event.reason}" if isinstance(event, NotSaved) else ""
