"""Mentions in a message: `@FILE` attaches a file, and `@FOLDER/` asks about the documents in a folder."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from edgechat.errors import UsageError

_MENTION_PATTERN: Final = re.compile(r'(?:(?<=\s)|^)@(?:"([^"\n]+)"|([^\s"]+))')
_PATH_PATTERN: Final = re.compile(r"^~|[/\\]|\.\w")
# Characters that occur in code, such as the decorator `@app.route(...)`, but rarely in file names.
_CODE_PATTERN: Final = re.compile(r"[()\[\]{}<>=;@]")

_MAX_SHOWN_NAMES: Final = 5


def find_mentions(text: str) -> list[str]:
    """Return the file names after `@` in a message, in order and without duplicates. The files need not exist."""
    return list(dict.fromkeys(quoted_name or name for quoted_name, name in _MENTION_PATTERN.findall(text)))


def remove_mentions(text: str) -> str:
    """Return a message without the files and folders that it mentions with `@`, as the query of a search."""

    def replace(match: re.Match[str]) -> str:
        return "" if _find_file(match[1] or match[2]) is not None else match[0]

    return _MENTION_PATTERN.sub(replace, text)


def find_attached_files(text: str) -> list[Path]:
    """Return the paths of existing files that a message mentions with `@`, and of folders with a slash at the end."""
    return [path for name in find_mentions(text) if (path := _find_file(name)) is not None]


def describe_missing_files(text: str) -> str:
    """Return a sentence with the names of mentioned files that do not exist; "" if all of them exist."""
    names = find_missing_files(text)
    if not names:
        return ""
    n_more = len(names) - _MAX_SHOWN_NAMES
    shown_names = ", ".join(names[:_MAX_SHOWN_NAMES]) + (f" and {n_more} more" if n_more > 0 else "")
    return f"File not found: {shown_names}. @{names[0]} is sent as plain text."


def find_missing_files(text: str) -> list[str]:
    """Return the mentioned names that look like paths but do not exist as files or folders.

    A path contains a slash, a backslash or a dot with a suffix, or starts with `~`; it contains no brackets.
    """
    return [
        name
        for name in find_mentions(text)
        if _PATH_PATTERN.search(name) and not _CODE_PATTERN.search(name) and _find_file(name) is None
    ]


def parse_path(name: str) -> Path:
    """Convert a typed file name to a path: remove quotes and expand `~`. Raises UsageError."""
    try:
        path = Path(name.strip('"')).expanduser()
    except (RuntimeError, ValueError) as error:
        raise UsageError(f"{name!r} is not a valid file name: {error}") from None
    if not name.strip('"').strip():
        raise UsageError("The file name is empty.")
    return path


def _find_file(name: str) -> Path | None:
    try:
        path = parse_path(name)
        is_folder = name.endswith(("/", os.sep)) and path.is_dir()
        return path if is_folder or path.is_file() else None
    except (UsageError, OSError, ValueError):
        return None
