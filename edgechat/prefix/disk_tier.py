"""Pieces in files: one folder for each model as it is loaded, in it one for each conversation."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import queue
import shutil
import threading
import time
from array import array
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Final

from edgechat.prefix import segment as pieces
from edgechat.prefix.segment import InvalidSegmentError, KvSegment, SegmentHeader

_log = logging.getLogger(__name__)
_SUFFIX: Final = ".kv"
_ASIDE: Final = ".part"
# After a failure it is not tried again for so long.
_FAILING_S: Final = 60.0


class DiskTier:
    """Files are written by a thread of its own, which rests while `pause`d. What cannot be read is a miss."""

    def __init__(self, root: Path, cap_bytes: int, find_identity: Callable[[Callable[[], None]], str]) -> None:
        """`find_identity` names the weights, and all that decides what their memory looks like.

        It may take long, calls what it is given now and then, and is called by the thread, unless `identity` is set
        before.
        """
        self._root = root
        self._cap_bytes = cap_bytes
        self._find_identity = find_identity
        self.identity = ""
        """The name of the folder; "" while it is not known."""
        self._buffers = [bytearray(), bytearray()]  # the same for all: fresh memory costs more than reading into it
        self._seen: dict[str, set[str]] = {}
        self._made: set[str] = set()
        self._refused: set[str] = set()
        self._failing_until_s = 0.0
        self._resting = threading.Event()
        self._resting.set()
        self._jobs: queue.SimpleQueue[tuple[KvSegment, list[int], bytearray] | None] = queue.SimpleQueue()
        self._n_waiting = 0
        self._thread = threading.Thread(target=self._work, name="prefix writer", daemon=True)
        self._thread.start()

    def pause(self) -> None:
        """Leave the machine to somebody else, until `resume`."""
        self._resting.clear()

    def resume(self) -> None:
        """Go on writing."""
        self._resting.set()

    @property
    def is_failing(self) -> bool:
        """True for a while after nothing could be written."""
        return time.monotonic() < self._failing_until_s

    def accepts(self, conversation: str) -> bool:
        """False if nothing is to be written for a conversation: for nobody's, and where it was refused before."""
        return bool(conversation) and conversation not in self._refused

    @property
    def is_busy(self) -> bool:
        """True while something waits to be written."""
        return self._n_waiting > 0

    # Reading

    def new_files(self, conversation: str) -> Iterator[tuple[Path, SegmentHeader]]:
        """What is there of a conversation and was not named before."""
        if not self.identity or not conversation:
            return
        folder = self._folder(conversation)
        seen = self._seen.setdefault(conversation, set())
        with contextlib.suppress(OSError):
            for path in sorted(folder.glob(f"*{_SUFFIX}")):
                if path.name in seen:
                    continue
                seen.add(path.name)
                try:
                    with path.open("rb") as file:
                        yield path, pieces.read_header(file)
                except (OSError, InvalidSegmentError):
                    self._discard(path)

    def read(self, wanted: Sequence[tuple[Path, Sequence[int]]]) -> Generator[memoryview | None, None, None]:
        """The data of files that must be of exactly these paths of tokens, each until the next is asked for.

        None for one that cannot be used; then it is gone. A thread reads ahead, since what is done with the data takes
        as long as reading it.
        """
        free: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        full: queue.SimpleQueue[tuple[SegmentHeader, memoryview] | None] = queue.SimpleQueue()
        for number in range(len(self._buffers)):
            free.put(number)

        def read_ahead() -> None:
            for path, tokens in wanted:
                number = free.get()
                if number is None:
                    return
                full.put(_read(path, tokens, self._buffers, number))

        threading.Thread(target=read_ahead, name="prefix reader", daemon=True).start()
        try:
            for number, (path, _) in enumerate(wanted):
                found = full.get()
                if found is None or not pieces.is_whole(*found):
                    self._discard(path)
                    yield None
                else:
                    with contextlib.suppress(OSError):
                        os.utime(path)
                    yield found[1]
                free.put(number % len(self._buffers))
        finally:
            free.put(None)

    def _discard(self, path: Path) -> None:
        _log.warning("the prefix in %s cannot be used, and is computed again", path.name)
        with contextlib.suppress(OSError):
            path.unlink()

    # Writing

    def queue_write(self, piece: KvSegment, tokens: list[int]) -> None:
        """Have `piece`, which is in RAM, written; its `file` is set once it is."""
        if piece.data is not None:
            self._n_waiting += 1
            piece.is_pending_write = True
            self._jobs.put((piece, tokens, piece.data))

    def finish(self, timeout_s: float) -> None:
        """Write what waits, and end the thread; what takes longer is left out."""
        self.resume()
        self._jobs.put(None)
        self._thread.join(timeout_s)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._try(*job)
            job[0].is_pending_write = False
            self._n_waiting -= 1

    def _try(self, piece: KvSegment, tokens: list[int], data: bytearray) -> None:
        try:
            self._write(piece, tokens, data)
        except (OSError, MemoryError, ValueError) as error:
            _log.warning("a prefix is not kept: %s", error)
            self._failing_until_s = time.monotonic() + _FAILING_S

    def _wait(self) -> None:
        self._resting.wait()

    def _write(self, piece: KvSegment, tokens: list[int], data: bytearray) -> None:
        if not self.identity:
            self.identity = self._find_identity(self._wait)
        folder = self._folder(piece.conversation)
        if len(data) > self._cap_bytes or not self._make(folder):
            self._refused.add(piece.conversation)
            return
        self._sweep(len(data))
        digest = hashlib.blake2b(array("i", tokens).tobytes(), digest_size=8).hexdigest()
        path = folder / f"{piece.start}-{len(tokens)}-{digest}{_SUFFIX}"
        aside = path.with_suffix(f".{os.getpid()}{_ASIDE}")
        try:
            with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                pieces.write_segment(file, piece, tokens, data, self._wait)
            # Not waiting for the disk: after a power failure the checksum finds what did not arrive.
            self._seen.setdefault(piece.conversation, set()).add(path.name)
            aside.replace(path)
            piece.file = path
        finally:
            with contextlib.suppress(OSError):
                aside.unlink()

    def _make(self, folder: Path) -> bool:
        """Make a conversation's folder; not again, if it was removed: then the conversation was deleted."""
        if folder.is_dir():
            return True
        if folder.name in self._made and folder.parent.is_dir():
            return False
        for each in (self._root, folder.parent, folder):
            each.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._made.add(folder.name)
        return True

    def _folder(self, conversation: str) -> Path:
        return self._root / self.identity / folder_name(conversation)

    def _sweep(self, n_bytes: int) -> None:
        """Remove what was not used for the longest time, until there is room for `n_bytes`."""
        found: list[tuple[float, int, Path]] = []
        for path in self._root.glob("*/*/*"):
            with contextlib.suppress(OSError):  # another process was faster
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in found) + n_bytes
        for _, size, path in sorted(found):
            if total <= self._cap_bytes:
                return
            with contextlib.suppress(OSError):
                path.unlink()
                total -= size


def delete_conversation(root: Path, conversation: str) -> None:
    """Remove all that is cached of a conversation, for every model."""
    with contextlib.suppress(OSError):
        for folder in root.iterdir():
            shutil.rmtree(folder / folder_name(conversation), ignore_errors=True)


def folder_name(conversation: str) -> str:
    """Ids come from imported files too, where they may be anything."""
    return hashlib.blake2b(conversation.encode("utf-8", "replace"), digest_size=12).hexdigest()


def _read(
    path: Path, tokens: Sequence[int], buffers: list[bytearray], number: int
) -> tuple[SegmentHeader, memoryview] | None:
    """A file's header and data, which is not checked yet, in one of the buffers."""
    try:
        with path.open("rb") as file:
            header = pieces.read_header(file)
            size = os.fstat(file.fileno()).st_size - file.tell()
            if header.path != array("i", tokens).tobytes() or header.n_bytes != size:
                return None
            if len(buffers[number]) < size:
                buffers[number] = bytearray(size)
            view = memoryview(buffers[number])[:size]
            pieces.read_data(file, view)
    except (OSError, InvalidSegmentError):
        return None
    return header, view
