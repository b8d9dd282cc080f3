"""Slash commands, defined once for the terminal UI and the line-by-line chat.

A command with a handler does the same in every front end: the handler gets the session and the argument and returns
an `Outcome`. A view command has no handler: it opens a list or a screen, which every front end implements itself.
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
_MAX_LISTED: Final = 10_000
_FORM: Final = re.compile(r"/([A-Za-z]+)(?:[ \t]+(.*))?", re.DOTALL)

View = Literal[
    "conversations", "search", "editor", "copy", "models", "personas", "settings", "plan", "figures", "help", "suspend",
    "quit",
]  # fmt: skip
"""A list, a screen or a function of the terminal that a front end implements."""

Lane = Literal["caller", "side", "turn", "reply"]
"""Where a front end with threads runs a handler.

"caller": on the calling thread, because the handler returns at once. "side": in parallel with a running reply. "turn":
between replies, because the handler changes the conversation. "reply": like "turn", and the outcome generates a reply.
"""


class Destination(NamedTuple):
    """A conversation to open, or a new one with these settings."""

    conversation_id: str | None = None
    """None starts a new conversation."""
    message_id: str | None = None
    """A message to show; its branch becomes the active path."""
    settings: Mapping[str, object] = MappingProxyType({})
    """Settings of a new conversation."""


class Outcome(NamedTuple):
    """Result of a command: a text for the user, and effects that the front end carries out."""

    text: str = ""
    is_note: bool = False
    """True for a text that stays on the screen, such as the name of a written file."""
    reply: Callable[[], Iterator[SessionEvent]] | None = None
    """Generates a reply when it is iterated."""
    destination: Destination | None = None
    model: str = ""
    """Name of a model to load."""
    attachment: Path | None = None
    """A file to send with the next message."""
    export_to: Path | None = None
    """A file to write the conversation to, before `text` is shown."""
    shows_path: bool = False
    """True if other messages than before are on the active path."""


Handler = Callable[["Session", str], Outcome]


class Command(NamedTuple):
    """A slash command: how to call it, and its handler or view."""

    name: str
    argument: str
    """Placeholder for help; in square brackets if it is optional, "" if the command takes none."""
    summary: str
    run: Handler | None = None
    lane: Lane = "turn"
    view: View | None = None
    """Opened if there is no handler, or no argument for it."""

    def opens_view(self, argument: str) -> bool:
        """Return True if the front end opens `view` instead of running the handler."""
        return self.run is None or (self.view is not None and not argument)


def parse(text: str) -> tuple[Command, str] | None:
    """Split a command line into command and argument; None if `text` is a message. Raises UsageError.

    A message that starts with / is sent with a space before it.
    """
    match = _FORM.fullmatch(text.rstrip()) if text.startswith("/") else None
    if match is None:
        return None
    name = match[1].lower()
    if name not in BY_NAME:
        similar = difflib.get_close_matches(name, BY_NAME, n=1)
        hint = f"Did you mean /{similar[0]}?" if similar else "/help lists all commands."
        raise UsageError(f"There is no command /{name}. {hint} (Put a space before / to send it as a message.)")
    command, argument = BY_NAME[name], (match[2] or "").strip()
    if argument and not command.argument:
        raise UsageError(f"/{name} takes no argument: {command.summary}")
    if not argument and command.argument and not command.argument.startswith("["):
        raise UsageError(f"Usage: /{name} {command.argument}: {command.summary}")
    return command, argument


# Shared by the front ends, which carry out outcomes.


def go_to(session: Session, destination: Destination) -> bool:
    """Open a conversation or start a new one; returns False if `message_id` is not in it. Raises EdgechatError."""
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
    """Load another model for the next replies; returns the text to show. Raises EdgechatError."""
    from edgechat.catalogue import registry
    from edgechat.catalogue.resolve import find_model

    path = find_model(name)
    session.change_model(name, path, on_progress)
    if session.store.is_persistent:
        registry.record_use(path)
    return f"{path.stem} generates the next replies"


def copied_text(text: str, code_blocks: Callable[[str], list[str]], argument: str) -> str:
    """Return the part of a message that `/copy` copies: all, or its last code block. Raises UsageError."""
    if argument not in {"", "code"}:
        raise UsageError("/copy copies the last reply, /copy code its last code block")
    if not argument:
        return text
    blocks = code_blocks(text)
    if not blocks:
        raise UsageError("This message has no code block")
    return blocks[-1]


def last_message(session: Session, role: Role) -> Message:
    """Return the last message of this role on the active path. Raises UsageError if there is none."""
    message = next((m for m in reversed(session.tree.path) if m.role == role), None)
    if message is None:
        raise UsageError("This conversation has no messages yet")
    return message


def find_by_title(store: Store, text: str) -> Conversation:
    """Return the newest conversation with `text` in its title. Raises UsageError if there is none, and StoreError."""
    for summary in store.list_conversations(limit=_MAX_LISTED):
        if text.lower() in summary.conversation.title.lower():
            return summary.conversation
    raise UsageError(f"No conversation has {text!r} in its title. /search searches the messages.")


def persona_settings(name: str) -> tuple[dict[str, object], str]:
    """Return the settings of a persona and its model ("" if it has none). Raises SettingsError."""
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
        raise UsageError("No message here has alternatives. /retry and /edit create them.")
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


# Handlers for how replies are generated


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


# Arguments


def parse_reasoning(word: str) -> bool | None:
    """Return the value of `/reasoning`: True, False, or None for auto. Raises UsageError."""
    try:
        return {"on": True, "yes": True, "off": False, "no": False, "auto": None}[word.lower()]
    except KeyError:
        raise UsageError(f"{word!r} is not on, off or auto") from None


def parse_setting(argument: str) -> tuple[str, object]:
    """Return the name and the value of `/set NAME VALUE`. Raises UsageError."""
    from edgechat.config import parse_value

    name, _, text = argument.partition(" ")
    if not text.strip():
        raise UsageError("Usage: /set NAME VALUE: Change a setting of this conversation")
    return name, parse_value(name, text.strip())


def alternative_index(argument: str, number: int, count: int) -> int:
    """Return the zero-based alternative that `/switch` selects, after `number` of `count`. Raises UsageError."""
    if argument and not (argument.isdecimal() and 1 <= int(argument) <= count):
        raise UsageError(f"There are {count} alternatives: /switch 1 to /switch {count}")
    return int(argument) - 1 if argument else number % count


def export_path(name: str, title: str) -> Path:
    """Return the absolute path for an export: `name`, or a new file named after the title.

    Raises UsageError if `name` exists, so that no file is overwritten.
    """
    from edgechat.chat.mentions import parse_path

    if name:
        path = parse_path(name).absolute()
        if path.exists():
            raise UsageError(f"{path} exists already. Choose another file name.")
        return path
    letters = "".join(c if c.isalnum() or c in "-_" else " " for c in title)
    stem = "-".join(letters.split())[:60] or "conversation"
    numbered = (f"{stem}-{number}" for number in itertools.count(2))
    return next(p for s in itertools.chain((stem,), numbered) if not (p := Path(f"{s}.md").absolute()).exists())


COMMANDS: Final = (
    Command("new", "[PERSONA]", "Start a new conversation", _new, "caller"),
    Command(
        "open", "[TITLE]", "Open a conversation: the list, or by part of its title", _open, "side", "conversations"
    ),
    Command("search", "WORDS", "Search all conversations", view="search"),
    Command("retry", "", "Generate an alternative reply", _retry, "reply"),
    Command("continue", "", "Continue a stopped reply", _continue, "reply"),
    Command("edit", "[TEXT]", "Edit your last message; the old one stays an alternative", _edit, "reply", "editor"),
    Command("switch", "[N]", "Switch to the next alternative, or to number N", _switch),
    Command("delete", "", "Delete your last message and its reply", _delete),
    Command("undo", "", "Restore the message deleted last", _undo),
    Command("rename", "TITLE", "Change the title of the conversation", _rename),
    Command("pin", "", "Pin the conversation to the top of the list, or unpin it", _pin),
    Command("attach", "FILE", "Attach a file to the next message (or write @FILE in it)", _attach, "caller"),
    Command("copy", "[code]", "Copy the last reply, or its last code block", view="copy"),
    Command("export", "[FILE]", "Export the conversation to a .md, .html or .json file", _export, "side"),
    Command("model", "[NAME]", "Choose the model for the next replies", _model, "caller", "models"),
    Command("persona", "[NAME]", "Use a persona in this conversation", _persona, view="personas"),
    Command("system", "[TEXT]", "Set the system prompt of this conversation", _system),
    Command("reasoning", "on|off|auto", "Turn reasoning before a reply on or off", _reasoning),
    Command("set", "NAME VALUE", "Change a setting here, such as /set temperature 0.2", _set),
    Command("settings", "", "Show all settings", view="settings"),
    Command("plan", "", "Show why this model was chosen, and its memory plan", view="plan"),
    Command("figures", "", "Show or hide the speed of each reply", view="figures"),
    Command("help", "", "Show keys and commands", view="help"),
    Command("suspend", "", "Suspend edgechat; `fg` in the shell resumes it", view="suspend"),
    Command("quit", "", "Quit edgechat", view="quit"),
)
BY_NAME: Final[Mapping[str, Command]] = {command.name: command for command in COMMANDS}
