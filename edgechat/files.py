"""File helpers: size-limited reads, atomic replacement, and typed JSON state files.

State files (verdicts, measurements, registries) can be recreated: `JsonFile.read` returns None for a missing, damaged,
oversized or incompatible file, and `JsonFile.save` ignores a disk that cannot be written.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import msgspec

from edgechat.errors import InvalidFileError

T = TypeVar("T")

MAX_TOML_BYTES: Final = 4 << 20
"""Maximum size of a TOML file. The largest shipped one, models.toml, has 74 kB."""


class JsonFile(Generic[T]):
    """JSON file with content of type `T`, which is read with a size limit and replaced atomically."""

    def __init__(
        self, path: Path, content_type: type[T], *, max_bytes: int, is_valid: Callable[[T], bool] = lambda value: True
    ) -> None:
        """Set path and content type of the file, without reading it.

        `is_valid` returns False for decoded content that must not be used, such as that of another version.
        """
        self.path = path
        self._type = content_type
        self._max_bytes = max_bytes
        self._is_valid = is_valid

    def load(self) -> T | None:
        """Return the content, or None if the file does not exist. Raises InvalidFileError if it cannot be used."""
        try:
            value = msgspec.json.decode(read_bytes(self.path, self._max_bytes), type=self._type)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise InvalidFileError(str(self.path), f"cannot be read: {error.strerror or error}") from error
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidFileError(str(self.path), f"is damaged: {error}") from error
        if not self._is_valid(value):
            raise InvalidFileError(str(self.path), "has content that this version of edgechat cannot use")
        return value

    def read(self) -> T | None:
        """Return the content of the file; None if the file does not exist or cannot be used."""
        try:
            return self.load()
        except InvalidFileError:
            return None

    def write(self, value: T, *, indent: int = 0) -> None:
        """Replace the file atomically; its directory is created if missing. Raises OSError."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        data = msgspec.json.encode(value)
        replace_file(self.path, msgspec.json.format(data, indent=indent) if indent else data)

    def save(self, value: T) -> None:
        """Replace the file. If the disk cannot be written, the old file stays, and `edgechat doctor` reports it."""
        with contextlib.suppress(OSError, UnicodeError):  # UnicodeError: a path that is not UTF-8
            self.write(value)


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """Read a regular file of at most `max_bytes`.

    Raises OSError, also for a larger file, and for a pipe or device, whose data may never end.
    """
    with os.fdopen(
        os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb"
    ) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if status.st_size > max_bytes:
            raise OSError(errno.EFBIG, f"larger than {max_bytes} bytes", str(path))
        return file.read(max_bytes)


def replace_file(path: Path, data: bytes) -> None:
    """Replace a file atomically with one that only its owner can read. Raises OSError.

    The directory of the file must exist. The data is not synced to disk, so it may be lost in a power failure.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)
        part.replace(path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def read_toml(path: Path, max_bytes: int = MAX_TOML_BYTES) -> dict[str, Any]:
    """Parse a TOML file. Raises InvalidFileError, with the line if it is known."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    try:
        return tomllib.loads(read_bytes(path, max_bytes).decode("utf-8"))
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"line (\d+)", str(error))
        raise InvalidFileError(f"{path}:{line[1]}" if line else str(path), f"is not TOML: {error}") from error
    except UnicodeDecodeError as error:
        raise InvalidFileError(str(path), f"is not UTF-8 at byte {error.start}") from error
    except OSError as error:
        raise InvalidFileError(str(path), f"cannot be read: {error.strerror or error}") from error
