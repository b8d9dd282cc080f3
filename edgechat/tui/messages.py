"""Textual messages from worker threads, widgets and actions to the screens and the application."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from textual.message import Message

from edgechat.errors import EdgechatError
from edgechat.tui.conversation_passages import read_passages

if TYPE_CHECKING:
    from pathlib import Path

    from edgechat.chat.commands import Outcome, View
    from edgechat.chat.events import TurnFinished, TurnInterrupted
    from edgechat.chat.messages import Conversation
    from edgechat.chat.messages import Message as ChatMessage
    from edgechat.chat.personas import Persona
    from edgechat.chat.session import Session
    from edgechat.tui.conversation_passages import ConversationPassages
    from edgechat.tui.passage_items import PassageItem
    from edgechat.tui.widgets.prompt import PromptState


class ConversationView(NamedTuple):
    """Snapshot of a conversation and its active path."""

    conversation: Conversation
    path: list[tuple[ChatMessage, tuple[int, int]]]
    """Messages from the first to the head, each with (its number among its alternatives, number of alternatives)."""
    persona: Persona | None = None
    """Persona with the same settings as the conversation; None if there is no such persona."""
    passages: ConversationPassages | None = None
    """Passages of documents that belong to the messages of the path; None if there are none."""

    @classmethod
    def from_session(cls, session: Session) -> ConversationView:
        """Return a snapshot of the conversation. Call it only in the thread that changes the conversation."""
        from edgechat.chat import personas

        tree = session.tree
        path: list[tuple[ChatMessage, tuple[int, int]]] = []
        persona: Persona | None = None
        for message in tree.path:
            alternatives = tree.alternatives(message.id)
            path.append((message, (alternatives.index(message.id) + 1, len(alternatives))))
        with contextlib.suppress(EdgechatError):  # the file of a persona may have been deleted meanwhile
            persona = personas.find_by_settings(session.conversation.settings)
        passages = read_passages(session.store, tree.path)
        return cls(session.conversation, path, persona, passages if passages.sets else None)


class OutgoingMessage(NamedTuple):
    """A new or edited user message that is to be sent."""

    text: str
    files: tuple[Path, ...] = ()
    edited_id: str | None = None
    """ID of the message that the user edited; None for a new message."""
    prompt_state: PromptState | None = None
    """Content of the input, to be restored if the message cannot be sent."""


# Messages from the session worker to the conversation pane


@dataclass(repr=False, eq=False)
class StatusChanged(Message):
    """New status text with the progress of a load, a self-test or a prefill."""

    text: str


@dataclass(repr=False, eq=False)
class LoadStarted(Message):
    """The session worker has started to load another model."""


@dataclass(repr=False, eq=False)
class ModelReady(Message):
    """The model is loaded; `warnings` are shown as notes in the transcript."""

    warnings: list[str]


@dataclass(repr=False, eq=False)
class ConversationChanged(Message):
    """The user switched to another conversation, or the active path changed."""

    view: ConversationView
    message_id: str | None = None
    """ID of the message to scroll to; None to scroll to the end after a switch."""
    unsent_text: str = ""
    """Saved unsent message of this conversation, or an empty string."""


@dataclass(repr=False, eq=False)
class ReplyStarted(Message):
    """The user's message is saved, and generation of the reply starts."""

    view: ConversationView
    reply_id: str


@dataclass(repr=False, eq=False)
class TextArrived(Message):
    """New text, reasoning and number of tokens of the reply that is being generated."""

    text: str
    reasoning: str
    n_tokens: int
    thinking: str = ""
    """Status text of the reasoning, with its time and its limit; "" if the model is not reasoning."""
    pick: str = ""
    """Status text of the replies of which one is picked; "" if no reply is picked."""
    drafts: str = ""
    """What the drafts have gained so far, such as `1.5x by the drafter`; "" without a gain."""


@dataclass(repr=False, eq=False)
class ReplyEnded(Message):
    """The reply is complete or was stopped."""

    turn: TurnFinished | TurnInterrupted
    view: ConversationView


@dataclass(repr=False, eq=False)
class EarlierReplyFound(Message):
    """An earlier conversation began with nearly the same message, and has a reply."""

    conversation_id: str
    """ID of the open conversation when the search began."""
    text: str
    """Clause with the day, such as "Asked on 3 November"."""


@dataclass(repr=False, eq=False)
class TitleChanged(Message):
    """The model generated a title for the conversation."""

    conversation: Conversation


@dataclass(repr=False, eq=False)
class ContextMeasured(Message):
    """Number of context tokens that are used if `text` is sent now; 0 if the prompt does not fit."""

    number: int
    """Number of the request for this measurement."""
    text: str
    context_tokens: int
    warning: str
    n_tokens_by_file: dict[Path, int]
    """Numbers of tokens of the attachments."""


@dataclass(repr=False, eq=False)
class NoteAdded(Message):
    """A note for the transcript."""

    text: str


@dataclass(repr=False, eq=False)
class SessionFailed(Message):
    """A reply, a load or a command failed."""

    text: str
    view: ConversationView | None
    failed_message: OutgoingMessage | None = None
    """Message that could not be sent and is to be restored in the input; None if there is none."""
    ends_operation: bool = False
    """True if the failed operation is a load or a reply, which the conversation pane counts as pending."""
    line: str = ""
    """Command that the user typed and that failed; "" if none was typed."""
    is_mistake: bool = False
    """True if the user made a mistake: an invalid command, or a key that cannot be used now."""


# Messages from the threads of second replies to the chat screen


@dataclass(repr=False, eq=False)
class SecondReplyProgressed(Message):
    """The model of a second reply is being loaded, or its reply has started."""

    status: str


@dataclass(repr=False, eq=False)
class SecondReplyEnded(Message):
    """A second reply is complete, was stopped or failed; `text` says so."""

    text: str
    is_error: bool = False
    line: str = ""
    """Command that the user typed and that failed; "" if none was typed."""
    is_mistake: bool = False


# Messages from the session worker and the actions to the chat screen


@dataclass(repr=False, eq=False)
class CommandFinished(Message):
    """A slash command has finished."""

    outcome: Outcome


@dataclass(repr=False, eq=False)
class ConversationsChanged(Message):
    """The list of conversations may have changed."""


@dataclass(repr=False, eq=False)
class ViewRequested(Message):
    """A command or a key requests a list or a screen."""

    view: View
    argument: str = ""


@dataclass(repr=False, eq=False)
class PassagesRequested(Message):
    """A click or a key requests the panel with passages."""

    items: list[PassageItem]
    index: int = 0
    """Index of the passage to show first."""
    shows_list: bool = False
    """True to show a list of the passages above the text."""


@dataclass(repr=False, eq=False)
class CopyRequested(Message):
    """Text to copy; `label` is a word for it in the notification, such as "Reply"."""

    text: str
    label: str


# Messages from workers to the screens that measure the speed of this machine


@dataclass(repr=False, eq=False)
class MeasurementProgressed(Message):
    """The measurement of the speed has completed a part; `text` is empty at its end."""

    text: str


# Messages from downloads to the application


@dataclass(repr=False, eq=False)
class DownloadEnded(Message):
    """A download succeeded (`name` is the installed model), or failed (`problem` is the reason)."""

    reference: str
    name: str
    problem: str
