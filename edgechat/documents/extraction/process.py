"""Extraction of text in a child process with limits of memory and time, which is replaced after a failure."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final

import msgspec

from edgechat import process
from edgechat.documents.extraction.builder import SPLIT_ADVICE, ExtractionLimits
from edgechat.documents.extraction.protocol import ExtractionReply, ExtractionRequest
from edgechat.documents.text import ExtractedDocument
from edgechat.engine.pipe import Channel, kill_child, make_frame, spawn_child, start_exchange
from edgechat.errors import EngineDiedError, UnreadableFileError, format_reason
from edgechat.hardware.memory import read_rss_bytes
from edgechat.humanize import format_duration

_POLL_INTERVAL_S: Final = 0.1
# Time for which a child that has closed its pipe may take to exit.
_EXIT_TIMEOUT_S: Final = 5.0
_LIMITS_ADDRESS_SPACE: Final = sys.platform not in {"win32", "darwin"}

IsCancelled = Callable[[], bool]


class ExtractionProcess:
    """Extracts the text of files in a child process, which is started for the first file. Not thread-safe."""

    def __init__(self, limits: ExtractionLimits | None = None) -> None:
        self.limits = limits or ExtractionLimits()
        self._child: tuple[subprocess.Popen[bytes], Channel] | None = None

    def __enter__(self) -> ExtractionProcess:  # noqa: PYI034  (Self needs Python 3.11)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the child process."""
        if self._child is not None:
            kill_child(*self._child)
            self._child = None

    def extract(self, path: Path, is_cancelled: IsCancelled = lambda: False) -> ExtractedDocument:
        """Return the text of a file.

        Raises UnreadableFileError if the file cannot be read, exceeds a limit, or if `is_cancelled`
        returns True meanwhile; EngineDiedError if the child process cannot be started.
        """
        name = _make_printable(path.name or str(path))
        try:
            encoded_path = os.fsencode(os.path.abspath(path))  # noqa: PTH100  (as in sources)
            timeout_s = self.limits.compute_timeout_s(os.stat(encoded_path).st_size)  # noqa: PTH116  (not a str)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else None
            raise _make_error(name, reason or format_reason(error), is_temporary=True) from error
        reply = self._exchange(ExtractionRequest(encoded_path, self.limits, timeout_s), is_cancelled)
        if reply.is_last:
            self.close()
        if reply.document is None:
            raise _make_error(name, reply.error, is_temporary=reply.is_temporary)
        return reply.document

    def _exchange(self, request: ExtractionRequest, is_cancelled: IsCancelled) -> ExtractionReply:
        """Send a request to the child process, and return its reply or a description of its failure."""
        if self._child is not None and self._child[0].poll() is not None:
            self.close()  # it has ended since the last file
        if self._child is None:
            self._child = spawn_child(["_extract"], subprocess.DEVNULL)
        child, channel = self._child
        replies = start_exchange(channel, make_frame(msgspec.msgpack.encode(request)))
        deadline = time.monotonic() + request.timeout_s
        while True:
            try:
                body = replies.get(timeout=_POLL_INTERVAL_S)
                break
            except queue.Empty:
                pass
            if is_cancelled():
                return ExtractionReply(error="reading it was cancelled", is_last=True, is_temporary=True)
            if time.monotonic() > deadline:
                limit = format_duration(request.timeout_s)
                return ExtractionReply(error=f"reading it took more than {limit}. {SPLIT_ADVICE}", is_last=True)
            if not _LIMITS_ADDRESS_SPACE and read_rss_bytes(child.pid) > self.limits.memory_bytes:
                return ExtractionReply(error=self.limits.describe_memory(), is_last=True)
        if body is None:
            error = _describe_exit(child)
            return ExtractionReply(error=error, is_last=True, is_temporary=child.returncode == -process.KILL_SIGNAL)
        try:
            return msgspec.msgpack.decode(body, type=ExtractionReply)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return ExtractionReply(error="the process that reads it sent an invalid reply", is_last=True)


def extract_file(path: Path, limits: ExtractionLimits | None = None) -> ExtractedDocument:
    """Return the text of one file. Raises the same errors as `ExtractionProcess.extract`."""
    with ExtractionProcess(limits) as extraction:
        return extraction.extract(path)


def _make_error(name: str, reason: str, *, is_temporary: bool = False) -> UnreadableFileError:
    reason = reason if reason.endswith((".", "!", "?")) else f"{reason}."
    return UnreadableFileError(
        f"{name} cannot be read: {reason}", reason[:1].upper() + reason[1:], is_temporary=is_temporary
    )


def _describe_exit(child: subprocess.Popen[bytes]) -> str:
    """Describe the end of a child process that has closed its pipe. Raises EngineDiedError after an upgrade."""
    try:
        code = child.wait(_EXIT_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return f"the process that reads it did not end within {format_duration(_EXIT_TIMEOUT_S)}. Try again."
    if code == process.EXIT_VERSION_CHANGED:
        raise EngineDiedError(process.UPGRADED_MESSAGE)
    if code == -process.KILL_SIGNAL:
        return f"the system ended the process that reads it, probably because memory is short. {SPLIT_ADVICE}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"exit code {code}"
    return f"the process that reads it failed ({name}). The file is probably damaged."


def _make_printable(name: str) -> str:
    """Return a file name with escapes for characters that are not printable or not valid Unicode."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)
