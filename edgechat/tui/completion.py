"""What the words before the cursor could become: commands, their arguments, and files."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final, NamedTuple

MOST: Final = 50
# A folder may hold a million files.
_MOST_LOOKED_AT: Final = 5000
_COMMAND: Final = re.compile(r"/[A-Za-z]*")
_ARGUMENT: Final = re.compile(r"/(model|persona|set|attach|export)[ ]+(\S*)")
_FILE: Final = re.compile(r'(?:^|(?<=\s))@("?)([^\s"]*)$')


class Completion(NamedTuple):
    """What would stand in the place of the last `n_chars` before the cursor."""

    n_chars: int
    text: str
    shown: str
    words: str = ""


def is_begun(before: str) -> bool:
    """True if there may be something to complete; asks nothing of any disk."""
    line = before.rpartition("\n")[2]
    is_command = "\n" not in before and (_COMMAND.fullmatch(before) or _ARGUMENT.fullmatch(before))
    return bool(is_command or _FILE.search(line))


def complete(before: str, folder: Path) -> list[Completion]:
    """For what stands before the cursor; file names are looked for below `folder`. Reads disks: not for the screen's thread."""
    line = before.rpartition("\n")[2]
    if "\n" not in before and _COMMAND.fullmatch(before):
        from edgechat.chat.commands import COMMANDS

        found = [c for c in COMMANDS if f"/{c.name}".startswith(before.lower())]
        return [
            Completion(
                len(before), f"/{c.name}{' ' if c.argument else ''}", f"/{c.name} {c.argument}".rstrip(), c.summary
            )
            for c in found
        ]
    argument = _ARGUMENT.fullmatch(before) if "\n" not in before else None
    if argument is not None:
        name, begun = argument[1], argument[2]
        if name in {"attach", "export"}:
            return _files(begun, folder, "", len(begun))
        return [Completion(len(begun), w, w) for w in _arguments(name) if w.lower().startswith(begun.lower())][:MOST]
    file = _FILE.search(line)
    return _files(file[2], folder, "@", len(file[1]) + len(file[2]) + 1) if file else []


def _arguments(name: str) -> list[str]:
    from edgechat.chat import personas
    from edgechat.errors import EdgechatError

    if name == "persona":
        return personas.list_names()
    if name == "set":
        return [field for field in personas.PERSONA_SETTINGS if field != "model"]
    from edgechat.catalogue import library

    try:
        return [n for entry in library.scan() if entry.is_usable for n in (entry.name, *entry.aliases)]
    except EdgechatError:
        return []


def _files(begun: str, folder: Path, mark: str, n_chars: int) -> list[Completion]:
    """Files and folders whose path begins so; folders first."""
    head, slash, start = begun.rpartition("/")
    shown_head = head + slash
    try:
        place = folder / os.path.expanduser(shown_head or ".")  # noqa: PTH111  (Path's own raises for an unknown user)
        with os.scandir(place) as found:
            some = [entry for _, entry in zip(range(_MOST_LOOKED_AT), found, strict=False)]
    except OSError:
        return []
    names = sorted(
        (not _is_folder(entry), entry.name)
        for entry in some
        if entry.name.lower().startswith(start.lower()) and (start.startswith(".") or not entry.name.startswith("."))
    )
    completions = []
    for is_file, name in names[:MOST]:
        path = f"{shown_head}{name}{'' if is_file else '/'}"
        quoted = f'"{path}"' if " " in path and mark and is_file else path
        completions.append(Completion(n_chars, f"{mark}{quoted}{' ' if is_file and mark else ''}", path))
    return [c for c in completions if c.shown.isprintable()]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False
