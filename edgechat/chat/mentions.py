"""File mentions in a message: `@FILE` attaches a file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from edgechat.errors import UsageError

_MENTION: Final = re.compile(r'(?:(?<=\s)|^)@(?:"([^"\n]+)"|([^\s"]+))')


def mentioned_files(text: str) -> list[str]:
    """Return the names after each `@` in a message, in order and without duplicates. The files may not exist."""
    return list(dict.fromkeys(quoted or bare for quoted, bare in _MENTION.findall(text)))


def attached_files(text: str) -> list[Path]:
    """Return the existing files that a message mentions with `@`."""
    return [path for name in mentioned_files(text) if (path := _existing_file(name)) is not None]


def missing_files(text: str) -> list[str]:
    """Return the mentions that look like file names (with a dot or slash) but refer to no existing file."""
    return [
        name
        for name in mentioned_files(text)
        if {".", "/"} & {*name} and "@" not in name and _existing_file(name) is None
    ]


def parse_path(name: str) -> Path:
    """Convert a file name that the user typed to a path: removes quotes and expands `~`. Raises UsageError."""
    try:
        return Path(name.strip('"')).expanduser()
    except (RuntimeError, ValueError) as error:
        raise UsageError(f"{name!r} is not a file name: {error}") from None


def _existing_file(name: str) -> Path | None:
    try:
        path = parse_path(name)
        return path if path.is_file() else None
    except (UsageError, OSError, ValueError):
        return None
