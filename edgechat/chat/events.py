"""Events that a session yields while it runs a turn."""

from __future__ import annotations

import msgspec

from edgechat.chat.messages import Message
from edgechat.models.events import ModelLoadProgressed


class TurnStarted(msgspec.Struct, frozen=True, kw_only=True):
    """A turn started: the message and an empty reply are saved, and the engine has not started yet."""

    message: Message
    """Message that the model replies to."""
    reply: Message


class TurnsDropped(msgspec.Struct, frozen=True, kw_only=True):
    """The conversation is longer than the context, so the prompt omits the first turns."""

    n_messages: int
    """Number of omitted messages."""
    context_start_id: str
    """ID of the first message in the prompt."""


class PromptProgressed(msgspec.Struct, frozen=True, kw_only=True):
    """The engine has processed a part of the prompt (prefill)."""

    done_tokens: int
    total_tokens: int


class ReplyTextGenerated(msgspec.Struct, frozen=True, kw_only=True):
    """New text or reasoning of a reply was generated."""

    text: str
    reasoning: str
    n_tokens: int
    reply_index: int = 0
    """Index of the reply among parallel replies."""


class NotSaved(msgspec.Struct, frozen=True, kw_only=True):
    """Saving the reply failed. Generation continues, and the next checkpoint tries again."""

    reason: str


class TurnFinished(msgspec.Struct, frozen=True, kw_only=True):
    """The reply is complete: the model ended the reply, or the reply reached its length limit."""

    reply: Message
    context_tokens: int
    """Number of tokens in the context after the reply."""
    alternatives: tuple[Message, ...] = ()
    """Other replies that were generated in parallel."""


class TurnInterrupted(msgspec.Struct, frozen=True, kw_only=True):
    """The reply was stopped. Its text is saved, and the model can continue the reply."""

    reply: Message
    context_tokens: int
    """Number of tokens in the context after the reply."""
    alternatives: tuple[Message, ...] = ()
    """Other replies that were generated in parallel."""


SessionEvent = (
    ModelLoadProgressed | TurnStarted | TurnsDropped | PromptProgressed | ReplyTextGenerated | NotSaved | TurnFinished
    | TurnInterrupted
)  # fmt: skip


def progress_text(event: SessionEvent) -> str:
    """Return a temporary status text for an event; "" for events without a status text."""
    if isinstance(event, ModelLoadProgressed):
        return event.message
    if isinstance(event, PromptProgressed):
        return f"Reading {event.done_tokens} of {event.total_tokens} tokens"
    return "Thinking" if isinstance(event, ReplyTextGenerated) and event.reasoning and not event.text else ""


def notice_text(event: SessionEvent) -> str:
    """Return a permanent notice for an event; "" for events without a notice."""
    if isinstance(event, TurnsDropped):
        return f"The context is full: the model no longer sees the first {event.n_messages} messages."
    return f"The reply is not saved: {event.reason}" if isinstance(event, NotSaved) else ""
