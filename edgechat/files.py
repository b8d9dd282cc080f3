"""File helpers: size-limited reads, atomic replacement, and typed JSON state files.

State files (verdicts, measurements, registries) can be recreated: `JsonFile.read` returns None for a missing, damaged,
oversized or incompatible file, and `JsonFile.save` ignores write errors.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import sys
import time
from collections.abc import Callable
from io import BufferedReader, BufferedWriter, FileIO
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import msgspec

from edgechat.decode_errors import describe_decode_error
from edgechat.errors import InvalidFileError

T = TypeVar("T")

MAX_TOML_BYTES: Final = 4 << 20
"""Maximum size of a TOML file. The largest TOML file in the package, models.toml, has 74 kB."""


# Chunk size for reading a file that turns out to be larger than `st_size`.
_CHUNK_BYTES: Final = 1 << 20
_LOCK_POLL_S: Final = 0.02


class JsonFile(Generic[T]):
    """JSON file with content of type `T`. Reads have a size limit, and writes replace the file atomically."""

    def __init__(
        self, path: Path, content_type: type[T], *, max_bytes: int, is_valid: Callable[[T], bool] = lambda value: True
    ) -> None:
        """Set the path and content type of the file; does not read the file.

        `is_valid` returns False for decoded content that must not be used, such as content of another version.
        """
        self.path = path
        self._type = content_type
        self._max_bytes = max_bytes
        self._is_valid = is_valid

    def load(self) -> T | None:
        """Return the content, or None if the file does not exist. Raises InvalidFileError for an unusable file."""
        try:
            value = msgspec.json.decode(read_bytes(self.path, self._max_bytes), type=self._type)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise InvalidFileError(str(self.path), f"cannot be read: {error.strerror or error}") from error
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            reason = "invalid UTF-8" if isinstance(error, UnicodeDecodeError) else describe_decode_error(error)
            raise InvalidFileError(str(self.path), f"is damaged: {reason}") from error
        if not self._is_valid(value):
            raise InvalidFileError(str(self.path), "has content that this version of edgechat cannot use")
        return value

    def read(self) -> T | None:
        """Return the content of the file; None if the file does not exist or is unusable."""
        try:
            return self.load()
        except InvalidFileError:
            return None

    def write(self, value: T, *, indent: int = 0) -> None:
        """Write `value` to the file atomically; create the directory if it is missing. Raises OSError."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        data = msgspec.json.encode(value)
        replace_file(self.path, msgspec.json.format(data, indent=indent) if indent else data)

    def save(self, value: T) -> None:
        """Write `value` to the file. After a write error, the old file remains; `edgechat doctor` reports the error."""
        with contextlib.suppress(OSError, UnicodeError):  # UnicodeError: the path is not valid UTF-8
            self.write(value)


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading. Raises OSError, also for pipes and devices: reading them might never end."""
    return os.fdopen(_open_regular(path, os.O_RDONLY), "rb")


def open_private(path: Path, flag: int = os.O_TRUNC) -> BufferedWriter:
    """Open a regular file for writing; create it, readable only by its owner, if it is missing.

    With os.O_APPEND as `flag` instead of os.O_TRUNC, the content of an existing file is kept. Raises OSError, also for
    pipes and devices.
    """
    return os.fdopen(_open_regular(path, os.O_WRONLY | os.O_CREAT | flag), "wb")


def _open_regular(path: Path, flags: int) -> int:
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0), 0o600)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))  # noqa: TRY301
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """Read a regular file of at most `max_bytes`.

    Raises OSError, also if the file is larger or not a regular file. Reads to the end of a file that is larger than
    `st_size`, such as a growing file or a file in /proc.
    """
    with open_regular(path) as file:
        status = os.fstat(file.fileno())
        # `read` returns None if a special file, for example in /proc, has no data at the moment.
        data = file.read(min(status.st_size, max_bytes) + 1) or b""
        while status.st_size < len(data) <= max_bytes and (part := file.read(_CHUNK_BYTES)):
            data += part
        if len(data) > max_bytes:
            raise OSError(errno.EFBIG, f"larger than {max_bytes} bytes", str(path))
        return data


def open_new_private(path: Path) -> FileIO:
    """Create a file that only its owner can read, and open it without a buffer. Raises OSError if it exists."""
    return FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600), "r+b")


class FileLock:
    """Lock between processes, which the operating system releases when a process ends."""

    def __init__(self, path: Path) -> None:
        """Open the lock file, and create it if it is missing. Raises OSError."""
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)

    def try_acquire(self) -> bool:
        """Acquire the lock if no other process holds it; return whether this process holds it now.

        Raises OSError if the file system has no locks.
        """
        try:
            if sys.platform == "win32":
                import msvcrt

                msvcrt.locking(self._descriptor, msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in {errno.EAGAIN, errno.EACCES, errno.EDEADLK}:
                return False
            raise
        return True

    def write_owner(self) -> None:
        """Write the id of this process, which holds the lock, into the file; ignore errors."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            os.write(self._descriptor, str(os.getpid()).encode())

    def read_owner(self) -> int | None:
        """Return the process id that `write_owner` stored last, of whatever process; None if it is unknown."""
        with contextlib.suppress(OSError, ValueError):
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            return int(os.read(self._descriptor, 20))
        return None

    def acquire(self, timeout_s: float) -> bool:
        """Acquire the lock; return False if another process holds it for longer than `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while not self.try_acquire():
            if time.monotonic() >= deadline:
                return False
            time.sleep(_LOCK_POLL_S)
        return True

    def close(self) -> None:
        """Release the lock and close the file."""
        if sys.platform != "win32":
            import fcntl

            # Another thread that starts a process at this moment has a copy of the descriptor until the program is
            # executed. The lock of an open file belongs to all copies, and would be held until then.
            with contextlib.suppress(OSError):
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        os.close(self._descriptor)


def make_file_key(path: str) -> str:
    """Return the key of a model file in state files: its name and size, so that it stays the same after a move."""
    file = Path(path)
    try:
        return f"{file.name} {file.stat().st_size}"
    except OSError:
        return file.name


def replace_file(path: Path, data: bytes) -> None:
    """Write `data` to a file, atomically and readable only by the owner. Raises OSError.

    The directory of the file must exist. The data is not synced to disk, so it may be lost in a power failure.
    """
    part_file = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open_private(part_file) as file:
            file.write(data)
        part_file.replace(path)
    finally:
        with contextlib.suppress(OSError):
            part_file.unlink()


def read_toml(path: Path, max_bytes: int = MAX_TOML_BYTES) -> dict[str, Any]:
    """Parse a TOML file. Raises InvalidFileError, with the line number of the error if the number is known."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    try:
        return tomllib.loads(read_bytes(path, max_bytes).decode("utf-8"))
    except tomllib.TOMLDecodeError as error:
        line_match = re.search(r"line (\d+)", str(error))
        location = f"{path}:{line_match[1]}" if line_match else str(path)
        raise InvalidFileError(location, f"is not valid TOML: {error}") from error
    except UnicodeDecodeError as error:
        raise InvalidFileError(str(path), f"is not valid UTF-8 at byte {error.start}") from error
    except OSError as error:
        raise InvalidFileError(str(path), f"cannot be read: {error.strerror or error}") from error
