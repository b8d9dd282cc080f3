"""List of the sources of a collection in a small file beside its database, so that a damaged one can be rebuilt."""

from __future__ import annotations

import contextlib
import os
import urllib.parse
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from edgechat.files import JsonFile, open_private

SOURCES_SUFFIXES: Final = (".sources.json.part", ".sources.json")
"""Suffixes of the incomplete and of the complete file, after the name of the database."""
_MAX_BYTES: Final = 16 << 20


class _SavedSources(msgspec.Struct, frozen=True):
    """Content of the file."""

    sources: tuple[str, ...]
    """Absolute paths with percent-encoded bytes, because paths need not be UTF-8."""


def save_sources(path: Path, sources: Iterable[Path]) -> None:
    """Write the sources of the collection at `path`, atomically, if they have changed, while the caller holds its lock.

    Write errors are ignored: the database has the sources, too.
    """
    content = _SavedSources(tuple(urllib.parse.quote(os.fsencode(source)) for source in sources))
    file = _get_file(path)
    if file.read() == content:
        return
    # With the lock, one name is enough for the incomplete file, and the next write replaces what a kill leaves.
    part_path = path.with_name(path.name + SOURCES_SUFFIXES[0])
    with contextlib.suppress(OSError):
        with open_private(part_path) as part_file:
            part_file.write(msgspec.json.encode(content))
        part_path.replace(file.path)


def read_saved_sources(path: Path) -> list[Path] | None:
    """Return the saved sources of the collection at `path`; None if they were not saved, or cannot be read."""
    content = _get_file(path).read()
    if content is None:
        return None
    return [Path(os.fsdecode(urllib.parse.unquote_to_bytes(text))) for text in content.sources]


def _get_file(path: Path) -> JsonFile[_SavedSources]:
    return JsonFile(path.with_name(path.name + SOURCES_SUFFIXES[1]), _SavedSources, max_bytes=_MAX_BYTES)
