"""Slash commands, defined once for the terminal UI and the line-by-line chat.

A command with a handler works the same in every front end: the handler takes the session and the argument, and returns
an `Outcome`. A command without a handler opens a view, which every front end implements itself.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import msgspec

from edgechat.chat.command_arguments import (
    choose_export_path,
    parse_alternative_index,
    parse_best,
    parse_collections,
    parse_reasoning,
    parse_setting,
    parse_thinking,
)
from edgechat.errors import UsageError
from edgechat.humanize import format_count

if TYPE_CHECKING:
    from edgechat.chat.events import SessionEvent
    from edgechat.chat.messages import Conversation, Message, Role
    from edgechat.chat.session import Session
    from edgechat.chat.store import Store
    from edgechat.models.events import LoadCallback

DELETION_NOTICE: Final = "Message deleted. Use /undo to restore it."
_MAX_CONVERSATIONS: Final = 10_000

View = Literal[
    "conversations", "search", "editor", "copy", "models", "personas", "themes", "settings", "plan", "figures", "help",
    "documents", "also", "compare", "suspend", "quit",
]  # fmt: skip
"""List, screen or terminal action that every front end implements itself."""

RunMode = Literal["caller", "side", "turn", "reply", "beside"]
"""Thread and time at which a front end runs a handler.

