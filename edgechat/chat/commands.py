"""Slash commands: what can be asked for in the place of a message, on every kind of screen."""

from __future__ import annotations

import difflib
import itertools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from edgechat.config import parse_value
from edgechat.errors import UsageError

if TYPE_CHECKING:
    from edgechat.chat.store import Store


class Command(NamedTuple):
    """One of them."""

    name: str
    argument: str
    """As help shows it; "" if it takes none."""
    summary: str


COMMANDS: Final = (
    Command("new", "[PERSONA]", "begin a new conversation"),
    Command("open", "[WORDS]", "go to another conversation: the list, or the one with these words in its title"),
    Command("search", "WORDS", "find words in all conversations"),
    Command("retry", "", "another answer beside this one"),
    Command("continue", "", "go on with an answer that was stopped"),
    Command("edit", "[TEXT]", "say your last message differently; the old one stays beside it"),
    Command("switch", "[N]", "go on with another alternative: the next one, or number N"),
    Command("delete", "", "delete the last message and its answer"),
    Command("undo", "", "bring back what was deleted last"),
    Command("rename", "TITLE", "give the conversation another title"),
    Command("pin", "", "list the conversation first, or no longer"),
    Command("attach", "FILE", "send a file along with the next message (`@FILE` in a message does the same)"),
    Command("copy", "[code]", "copy the last answer, or its last block of code"),
    Command("export", "[FILE]", "write the conversation to a file: .md, .html or .json"),
    Command("model", "[NAME]", "let another model answer from here on"),
    Command("persona", "[NAME]", "use a persona in this conversation"),
    Command("system", "[TEXT]", "what the model is told first, in this conversation"),
    Command("reasoning", "on|off|auto", "let the model think first, or not"),
    Command("set", "NAME VALUE", "change how this conversation is answered, such as `/set temperature 0.2`"),
    Command("settings", "", "show all settings"),
    Command("plan", "", "why this model, and what it takes of memory"),
    Command("figures", "", "show or hide how fast each answer came"),
    Command("help", "", "keys and commands"),
    Command("suspend", "", "back to the shell for a while; `fg` returns"),
    Command("quit", "", "leave"),
)
_MOST_LISTED: Final = 10_000
_NAMES: Final = {command.name: command for command in COMMANDS}
_FORM: Final = re.compile(r"/([A-Za-z]+)(?:[ \t]+(.*))?", re.DOTALL)
_FILE: Final = re.compile(r'(?:(?<=\s)|^)@(?:"([^"\n]+)"|([^\s"]+))')


def parse(text: str) -> tuple[str, str] | None:
    """Name and argument of a command; None if the text is a message. Raises UsageError for one that does not exist.

    A message that begins like a command is sent with a space before it.
    """
    match = _FORM.fullmatch(text.rstrip()) if text.startswith("/") else None
    if match is None:
        return None
    name = match[1].lower()
    if name not in _NAMES:
        near = difflib.get_close_matches(name, _NAMES, n=1)
        hint = f"did you mean /{near[0]}?" if near else "/help shows those there are"
        raise UsageError(f"there is no command /{name}; {hint} (a message may begin with / after a space)")
    argument = (match[2] or "").strip()
    command = _NAMES[name]
    if argument and not command.argument:
        raise UsageError(f"/{name} takes nothing after it: {command.summary}")
    if not argument and command.argument and not command.argument.startswith("["):
        raise UsageError(f"/{name} {command.argument}: {command.summary}")
    return name, argument


def mentioned_files(text: str) -> list[str]:
    """Names after an `@` in a message, in order, each once; whether there are such files is not looked at."""
    return list(dict.fromkeys(quoted or bare for quoted, bare in _FILE.findall(text)))


def parse_reasoning(word: str) -> bool | None:
    """What `/reasoning` was asked for. Raises UsageError."""
    try:
        return {"on": True, "yes": True, "off": False, "no": False, "auto": None}[word.lower()]
    except KeyError:
        raise UsageError(f"{word!r} is none of on, off and auto") from None


def path_of(name: str) -> Path:
    """The file that a person names. Raises UsageError for a name that cannot be one."""
    try:
        return Path(name.strip('"')).expanduser()
    except (RuntimeError, ValueError) as error:
        raise UsageError(f"{name!r} names no file: {error}") from None


def attached_files(text: str) -> list[Path]:
    """Files that a message names with an `@`; where there is no such file, it is only a word."""
    return [path for name in mentioned_files(text) if (path := _file(name)) is not None]


def missing_files(text: str) -> list[str]:
    """Names after an `@` that look like those of files, where there are none."""
    return [name for name in mentioned_files(text) if {".", "/"} & {*name} and "@" not in name and _file(name) is None]


def _file(name: str) -> Path | None:
    try:
        path = path_of(name)
        return path if path.is_file() else None
    except (UsageError, OSError, ValueError):
        return None


def export_path(name: str, title: str) -> Path:
    """Where a conversation is written: as named, or by its title where nothing is yet. Raises UsageError.

    Nothing that is there is replaced.
    """
    if name:
        path = path_of(name).absolute()
        if path.exists():
            raise UsageError(f"{path} is there already: name another file")
        return path
    kept = "".join(c if c.isalnum() or c in "-_" else " " for c in title)
    stem = "-".join(kept.split())[:60] or "conversation"
    numbered = (f"{stem}-{number}" for number in itertools.count(2))
    return next(p for s in itertools.chain((stem,), numbered) if not (p := Path(f"{s}.md").absolute()).exists())


def alternative_index(argument: str, number: int, count: int) -> int:
    """Which alternative `/switch` means, from 0, where `number` of `count` is shown. Raises UsageError."""
    if argument and not (argument.isdecimal() and 1 <= int(argument) <= count):
        raise UsageError(f"there are {count} alternatives: /switch 1 to /switch {count}")
    return int(argument) - 1 if argument else number % count


def parse_setting(argument: str) -> tuple[str, object]:
    """Name and value that `/set` was given. Raises UsageError."""
    name, _, text = argument.partition(" ")
    if not text.strip():
        raise UsageError("/set NAME VALUE: change how this conversation is answered")
    return name, parse_value(name, text.strip())


def code_wanted(what: str) -> bool:
    """True if `/copy` is about code. Raises UsageError."""
    if what not in {"", "code"}:
        raise UsageError("/copy copies the last answer, /copy code its last block of code")
    return bool(what)


def find_by_title(store: Store, words: str) -> str:
    """The newest conversation with these words in its title. Raises UsageError if there is none, and StoreError."""
    wanted = words.lower()
    for summary in store.list_conversations(limit=_MOST_LISTED):
        if wanted in summary.conversation.title.lower():
            return summary.conversation.id
    raise UsageError(f"no conversation has {words!r} in its title; /search looks into what was said")
