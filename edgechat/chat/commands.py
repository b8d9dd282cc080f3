"""Slash commands, defined once for the terminal UI and the line-by-line chat.

A command with a handler works the same in every front end: the handler takes the session and the argument, and returns
an `Outcome`. A command without a handler opens a list or a screen, which every front end implements itself.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from edgechat.errors import UsageError

if TYPE_CHECKING:
    from edgechat.chat.events import SessionEvent
    from edgechat.chat.messages import Conversation, Message, Role
    from edgechat.chat.session import Session
    from edgechat.chat.store import Store
    from edgechat.models.events import LoadCallback

DELETED: Final = "Deleted. /undo restores it."
_MAX_CONVERSATIONS: Final = 10_000
_COMMAND_PATTERN: Final = re.compile(r"/([A-Za-z]+)(?:[ \t]+(.*))?", re.DOTALL)

View = Literal[
    "conversations", "search", "editor", "copy", "models", "personas", "settings", "plan", "figures", "help", "suspend",
    "quit",
]  # fmt: skip
"""List, screen or terminal function that a front end implements for a command without a handler."""

Lane = Literal["caller", "side", "turn", "reply"]
"""Thread and time at which a front end runs a handler.

"caller": at once, on the calling thread. "side": on another thread, also while a reply is generated. "turn": between
replies, because the handler changes the conversation. "reply": like "turn"; the outcome then generates a reply.
"""


class Destination(NamedTuple):
    """Conversation to switch to: an existing one, or a new one with given settings."""

    conversation_id: str | None = None
    """ID of the conversation to open; None starts a new conversation."""
    message_id: str | None = None
    """ID of a message to show; the branch with this message becomes the active path."""
    settings: Mapping[str, object] = MappingProxyType({})
    """Settings of a new conversation."""


class Outcome(NamedTuple):
    """Result of a command: a text for the user, and actions for the front end."""

    text: str = ""
    is_note: bool = False
    """True if `text` stays on the screen, such as the name of an exported file."""
    reply: Callable[[], Iterator[SessionEvent]] | None = None
    """Function whose iterator generates a reply and yields its events."""
    destination: Destination | None = None
    """Conversation to switch to."""
    model: str = ""
    """Name of a model to load."""
    attachment: Path | None = None
    """File to attach to the next message."""
    export_to: Path | None = None
    """File to export the conversation to, before `text` is shown."""
    shows_path: bool = False
    """True if the messages on the active path changed, so that the front end must show them."""


Handler = Callable[["Session", str], Outcome]


class Command(NamedTuple):
    """Slash command with its name, argument and help text, and its handler or view."""

    name: str
    argument: str
    """Placeholder of the argument in help texts; in square brackets if optional, "" if there is no argument."""
    summary: str
    run: Handler | None = None
    lane: Lane = "turn"
    view: View | None = None
    """View that opens if the command has no handler, or if the user typed no argument."""

    def opens_view(self, argument: str) -> bool:
        """Return True if the front end opens `view` instead of running the handler."""
        return self.run is None or (self.view is not None and not argument)


def parse(text: str) -> tuple[Command, str] | None:
    """Split a line into command and argument; return None if the line is a message.

    A space before a / makes the line a message. Raises UsageError for an unknown command or a wrong argument.
    """
    match = _COMMAND_PATTERN.fullmatch(text.rstrip()) if text.startswith("/") else None
    if match is None:
        return None
    name = match[1].lower()
    if name not in BY_NAME:
        similar = difflib.get_close_matches(name, BY_NAME, n=1)
        hint = f"Did you mean /{similar[0]}?" if similar else "/help lists all commands."
        raise UsageError(f"Unknown command /{name}. {hint} (To send the line as a message, put a space before /.)")
    command, argument = BY_NAME[name], (match[2] or "").strip()
    if argument and not command.argument:
        raise UsageError(f"/{name} takes no argument: {command.summary}")
    if not argument and command.argument and not command.argument.startswith("["):
        raise UsageError(f"Usage: /{name} {command.argument}: {command.summary}")
    return command, argument


# Functions that the front ends share


def go_to(session: Session, destination: Destination) -> bool:
    """Switch to a conversation; return False if the conversation lacks the message. Raises EdgechatError."""
    target, message_id = destination.conversation_id, destination.message_id
    if target is None:
        session.switch_conversation()
        if destination.settings:
            session.override_settings(**destination.settings)
    elif session.conversation.id != target:
        session.switch_conversation(session.store.conversation(target))
    if message_id is None or message_id not in session.tree:
        return message_id is None
    if all(m.id != message_id for m in session.tree.path):
        session.select_alternative(message_id)
    return True


def load_model(session: Session, name: str, on_progress: LoadCallback) -> str:
    """Load another model for the next replies; return a status text. Raises EdgechatError."""
    from edgechat.catalogue import registry
    from edgechat.catalogue.resolve import find_model

    path = find_model(name)
    session.change_model(name, path, on_progress)
    if session.store.is_persistent:
        registry.record_use(path)
    return f"{path.stem} generates the next replies"


def copied_text(text: str, code_blocks: Callable[[str], list[str]], argument: str) -> str:
    """Return the text that `/copy` copies: the whole message or its last code block. Raises UsageError."""
    if argument not in {"", "code"}:
        raise UsageError("/copy copies the last reply, /copy code its last code block")
    if not argument:
        return text
    blocks = code_blocks(text)
    if not blocks:
        raise UsageError("This message has no code block")
    return blocks[-1]


def last_message(session: Session, role: Role) -> Message:
    """Return the last message with `role` on the active path. Raises UsageError if no message has this role."""
    message = next((m for m in reversed(session.tree.path) if m.role == role), None)
    if message is None:
        raise UsageError("This conversation has no messages yet")
    return message


def find_by_title(store: Store, text: str) -> Conversation:
    """Return the newest conversation with `text` in its title. Raises UsageError without a match, and StoreError."""
    for summary in store.list_conversations(limit=_MAX_CONVERSATIONS):
        if text.lower() in summary.conversation.title.lower():
            return summary.conversation
    raise UsageError(f"No conversation has {text!r} in its title. /search searches the messages.")


def persona_settings(name: str) -> tuple[dict[str, object], str]:
    """Return the settings of a persona, and its model ("" for the current model). Raises SettingsError."""
    from edgechat.chat import personas

    values = dict(personas.load_settings(name))
    return values, str(values.pop("model", ""))


# Handlers for conversations


def _new(_session: Session, persona: str) -> Outcome:
    values, model = persona_settings(persona) if persona else ({}, "")
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
    file = export_path(name, session.conversation.title)
    return Outcome(f"Exported to {file}", is_note=True, export_to=file)


# Handlers for messages


def _retry(session: Session, _argument: str) -> Outcome:
    return Outcome(reply=session.regenerate)


def _continue(session: Session, _argument: str) -> Outcome:
    return Outcome(reply=session.continue_reply)


def _edit(session: Session, text: str) -> Outcome:
    message_id = last_message(session, "user").id
    return Outcome(reply=lambda: session.edit(message_id, text))


def _switch(session: Session, argument: str) -> Outcome:
    tree = session.tree
    message = next((m for m in reversed(tree.path) if len(tree.alternatives(m.id)) > 1), None)
    if message is None:
        raise UsageError("No message on this branch has alternatives. Use /retry or /edit to create alternatives.")
    siblings = tree.alternatives(message.id)
    index = alternative_index(argument, siblings.index(message.id) + 1, len(siblings))
    session.select_alternative(siblings[index])
    return Outcome(f"Alternative {index + 1} of {len(siblings)}", shows_path=True)


def _delete(session: Session, _argument: str) -> Outcome:
    session.delete(last_message(session, "user").id)
    return Outcome(DELETED)


def _undo(session: Session, _argument: str) -> Outcome:
    if not session.undo_delete():
        raise UsageError("There is no deleted message to restore")
    return Outcome("Restored", shows_path=True)


def _attach(session: Session, name: str) -> Outcome:
    from edgechat.chat.attachments import load_attachments
    from edgechat.chat.mentions import parse_path

    file = parse_path(name)
    load_attachments([file], session.model_path.stem)  # raises AttachmentError for a file that cannot be sent
    return Outcome(f"{file.name} is sent with the next message", attachment=file)


# Handlers for the model and settings


def _model(_session: Session, name: str) -> Outcome:
    return Outcome(model=name)


def _persona(session: Session, name: str) -> Outcome:
    values, model = persona_settings(name)
    session.override_settings(**values)
    return Outcome(f"Persona: {name}", model=model)


def _system(session: Session, text: str) -> Outcome:
    session.override_settings(system_prompt=text)
    return Outcome("System prompt changed" if text else "System prompt removed")


def _reasoning(session: Session, word: str) -> Outcome:
    session.override_settings(reasoning=parse_reasoning(word))
    return Outcome(f"Reasoning: {word.lower()}")


def _set(session: Session, argument: str) -> Outcome:
    name, value = parse_setting(argument)
    session.override_settings(**{name: value})
    return Outcome(f"{name} = {value}")


# Parsing of arguments


def parse_reasoning(word: str) -> bool | None:
    """Parse the argument of `/reasoning`: True for on, False for off, None for auto. Raises UsageError."""
    try:
        return {"on": True, "yes": True, "off": False, "no": False, "auto": None}[word.lower()]
    except KeyError:
        raise UsageError(f"{word!r} is not on, off or auto") from None


def parse_setting(argument: str) -> tuple[str, object]:
    """Parse the argument of `/set` into a setting's name and value. Raises UsageError."""
    from edgechat.config import parse_value

    name, _, text = argument.partition(" ")
    if not text.strip():
        raise UsageError("Usage: /set NAME VALUE changes a setting of this conversation")
    return name, parse_value(name, text.strip())


