"""SHA-256 hashes of model files, saved so that each version of a file is hashed only once.

The prefix cache identifies a model by the hash of its weights. Downloads and `models verify` store the hashes that they
compute in the same file, so that the engine does not read a verified file again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from edgechat.files import JsonFile, open_regular

_CHUNK_BYTES: Final = 1 << 20
_FILE_NAME: Final = "weights.json"
_MAX_ENTRIES: Final = 1000
# Maximum file size; a thousand entries take about 250 kB.
_MAX_BYTES: Final = 4 << 20


FileStamp = tuple[int, int, int]
"""Size in bytes, modification time in ns and inode of a file, which identify one version of the file."""


class _HashEntry(msgspec.Struct, frozen=True):
    size_bytes: int
    mtime_ns: int
    inode: int
    sha256: str


class HashMemo:
    """Hashes of files by path, stored in one JSON file. An entry is valid until the size, mtime or inode changes."""

    def __init__(self, directory: Path) -> None:
        """Load the hashes saved in `directory`, which is `paths.prefix_dir()` except in tests and benchmarks."""
        self._file = JsonFile(directory / _FILE_NAME, dict[str, _HashEntry], max_bytes=_MAX_BYTES)
        self._entries = self._file.read() or {}

    def get(self, path: Path) -> str | None:
        """Return the stored hash of a file. Returns None if no hash is stored or if the file has changed."""
        entry = self._entries.get(os.path.realpath(path))
        if entry is None or (entry.size_bytes, entry.mtime_ns, entry.inode) != read_stamp(path):
            return None
        return entry.sha256

    def put(self, hashes: Mapping[Path, str]) -> None:
        """Store hashes for the current versions of files. Does nothing if the JSON file cannot be written."""
        entries = self._file.read() or {}  # other processes may have changed the JSON file
        for path, sha256 in hashes.items():
            stamp = read_stamp(path)
            key = os.path.realpath(path)
            entries.pop(key, None)
            if stamp is not None:
                entries[key] = _HashEntry(*stamp, sha256)
        self._entries = dict(list(entries.items())[-_MAX_ENTRIES:])
        self._file.save(self._entries)

    def get_or_compute(self, path: Path, on_progress: Callable[[int], None]) -> str:
        """Return the stored hash of a file, or compute and store it. Raises OSError.

        `on_progress` is passed to `hash_file`.
        """
        stored_hash = self.get(path)
        if stored_hash is not None:
            return stored_hash
        stamp = read_stamp(path)
        computed_hash = hash_file(path, on_progress)
        if stamp == read_stamp(path):
            self.put({path: computed_hash})
        return computed_hash


def hash_file(path: Path, on_progress: Callable[[int], None] = lambda done_bytes: None) -> str:
    """Return the SHA-256 of a file in hexadecimal.

    `on_progress` receives the number of bytes hashed so far, after every MiB; it can block to pause. Raises OSError.
    """
    digest, done_bytes = hashlib.sha256(), 0
    with open_regular(path) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            done_bytes += len(chunk)
            on_progress(done_bytes)
    return digest.hexdigest()


def read_stamp(path: Path) -> FileStamp | None:
    """Return the stamp of the current version of a file; None if the file cannot be read."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns, stat.st_ino
