"""Parser of slash commands. Distinguishes commands from messages, and suggests commands for an unknown name."""

from __future__ import annotations

import difflib
import os
import re
from typing import Final

from edgechat.chat.commands import COMMANDS_BY_NAME, Command
from edgechat.errors import UsageError
from edgechat.humanize import shorten

# A slash, then a letter or `?`, and no further slash before the first space. `/etc/hosts` and `/* comment */` are text.
_COMMAND_PATTERN: Final = re.compile(r"/([^\W\d_][^\s/]*|\?[^\s/]*)?(?:\s+(.*))?", re.DOTALL)
_MAX_NAME_CHARS: Final = 32
_MAX_SUGGESTIONS: Final = 3
_ESCAPE_HINT: Final = "To send the line as a message, start it with a space."


def parse(text: str) -> tuple[Command, str] | None:
    """Parse an input line; return the command and its argument, or None if the line is a message.

    A line that starts with a path is a message: the path has a second slash, or is that of an existing file or folder.
    A line with a space before the slash is a message, too. Raises UsageError for an unknown command, or if the argument
    is missing or not allowed.
    """
    match = _COMMAND_PATTERN.fullmatch(text.rstrip()) if text.startswith("/") else None
    if match is None:
        return None
    word, argument = match[1] or "", (match[2] or "").strip()
    if not word:
        if argument:
            return None
        raise UsageError(f"Enter the name of a command after the slash. /help lists all commands. {_ESCAPE_HINT}")
    command = COMMANDS_BY_NAME.get(word.lower())
    if command is None:
        if os.path.lexists(f"/{word[:_MAX_NAME_CHARS]}"):
            return None
        name = shorten(word.lower(), _MAX_NAME_CHARS)
        raise UsageError(f"Unknown command /{name}. {_suggest(name)} {_ESCAPE_HINT}")
    if argument and not command.argument:
        raise UsageError(f"/{command.name} takes no argument. Enter only /{command.name}.")
    if not argument and command.argument and not command.argument.startswith("["):
        raise UsageError(f"/{command.name} needs an argument. Usage: /{command.name} {command.argument}")
    return command, argument


def is_command(text: str) -> bool:
    """Return whether an input line is a command, valid or not, rather than a message."""
    try:
        return parse(text) is not None
    except UsageError:
        return True


def _suggest(name: str) -> str:
    """Return a sentence with the commands that `name` could mean."""
    longer_names = [n for n in COMMANDS_BY_NAME if len(name) > 1 and n.startswith(name)]
    similar_names = difflib.get_close_matches(name, COMMANDS_BY_NAME, n=_MAX_SUGGESTIONS)
    suggestions = list(dict.fromkeys((*longer_names, *similar_names)))[:_MAX_SUGGESTIONS]
    if not suggestions:
        return "/help lists all commands."
    *others, last = (f"/{suggestion}" for suggestion in suggestions)
    return f"Did you mean {', '.join(others)}{' or ' if others else ''}{last}?"
