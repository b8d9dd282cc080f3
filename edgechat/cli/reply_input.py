"""Lines that the user types in the line-by-line chat while a reply is generated."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator

NOW_COMMAND = "/now"


class ReplyInput:
    """Reads the terminal during replies: `/now` takes effect at once, all other lines are kept for later.

    Only for terminals of Unix: the lines of a pipe are the next messages, and Windows cannot wait for a console and the
    end of the reply at the same time.
    """

    def __init__(self, on_now: Callable[[], object], fd: int = 0) -> None:
        """Call `on_now`, on another thread, when the user enters `/now`; `fd` is the terminal."""
        self._on_now = on_now
        self._fd = fd
        self.lines: list[str] = []
        """Lines that were typed during replies, without `/now`."""
        self.is_at_end = False
        """True if the user has pressed Ctrl-D during a reply."""

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Read lines during the `with` block, if the input is a terminal of Unix."""
        if sys.platform == "win32" or not os.isatty(self._fd):
            yield
            return
        end_reader, end_writer = os.pipe()
        thread = threading.Thread(target=self._read_lines, args=(end_reader,), name="reply input", daemon=True)
        thread.start()
        try:
            yield
        finally:
            os.close(end_writer)
            thread.join()
            os.close(end_reader)

    def _is_in_foreground(self) -> bool:
        """Return whether this process may read the terminal; reading would stop it in the background."""
        try:
            return os.tcgetpgrp(self._fd) == os.getpgrp()
        except OSError:  # the terminal does not control this process
            return True

    def _read_lines(self, end_fd: int) -> None:
        """Read the lines of the terminal until the other end of the pipe `end_fd` is closed."""
        import select

        while not self.is_at_end:
            ready_fds, _, _ = select.select([self._fd, end_fd], [], [])
            if end_fd in ready_fds or not self._is_in_foreground():
                return
            try:
                data = os.read(self._fd, 1 << 16)  # one line, because the terminal is in line mode
            except OSError:  # the terminal is gone
                data = b""
            self.is_at_end = not data
            for line in data.decode("utf-8", "surrogateescape").split("\n")[: data.count(b"\n") or None]:
                if line.strip() == NOW_COMMAND:
                    self._on_now()
                else:
                    self.lines.append(line)
