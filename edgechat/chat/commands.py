"""Slash commands: what can be asked for in the place of a message, on every kind of screen."""

from __future__ import annotations

import difflib
import re
from typing import Final, NamedTuple

from edgechat.errors import UsageError


class Command(NamedTuple):
    """One of them."""

    name: str
    argument: str
    """As help shows it; "" if it takes none."""
    words: str


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
        raise UsageError(f"/{name} takes nothing after it: {command.words}")
    if not argument and command.argument and not command.argument.startswith("["):
        raise UsageError(f"/{name} {command.argument}: {command.words}")
    return name, argument


def files_in(text: str) -> list[str]:
    """Names after an `@` in a message, in order, each once; whether there are such files is not looked at."""
    return list(dict.fromkeys(quoted or bare for quoted, bare in _FILE.findall(text)))


def truth(word: str) -> bool | None:
    """What `/reasoning` was asked for. Raises UsageError."""
    try:
        return {"on": True, "yes": True, "off": False, "no": False, "auto": None}[word.lower()]
    except KeyError:
        raise UsageError(f"{word!r} is none of on, off and auto") from None
