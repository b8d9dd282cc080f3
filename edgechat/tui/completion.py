"""Completions for slash commands, their arguments, and file names in the input."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final, NamedTuple

MAX_COMPLETIONS: Final = 50
# Maximum number of folder entries to read for a completion; a folder can contain millions of files.
_MAX_FOLDER_ENTRIES: Final = 5000
_COMMAND_PATTERN: Final = re.compile(r"/(?:[A-Za-z]*|\?)")
_ARGUMENT_PATTERN: Final = re.compile(r"/(?:(model|also|persona|set|attach|export)|(docs)(?:[ ]+\S+)*)[ ]+(\S*)")
_MENTION_PATTERN: Final = re.compile(r'(?:^|(?<=\s))@("?)([^\s"]*)$')


class Completion(NamedTuple):
    """Text that replaces the last `n_chars` characters before the cursor."""

    n_chars: int
    text: str
    label: str
    description: str = ""


def can_complete(text_before: str) -> bool:
    """Return whether the text before the cursor can have completions. Does not read the disk."""
    line = text_before.rpartition("\n")[2]
    is_command = "\n" not in text_before and (
        _COMMAND_PATTERN.fullmatch(text_before) or _ARGUMENT_PATTERN.fullmatch(text_before)
    )
    return bool(is_command or _MENTION_PATTERN.search(line))


def complete(text_before: str, folder: Path) -> list[Completion]:
    """Return the completions for the text before the cursor; relative file names are resolved against `folder`.

    Reads the disk, so call it outside the event loop's thread.
    """
    if "\n" not in text_before and _COMMAND_PATTERN.fullmatch(text_before):
        return _complete_command(text_before)
    argument = _ARGUMENT_PATTERN.fullmatch(text_before) if "\n" not in text_before else None
    if argument is not None:
        name, prefix = argument[1] or argument[2], argument[3]
        if name in {"attach", "export"}:
            return _complete_file(prefix, folder, "", len(prefix))
        values = [value for value in _list_argument_values(name) if value.lower().startswith(prefix.lower())]
        return [Completion(len(prefix), value, value) for value in values][:MAX_COMPLETIONS]
    mention = _MENTION_PATTERN.search(text_before.rpartition("\n")[2])
    return _complete_file(mention[2], folder, "@", len(mention[1]) + len(mention[2]) + 1) if mention else []


def complete_path(prefix: str) -> list[str]:
    """Return the paths that start with `prefix`, folders first. Reads the disk."""
    return [completion.label for completion in _complete_file(prefix, Path(), "", len(prefix))]


def _complete_command(text_before: str) -> list[Completion]:
    from edgechat.chat.commands import COMMANDS

    prefix = text_before[1:].lower()
    matches = [(next((n for n in (c.name, *c.aliases) if n.startswith(prefix)), None), c) for c in COMMANDS]
    return [
        Completion(len(text_before), f"/{name}{' ' if c.argument else ''}", f"/{name} {c.argument}".rstrip(), c.summary)
        for name, c in matches
        if name is not None
    ]


def _list_argument_values(command: str) -> list[str]:
    from edgechat.chat import personas
    from edgechat.errors import EdgechatError

    if command == "persona":
        return personas.list_names()
    if command == "set":
        return [name for name in personas.PERSONA_SETTINGS if name != "model"]
    if command == "docs":
        return _list_collections()
    from edgechat import config
    from edgechat.catalogue import library

    settings = config.load()[0]
    names: list[str] = []
    if settings.remotes:
        from edgechat.remote.model_lists import list_names

        names = list_names(settings.remotes)
    if settings.route and command == "model":  # /also needs one model
        from edgechat.remote_settings import ROUTE

        names.append(ROUTE)
    try:
        return [*(n for entry in library.scan() if entry.is_usable for n in (entry.name, *entry.aliases)), *names]
    except EdgechatError:
        return names


def _list_collections() -> list[str]:
    from edgechat import paths
    from edgechat.documents.library import DocumentLibrary
    from edgechat.errors import EdgechatError

    try:
        return [*DocumentLibrary(paths.documents_dir()).names(), "off"]
    except EdgechatError:
        return []


def _complete_file(prefix: str, folder: Path, mention_mark: str, n_chars: int) -> list[Completion]:
    """Return completions for the paths that start with `prefix`, folders first.

    `mention_mark` is "@" for a mention in a message, otherwise "". A completion replaces `n_chars` characters.
    """
    head, slash, name_prefix = prefix.rpartition("/")
    parent = head + slash
    try:
        directory = folder / os.path.expanduser(parent or ".")  # noqa: PTH111  (Path.expanduser raises for an unknown user)
        with os.scandir(directory) as iterator:
            entries = [entry for _, entry in zip(range(_MAX_FOLDER_ENTRIES), iterator, strict=False)]
    except OSError:
        return []
    names = sorted(
        (not _is_folder(entry), entry.name)
        for entry in entries
        if entry.name.lower().startswith(name_prefix.lower())
        and (name_prefix.startswith(".") or not entry.name.startswith("."))
    )
    completions = []
    for is_file, name in names[:MAX_COMPLETIONS]:
        path = f"{parent}{name}{'' if is_file else '/'}"
        quoted_path = f'"{path}"' if " " in path and mention_mark and is_file else path
        completions.append(
            Completion(n_chars, f"{mention_mark}{quoted_path}{' ' if is_file and mention_mark else ''}", path)
        )
    return [c for c in completions if c.label.isprintable()]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False
