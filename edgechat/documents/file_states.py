"""State of a file: its size, modification time and content hash, by which an update recognises unchanged files."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from edgechat import __version__
from edgechat.errors import DocumentError
from edgechat.files import open_regular

# A file that was modified less than this time before it was read may change again without a new modification time.
# FAT has the coarsest times, of 2 seconds.
_RECENT_NS: Final = 3_000_000_000
_PART_BYTES: Final = 1 << 20
# The content of larger files is not hashed, because this would take longer than the extraction of their text: of a
# text file of 50 GB, only the first 60 MiB are read.
_MAX_HASHED_BYTES: Final = 256 << 20
# Packages without which some files cannot be read.
_EXTRACTION_PACKAGES: Final = ("pypdf", "cryptography")


class FileState(msgspec.Struct, frozen=True):
    """Hash, size and time of a file."""

    hash: bytes
    """SHA-256 hash of the content; of size and time for a file of more than 256 MiB."""
    size_bytes: int
    mtime_ns: int
    is_recent: bool
    """True if the file was modified so recently that another change might keep its time."""

    @property
    def reliable_mtime_ns(self) -> int:
        """Modification time; 0 if it does not identify the content."""
        return 0 if self.is_recent else self.mtime_ns

    def matches(self, path: Path) -> bool:
        """Return whether the file has the size and time of this state. Raises OSError."""
        status = path.stat()
        return (status.st_size, status.st_mtime_ns) == (self.size_bytes, self.mtime_ns)


def read_state(path: Path, is_cancelled: Callable[[], bool] = lambda: False) -> FileState:
    """Read a file and return its state. Raises OSError, and DocumentError if `is_cancelled` returns True."""
    now_ns = time.time_ns()
    with open_regular(path) as file:
        status = os.fstat(file.fileno())
        digest = hashlib.sha256()
        if status.st_size > _MAX_HASHED_BYTES:
            digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
        else:
            while data := file.read(_PART_BYTES):
                if is_cancelled():
                    raise DocumentError(f"Reading {path} was cancelled. Update the collection again to continue.")
                digest.update(data)
    is_recent = abs(now_ns - status.st_mtime_ns) < _RECENT_NS
    return FileState(digest.digest(), status.st_size, status.st_mtime_ns, is_recent)


def describe_extraction() -> str:
    """Return the versions of what extracts text. With other versions, files that failed before may be readable."""
    return " ".join([__version__, *(_find_version(package) for package in _EXTRACTION_PACKAGES)])


def _find_version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "-"
