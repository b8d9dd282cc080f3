"""Mark of an engine process that computes a reply, so that idle work of the user's other engine processes waits."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


class ComputingMark:
    """Shared file lock that this process holds while it computes a reply.

    The operating system releases the lock when the process ends. Without shared locks (on Windows), and if the file
    cannot be opened, other processes always seem to be idle.
    """

    def __init__(self, path: Path | None) -> None:
        """Open the file, and create it if it is missing. Without `path`, other processes always seem to be idle."""
        self._descriptor: int | None = None
        if path is None:
            return
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            path.parent.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.parent.mkdir(mode=0o700, exist_ok=True)
            self._fcntl = fcntl
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def set(self, is_computing: bool) -> None:  # noqa: FBT001  (a switch)
        """Set or remove the mark of this process. May wait for microseconds while another process checks the marks."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                self._fcntl.flock(self._descriptor, self._fcntl.LOCK_SH if is_computing else self._fcntl.LOCK_UN)

    def is_set_by_others(self) -> bool:
        """Return whether another process has set its mark. The mark of this process must not be set."""
        if self._descriptor is None:
            return False
        try:
            self._fcntl.flock(self._descriptor, self._fcntl.LOCK_EX | self._fcntl.LOCK_NB)
        except OSError:
            return True
        self.set(False)
        return False

    def close(self) -> None:
        """Remove the mark and close the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