- "caller": immediately, on the calling thread.
- "side": on a separate thread, even while a reply is generated.
- "turn": only while no reply is generated, because the handler changes the conversation.
- "reply": like "turn", for a handler whose outcome generates a reply.
- "beside": on a thread of its own, for a handler whose outcome generates a reply beside the current one.
"""


class Destination(NamedTuple):
    """Conversation to switch to: an existing conversation, or a new one with `settings`."""

    conversation_id: str | None = None
    """ID of the conversation to open; None starts a new conversation."""
    message_id: str | None = None
    """ID of a message to show; the branch with this message becomes the active path."""
    words: tuple[str, ...] = ()
    """Searched words and phrases, to be marked in the message."""
    settings: Mapping[str, object] = MappingProxyType({})
    """Settings of a new conversation."""


class Outcome(NamedTuple):
    """Result of a command: a text for the user, and actions that the front end carries out."""

    text: str = ""
    is_note: bool = False
    """True if `text` remains in the transcript (for example an export path); False for a temporary notification."""
    start_reply: Callable[[], Iterator[SessionEvent]] | None = None
    """Function that generates a reply and yields its events; None if the command generates no reply."""
    destination: Destination | None = None
    """Conversation to switch to; None to stay in the current conversation."""
    model: str = ""
    """Name of the model to load; "" keeps the current model."""
    attachment: Path | None = None
    """File to attach to the next message, or None."""
    detach: str | None = None
    """Name of an attachment to remove from the next message, "" for the last one; None to remove none."""
    export_to: Path | None = None
    """File to export the conversation to before `text` is shown, or None."""
    path_changed: bool = False
    """True if the active path changed and the front end must display the conversation again."""


Handler = Callable[["Session", str], Outcome]


class Command(NamedTuple):
    """Slash command with its name, argument and help text, and its handler or view."""

    name: str
    argument: str
    """Placeholder of the argument in help texts; in square brackets if optional, "" if there is no argument."""
    summary: str
    run: Handler | None = None
    run_mode: RunMode = "turn"
    view: View | None = None
    """View that opens if the command has no handler, or if the user typed no argument."""
    aliases: tuple[str, ...] = ()
    """Other names of the command, such as its names in other programs."""
    stops_reply: bool = False
    """True if the command stops the reply that is being generated, instead of waiting for the user to stop it."""
    needs_argument: bool = False
    """True if the command without an argument fails, uses a default name, or only shows or removes a value.

    A front end that offers commands in a list types such a command into the input field instead of running it.
    """

    @property
    def description(self) -> str:
        """The summary, followed by the aliases."""
        aliases = ", ".join(f"/{alias}" for alias in self.aliases)
        return f"{self.summary} (also {aliases})" if aliases else self.summary

    def opens_view(self, argument: str) -> bool:
        """Return whether the front end opens `view` instead of running the handler."""
        return self.run is None or (self.view is not None and not argument)


# Functions that all front ends use


def go_to(session: Session, destination: Destination) -> bool:
    """Open the conversation and branch of `destination`; return False if its message does not exist.

    Raises EdgechatError.
    """
    conversation_id, message_id = destination.conversation_id, destination.message_id
    if conversation_id is None:
        session.switch_conversation()
        if destination.settings:
            session.override_settings(**destination.settings)
    elif session.conversation.id != conversation_id:
        session.switch_conversation(session.store.conversation(conversation_id))
    if message_id is None or message_id not in session.tree:
        return message_id is None
    if all(m.id != message_id for m in session.tree.path):
        session.select_alternative(message_id)
    return True


def load_model(session: Session, name: str, on_progress: LoadCallback) -> str:
    """Load the model called `name` for the next replies; return a status text. Raises EdgechatError."""
    from edgechat.catalogue import registry
    from edgechat.chat.model_targets import find_model_target

    target = find_model_target(msgspec.structs.replace(session.settings, model=name))
    session.change_model(name, target, on_progress)
    if session.store.is_persistent and not session.source.is_remote:
        registry.record_use(session.model_path)
    return f"Model for the next replies: {session.source.description or session.model_name}"


def last_message(session: Session, role: Role) -> Message:
    """Return the last message with `role` on the active path. Raises UsageError if no message has this role."""
    message = next((m for m in reversed(session.tree.path) if m.role == role), None)
    if message is None:
        raise UsageError("This conversation has no messages yet")
    return message


def remove_attachment(attachments: list[Path], name: str) -> str:
    """Remove the file with the path or the name `name`, by default the last one; return a status text.

    A path has priority over a name. Raises UsageError if there is no such file.
    """
    same_path = [f for f in attachments if str(f) == name]
    files = same_path or [f for f in attachments if name in {"", f.name}]
    if not files:
        names = ", ".join(f.name for f in attachments)
        raise UsageError(f"{name} is not attached. Attached: {names}." if names and name else "No file is attached.")
    file = files[-1]
    attachments.remove(file)
    return f"{file.name} will not be sent"


def find_by_title(store: Store, text: str) -> Conversation:
    """Return the newest conversation with `text` in its title. Raises StoreError; UsageError if no title matches."""
    for summary in store.list_conversations(limit=_MAX_CONVERSATIONS):
        if text.lower() in summary.conversation.title.lower():
            return summary.conversation
    raise UsageError(f"No conversation has {text!r} in its title. Use /search to search all messages.")


def load_persona_settings(name: str) -> tuple[dict[str, object], str]:
    """Return the settings of a persona, and its model ("" for the current model). Raises SettingsError."""
    from edgechat.chat import personas

    values = dict(personas.load_settings(name))
    return values, str(values.pop("model", ""))


# Handlers of commands that act on conversations


def _new(_session: Session, persona: str) -> Outcome:
    values, model = load_persona_settings(persona) if persona else ({}, "")
    return Outcome("New conversation", destination=Destination(settings=values), model=model)


def _open(session: Session, title: str) -> Outcome:
    conversation = find_by_title(session.store, title)
    return Outcome(f"Opened: {conversation.title}", destination=Destination(conversation.id))


def _rename(session: Session, title: str) -> Outcome:
    session.rename(title)
    return Outcome(f"Title: {session.conversation.title}")


def _pin(session: Session, _argument: str) -> Outcome:
    is_pinned = not session.conversation.pinned
    session.pin(on=is_pinned)
    return Outcome("Pinned" if is_pinned else "Unpinned")


def _export(session: Session, name: str) -> Outcome:
    last_message(session, "user")
    file = choose_export_path(name, session.conversation.title)
    return Outcome(f"Exported to {file}", is_note=True, export_to=file)


# Handlers of commands that act on messages


def _retry(session: Session, _argument: str) -> Outcome:
    return Outcome(start_reply=session.regenerate)


def _best(session: Session, argument: str) -> Outcome:
    n_replies, method = parse_best(argument)
    return Outcome(start_reply=lambda: session.regenerate(n_replies=n_replies, pick=method))


def _earlier(session: Session, _argument: str) -> Outcome:
    day = session.insert_earlier_reply().format_day(dt.datetime.now().astimezone().date())
    return Outcome(f"Earlier reply{day and f' of {day}'}; /retry generates a new one", path_changed=True)


def _hard(session: Session, _argument: str) -> Outcome:
    return Outcome(f"{session.mark_next_hard().removesuffix('.gguf')} replies to the next message")


def _also(session: Session, name: str) -> Outcome:
    from edgechat.chat.model_targets import find_target

    target = find_target(name, session.settings.remotes)
    return Outcome(start_reply=lambda: session.second.answer(name, target))


def _continue(session: Session, _argument: str) -> Outcome:
    return Outcome(start_reply=session.continue_reply)


def _edit(session: Session, text: str) -> Outcome:
    message_id = last_message(session, "user").id
    return Outcome(start_reply=lambda: session.edit(message_id, text))


def _switch(session: Session, argument: str) -> Outcome:
    tree = session.tree
    message = next((m for m in reversed(tree.path) if len(tree.alternatives(m.id)) > 1), None)
    if message is None:
        raise UsageError("No message on this branch has alternatives. Use /retry or /edit to create alternatives.")
    siblings = tree.alternatives(message.id)
    index = parse_alternative_index(argument, siblings.index(message.id) + 1, len(siblings))
    session.select_alternative(siblings[index])
    return Outcome(f"Alternative {index + 1} of {len(siblings)}", path_changed=True)


def _delete(session: Session, _argument: str) -> Outcome:
    session.delete(last_message(session, "user").id)
    return Outcome(DELETION_NOTICE)


def _undo(session: Session, _argument: str) -> Outcome:
    if not session.undo_delete():
        raise UsageError("No deleted message to restore")
    return Outcome("Message restored", path_changed=True)


def _tokens(session: Session, _argument: str) -> Outcome:
    if session.source.is_remote:
        reply = next((m for m in reversed(session.tree.path) if m.stats is not None), None)
        last = f" The last prompt had {reply.stats.prompt_tokens:,} tokens." if reply and reply.stats else ""
        return Outcome(f"{session.model_name} is a remote model, whose context edgechat does not know.{last}")
    n_tokens, n_dropped = session.context_usage()
    n_ctx = session.model_properties.n_ctx if session.model_properties is not None else 0
    dropped_text = f" The prompt omits {format_count(n_dropped, 'message')}." if n_dropped else ""
    return Outcome(f"{n_tokens:,} of {n_ctx:,} context tokens used.{dropped_text}")


def _attach(_session: Session, name: str) -> Outcome:
    from edgechat.chat.attachments import load_attachments
    from edgechat.chat.mentions import parse_path

    file = parse_path(name)
    load_attachments([file])  # raises AttachmentError for a file that cannot be sent
    return Outcome(f"{file.name} will be sent with the next message", attachment=file)


def _detach(_session: Session, name: str) -> Outcome:
    return Outcome(detach=name)


# Handlers of commands that change the model or settings


def _model(_session: Session, name: str) -> Outcome:
    return Outcome(model=name)


def _persona(session: Session, name: str) -> Outcome:
    values, model = load_persona_settings(name)
    session.override_settings(**values)
    return Outcome(f"Persona: {name}", model=model)


def _system(session: Session, text: str) -> Outcome:
    session.override_settings(system_prompt=text)
    return Outcome("System prompt changed" if text else "System prompt removed")


def _docs(session: Session, argument: str) -> Outcome:
    session.override_settings(docs=parse_collections(argument, session.documents.search.library.names()))
    return Outcome(f"Documents: {', '.join(session.settings.docs) or 'none'}")


def _reasoning(session: Session, word: str) -> Outcome:
    session.override_settings(reasoning=parse_reasoning(word))
    return Outcome(f"Reasoning: {word.lower()}")


def _thinking(session: Session, text: str) -> Outcome:
    if not text:
        return Outcome(f"Limit of reasoning: {session.settings.thinking or 'not set'}")
    session.override_settings(thinking=parse_thinking(text))
    return Outcome(". ".join(filter(None, (f"Limit of reasoning: {text.lower()}", session.describe_useless_limit()))))


def _now(session: Session, _argument: str) -> Outcome:
    # Not an error without a reply, because the key can be pressed just after the end of the reply.
    return Outcome("The model answers now" if session.end_thinking() else "No reply is being generated")


def _temperature(session: Session, text: str) -> Outcome:
    return _set(session, f"temperature {text}") if text else Outcome(f"temperature = {session.settings.temperature:g}")


def _set(session: Session, argument: str) -> Outcome:
    name, value = parse_setting(argument)
    session.override_settings(**{name: value})
    return Outcome(f"{name} = {value}")


COMMANDS: Final = (
    Command("new", "[PERSONA]", "Start a new conversation", _new, "caller", aliases=("clear",)),
    Command(
        "open",
        "[TITLE]",
        "Open a conversation by part of its title, or list all",
        _open,
        "side",
        "conversations",
        aliases=("history", "conversations"),
    ),
    Command("search", "WORDS", "Search all conversations", view="search"),
    Command("retry", "", "Generate an alternative reply", _retry, "reply", aliases=("regenerate",)),
    Command("best", "[N] [METHOD]", "Pick the best of N new replies: agree, likely or judge", _best, "reply"),
    Command(
        "earlier", "", "Use the reply of an earlier conversation to the same first message", _earlier, stops_reply=True
    ),
    Command("hard", "", "Let the large model of the route reply to the next message", _hard),
    Command("also", "[MODEL]", "Answer with another model, too; both replies remain", _also, "beside", "also"),
    Command("compare", "[A B]", "Show two replies side by side: the newest two, or numbers", view="compare"),
    Command("continue", "", "Continue a stopped reply", _continue, "reply"),
    Command("edit", "[TEXT]", "Edit your last message; the original remains", _edit, "reply", "editor"),
    Command("switch", "[N]", "Switch to the next alternative, or to number N", _switch),
    Command("delete", "", "Delete your last message and its reply", _delete),
    Command("undo", "", "Restore the last deleted message", _undo),
    Command("rename", "TITLE", "Change the title of the conversation", _rename, needs_argument=True),
    Command("pin", "", "Pin the conversation to the top of the list, or unpin", _pin),
    Command("attach", "FILE", "Attach a file to the next message (like @FILE)", _attach, "caller", needs_argument=True),
    Command("detach", "[FILE]", "Remove an attachment, by default the last one", _detach, "caller"),
    Command("copy", "[code] [N]", "Copy the last reply, its last code block, or code block N", view="copy"),
    Command(
        "export",
        "[FILE]",
        "Export the conversation to a .md, .html or .json file",
        _export,
        "side",
        needs_argument=True,
    ),
    Command("model", "[NAME]", "Choose the model for the next replies", _model, "caller", "models", ("models",)),
    Command("persona", "[NAME]", "Use a persona in this conversation", _persona, view="personas"),
    Command("system", "[TEXT]", "Set the system prompt of this conversation", _system, needs_argument=True),
    Command(
        "docs",
        "[NAME...|off]",
        "Choose the collections of documents that answers come from",
        _docs,
        view="documents",
        aliases=("documents",),
    ),
    Command("reasoning", "on|off|auto", "Turn reasoning before a reply on or off", _reasoning, needs_argument=True),
    Command(
        "thinking",
        "[LIMIT]",
        "Limit reasoning: off, low, medium, high, auto, on, 500 (tokens), 30s",
        _thinking,
        needs_argument=True,
    ),
    Command("now", "", "End the reasoning of the current reply; the model answers now", _now, "side"),
    Command(
        "temperature",
        "[T]",
        "Show or set the sampling temperature of this conversation",
        _temperature,
        aliases=("temp",),
        needs_argument=True,
    ),
    Command("set", "NAME VALUE", "Change a setting of this conversation", _set, needs_argument=True),
    Command("tokens", "", "Count the context tokens that the conversation uses", _tokens, aliases=("context",)),
    Command("theme", "[NAME]", "Choose the colour theme", view="themes", aliases=("themes",)),
    Command("settings", "", "Show all settings", view="settings", aliases=("config",)),
    Command("plan", "", "Show why this model was chosen, and its memory plan", view="plan"),
    Command("figures", "", "Show or hide the speed of each reply", view="figures"),
    Command("help", "", "Show keys and commands", view="help", aliases=("?",)),
    Command("suspend", "", "Suspend edgechat; `fg` in the shell resumes it", view="suspend"),
    Command("quit", "", "Quit edgechat", view="quit", aliases=("exit", "q")),
)
COMMANDS_BY_NAME: Final[Mapping[str, Command]] = {
    name: command for command in COMMANDS for name in (command.name, *command.aliases)
}
"""Commands by name and by alias."""
