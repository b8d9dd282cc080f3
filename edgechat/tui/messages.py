"""Messages from worker threads, widgets and actions to the screens and the application."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from textual.message import Message

if TYPE_CHECKING:
    from pathlib import Path

    from edgechat.chat.commands import Outcome, View
    from edgechat.chat.events import TurnFinished, TurnInterrupted
    from edgechat.chat.messages import Conversation
    from edgechat.chat.messages import Message as ChatMessage
    from edgechat.chat.session import Session
    from edgechat.tui.widgets.prompt import PromptState


class ConversationView(NamedTuple):
    """Snapshot of a conversation and its active path."""

    conversation: Conversation
    path: list[tuple[ChatMessage, tuple[int, int]]]
    """Messages from the first to the head, each with its number among its alternatives and their count."""

    @classmethod
    def of(cls, session: Session) -> ConversationView:
        """Return a snapshot of the conversation. Call it only in the thread that changes the conversation."""
        tree = session.tree
        path = []
        for message in tree.path:
            alternatives = tree.alternatives(message.id)
            path.append((message, (alternatives.index(message.id) + 1, len(alternatives))))
        return cls(session.conversation, path)


class OutgoingMessage(NamedTuple):
    """A message that the user sends, or the edit of an earlier one."""

    text: str
    files: tuple[Path, ...] = ()
    edited_id: str | None = None
    """The message that this one is an alternative to; None for a new message."""
    prompt_state: PromptState | None = None
    """Content of the input, to restore if the message cannot be sent."""


# From the session worker to the conversation pane.


@dataclass
class StatusChanged(Message):
    """Progress of a load, a self-test or a prefill, for the status line."""

    text: str


@dataclass
class LoadStarted(Message):
    """Another model is being loaded."""


@dataclass
class ModelReady(Message):
    """The model is loaded; `warnings` are notes for the user."""

    warnings: list[str]


@dataclass
class ConversationChanged(Message):
    """Another conversation is open, or the active path changed."""

    view: ConversationView
    message_id: str | None = None
    """Message to scroll to; None for the end."""
    unsent_text: str = ""
    """Saved input of this conversation."""


@dataclass
class ReplyStarted(Message):
    """The message is saved and its reply is about to be generated."""

    view: ConversationView
    reply_id: str


@dataclass
class TextArrived(Message):
    """More text, reasoning and tokens of the reply."""

    text: str
    reasoning: str
    n_tokens: int


@dataclass
class ReplyEnded(Message):
    """The reply is complete or was stopped."""

    turn: TurnFinished | TurnInterrupted
    view: ConversationView


@dataclass
class TitleChanged(Message):
    """The model generated a title for the conversation."""

    conversation: Conversation


@dataclass
class ContextMeasured(Message):
    """Size of the prompt if `text` were sent now; 0 tokens if it would not fit."""

    text: str
    context_tokens: int
    warning: str


@dataclass
class NoteAdded(Message):
    """A note for the transcript."""

    text: str


@dataclass
class SessionFailed(Message):
    """A reply, a load or a command failed."""

    text: str
    view: ConversationView | None
    taken_back: OutgoingMessage | None = None
    """The message that could not be sent, to be restored in the input."""
    ends_operation: bool = False
    """True if a reply or a load failed that the screen counts as pending."""


# From the session worker and the actions to the chat screen.


@dataclass
class CommandFinished(Message):
    """A slash command was run."""

    outcome: Outcome


@dataclass
class ConversationsChanged(Message):
    """The list of conversations may have changed."""


@dataclass
class ViewRequested(Message):
    """A command or a key opens a list or a screen."""

    view: View
    argument: str = ""


@dataclass
class CopyRequested(Message):
    """Text to copy; `subject` names it for the notification."""

    text: str
    subject: str


# Messages that downloads post.


@dataclass
class DownloadEnded(Message):
    """A download ended: with the name of the installed model, or with a problem."""

    reference: str
    name: str
    problem: str