def alternative_index(argument: str, number: int, count: int) -> int:
    """Return the zero-based index of the alternative that `/switch` selects.

    Without an argument, this is the next one after the one-based `number` of `count`. Raises UsageError.
    """
    if argument and not (argument.isdecimal() and 1 <= int(argument) <= count):
        raise UsageError(f"There are {count} alternatives: /switch 1 to /switch {count}")
    return int(argument) - 1 if argument else number % count


def export_path(name: str, title: str) -> Path:
    """Return the absolute path of an export file: `name`, or an unused name made from the conversation's title.

    Raises UsageError if the file `name` exists, so that no file is overwritten.
    """
    from edgechat.chat.mentions import parse_path

    if name:
        path = parse_path(name).absolute()
        if path.exists():
            raise UsageError(f"{path} exists already. Choose another file name.")
        return path
    letters = "".join(c if c.isalnum() or c in "-_" else " " for c in title)
    stem = "-".join(letters.split())[:60] or "conversation"
    numbered_stems = (f"{stem}-{number}" for number in itertools.count(2))
    return next(p for s in itertools.chain((stem,), numbered_stems) if not (p := Path(f"{s}.md").absolute()).exists())


COMMANDS: Final = (
    Command("new", "[PERSONA]", "Start a new conversation", _new, "caller"),
    Command("open", "[TITLE]", "Open a conversation by part of its title, or list all", _open, "side", "conversations"),
    Command("search", "WORDS", "Search all conversations", view="search"),
    Command("retry", "", "Generate an alternative reply", _retry, "reply"),
    Command("continue", "", "Continue a stopped reply", _continue, "reply"),
    Command("edit", "[TEXT]", "Edit your last message; the original remains", _edit, "reply", "editor"),
    Command("switch", "[N]", "Switch to the next alternative, or to number N", _switch),
    Command("delete", "", "Delete your last message and its reply", _delete),
    Command("undo", "", "Restore the last deleted message", _undo),
    Command("rename", "TITLE", "Change the title of the conversation", _rename),
    Command("pin", "", "Pin the conversation to the top of the list, or unpin", _pin),
    Command("attach", "FILE", "Attach a file to the next message (like @FILE)", _attach, "caller"),
    Command("copy", "[code]", "Copy the last reply, or its last code block", view="copy"),
    Command("export", "[FILE]", "Export the conversation to a .md, .html or .json file", _export, "side"),
    Command("model", "[NAME]", "Choose the model for the next replies", _model, "caller", "models"),
    Command("persona", "[NAME]", "Use a persona in this conversation", _persona, view="personas"),
    Command("system", "[TEXT]", "Set the system prompt of this conversation", _system),
    Command("reasoning", "on|off|auto", "Turn reasoning before a reply on or off", _reasoning),
    Command("set", "NAME VALUE", "Change a setting of this conversation", _set),
    Command("settings", "", "Show all settings", view="settings"),
    Command("plan", "", "Show why this model was chosen, and its memory plan", view="plan"),
    Command("figures", "", "Show or hide the speed of each reply", view="figures"),
    Command("help", "", "Show keys and commands", view="help"),
    Command("suspend", "", "Suspend edgechat; `fg` in the shell resumes it", view="suspend"),
    Command("quit", "", "Quit edgechat", view="quit"),
)
BY_NAME: Final[Mapping[str, Command]] = {command.name: command for command in COMMANDS}
