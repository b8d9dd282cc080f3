"""Shared prefixes: the beginning of prompts of several conversations, such as the text of whole documents.

Their segments have an owner of their own in place of a conversation, so that a new conversation finds them, and their
files are pinned: the disk tier deletes files of conversations first.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

_PINNED_MARK: Final = "pinned\n"
"""Start of the owners that `make_pinned_owner` returns. Ids of conversations have no line breaks."""
_FOLDER_PREFIX: Final = "pinned-"
# A folder name has at most 255 bytes, and 13 of them for each name.
_MAX_NAMES: Final = 16


class SharedPrefix(msgspec.Struct, frozen=True):
    """The first `n_tokens` tokens of a prompt, which belong to `owner` and not to the conversation."""

    owner: str
    n_tokens: int


def make_pinned_owner(names: Sequence[str]) -> str:
    """Return the owner of the segments of documents, from the names of their collections in order.

    The text of the documents may change: their first tokens that are still the same are restored.
    """
    return _PINNED_MARK + "\n".join(name.replace("\n", " ") for name in names[:_MAX_NAMES])


def is_pinned_owner(owner: str) -> bool:
    """Return whether `make_pinned_owner` returned `owner`."""
    return owner.startswith(_PINNED_MARK)


def make_folder_name(owner: str) -> str:
    """Return the folder name of an owner: hashes, because imported ids and names may contain any characters.

    The name for a pinned owner contains a hash for each of its names, by which `delete_pinned` finds it.
    """
    if not is_pinned_owner(owner):
        return _hash(owner, 12)
    return _FOLDER_PREFIX + "-".join(_hash(name, 6) for name in owner.removeprefix(_PINNED_MARK).split("\n"))


def is_pinned_file(path: Path) -> bool:
    """Return whether the segment file at `path` belongs to a pinned owner."""
    return path.parent.name.startswith(_FOLDER_PREFIX)


def delete_pinned(root: Path, name: str) -> None:
    """Delete the segment files of all pinned owners that have `name` among their names, for all models.

    A running engine writes no more files for these owners.
    """
    for folder in _find_folders(root, name):
        shutil.rmtree(folder, ignore_errors=True)


def clear_pinned(root: Path, name: str) -> None:
    """Delete the segment files like `delete_pinned`, but let running engines write new ones.

    The files hold the text of documents that have been changed or removed since.
    """
    for folder in _find_folders(root, name):
        for path in folder.glob("*"):
            with contextlib.suppress(OSError):
                path.unlink()


def _find_folders(root: Path, name: str) -> list[Path]:
    name_hash = _hash(name.replace("\n", " "), 6)
    with contextlib.suppress(OSError):
        folders = root.glob(f"*/{_FOLDER_PREFIX}*")
        return [f for f in folders if name_hash in f.name.removeprefix(_FOLDER_PREFIX).split("-")]
    return []


def _hash(text: str, n_bytes: int) -> str:
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=n_bytes).hexdigest()
