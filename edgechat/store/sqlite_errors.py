"""Recognition of SQLite's errors, and their translation into StoreError.

Python 3.10 has no SQLite error codes, so errors are recognised by their text.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from edgechat.decode_errors import describe_decode_error
from edgechat.errors import DamagedDatabaseError, StoreError

# Maximum time to wait for another process that is writing. Writes take milliseconds; backups and imports take seconds.
BUSY_TIMEOUT_S: Final = 5.0
_DAMAGE_TEXTS: Final = (
    "malformed", "not a database", "corrupt", "unsupported file format", "no such table", "no such column",
    "no such index", "fts5", "vtable constructor failed", "Could not decode", "already exists", "interrupted",
)  # fmt: skip
_DISK_FAULT: Final = "disk I/O error"


def is_locked_error(error: BaseException) -> bool:
    """Return whether an error means that another connection holds the lock that an operation needs."""
    return "locked" in str(error) or "busy" in str(error)


def is_read_only_error(error: BaseException) -> bool:
    """Return whether an error means that a file or its folder cannot be opened or written."""
    return isinstance(error, OSError) or "readonly" in str(error) or "unable to open" in str(error)


def is_damage_error(error: BaseException) -> bool:
    """Return whether an error means that the database is damaged, or that a part of its schema is missing."""
    return any(text in str(error) for text in _DAMAGE_TEXTS)


@contextlib.contextmanager
def translate_errors(path: Path | None) -> Iterator[None]:
    """Context manager that translates errors of SQLite, text encoding and the file system into StoreError.

    `path` is the path of the database for messages; None for a database in memory.
    """
    try:
        yield
    except sqlite3.Error as error:
        raise _make_store_error(error, path) from error
    except OverflowError as error:
        raise StoreError("Cannot use this value: a number is too large.") from error
    except UnicodeEncodeError as error:
        raise StoreError(f"Cannot use this text: it has an invalid character at position {error.start}.") from error
    except (UnicodeDecodeError, msgspec.MsgspecError, RecursionError) as error:
        reason = "a text in it is not UTF-8" if isinstance(error, UnicodeDecodeError) else describe_decode_error(error)
        raise make_damaged_error(path, reason) from error
    except OSError as error:
        raise StoreError(f"Cannot save conversations in {path}: {describe_error(error)}.") from error
    except MemoryError as error:
        raise StoreError(f"There is not enough memory for a conversation in {path}.") from error


def describe_error(error: BaseException) -> str:
    """Return the text of an error; omit the number and the file name of a file system error."""
    return (error.strerror if isinstance(error, OSError) else "") or str(error)


def _make_store_error(error: sqlite3.Error, path: Path | None) -> StoreError:
    reason = str(error)
    if is_damage_error(error):
        return make_damaged_error(path, reason)
    if is_locked_error(error):
        return StoreError(
            f"Another program has been writing to {path} for over {BUSY_TIMEOUT_S:g} s. Close it, and try again."
        )
    if "full" in reason:
        return StoreError(
            f"The disk that contains {path} is full. Free some space, and try again, or chat with --ephemeral."
        )
    if _DISK_FAULT in reason:
        return StoreError(
            f"The disk that contains {path} reported an error ({reason}). Check the disk, or chat with --ephemeral."
        )
    if is_read_only_error(error):
        return StoreError(f"Cannot write to {path}: {reason}.")
    return StoreError(f"Cannot read or write conversations in {path}: {reason}.")


def make_damaged_error(path: Path | None, reason: str) -> DamagedDatabaseError:
    """Return the error for a damaged database, with the advice to recover it."""
    return DamagedDatabaseError(
        f"{path} is damaged ({reason}). Run `edgechat history recover` to recover its readable messages."
    )
