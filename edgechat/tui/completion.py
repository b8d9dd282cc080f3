"""Completions in the input: commands, their arguments, and file names."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final, NamedTuple

MAX_COMPLETIONS: Final = 50
# A folder may hold millions of files.
_MAX_SCANNED: Final = 5000
_COMMAND: Final = re.compile(r"/[A-Za-z]*")
_ARGUMENT: Final = re.compile(r"/(model|persona|set|attach|export)[ ]+(\S*)")
_MENTION: Final = re.compile(r'(?:^|(?<=\s))@("?)([^\s"]*)$')


class Completion(NamedTuple):
    """A text that replaces the last `n_chars` characters before the cursor."""

    n_chars: int
    text: str
    label: str
    description: str = ""


def is_begun(before: str) -> bool:
    """Return True if the text before the cursor may have completions, without reading the disk."""
    line = before.rpartition("\n")[2]
    is_command = "\n" not in before and (_COMMAND.fullmatch(before) or _ARGUMENT.fullmatch(before))
    return bool(is_command or _MENTION.search(line))


def complete(before: str, folder: Path) -> list[Completion]:
    """Return the completions of the text before the cursor; relative file names start in `folder`.

    Reads the disk, so it must not run on the screen's thread.
    """
    if "\n" not in before and _COMMAND.fullmatch(before):
        return _complete_command(before)
    argument = _ARGUMENT.fullmatch(before) if "\n" not in before else None
    if argument is not None:
        name, prefix = argument[1], argument[2]
        if name in {"attach", "export"}:
            return _complete_file(prefix, folder, "", len(prefix))
        values = [value for value in _argument_values(name) if value.lower().startswith(prefix.lower())]
        return [Completion(len(prefix), value, value) for value in values][:MAX_COMPLETIONS]
    mention = _MENTION.search(before.rpartition("\n")[2])
    return _complete_file(mention[2], folder, "@", len(mention[1]) + len(mention[2]) + 1) if mention else []


def _complete_command(before: str) -> list[Completion]:
    from edgechat.chat.commands import COMMANDS

    return [
        Completion(
            len(before), f"/{c.name}{' ' if c.argument else ''}", f"/{c.name} {c.argument}".rstrip(), c.summary
        )
        for c in COMMANDS
        if f"/{c.name}".startswith(before.lower())
    ]  # fmt: skip


def _argument_values(command: str) -> list[str]:
    from edgechat.chat import personas
    from edgechat.errors import EdgechatError

    if command == "persona":
        return personas.list_names()
    if command == "set":
        return [name for name in personas.PERSONA_SETTINGS if name != "model"]
    from edgechat.catalogue import library

    try:
        return [name for entry in library.scan() if entry.is_usable for name in (entry.name, *entry.aliases)]
    except EdgechatError:
        return []


def _complete_file(prefix: str, folder: Path, mark: str, n_chars: int) -> list[Completion]:
    """Return paths that start with `prefix`, folders first; `mark` is "@" for a mention in a message."""
    head, slash, start = prefix.rpartition("/")
    parent = head + slash
    try:
        directory = folder / os.path.expanduser(parent or ".")  # noqa: PTH111  (Path's own raises for an unknown user)
        with os.scandir(directory) as iterator:
            entries = [entry for _, entry in zip(range(_MAX_SCANNED), iterator, strict=False)]
    except OSError:
        return []
    names = sorted(
        (not _is_folder(entry), entry.name)
        for entry in entries
        if entry.name.lower().startswith(start.lower()) and (start.startswith(".") or not entry.name.startswith("."))
    )
    completions = []
    for is_file, name in names[:MAX_COMPLETIONS]:
        path = f"{parent}{name}{'' if is_file else '/'}"
        quoted = f'"{path}"' if " " in path and mark and is_file else path
        completions.append(Completion(n_chars, f"{mark}{quoted}{' ' if is_file and mark else ''}", path))
    return [c for c in completions if c.label.isprintable()]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False
