"""Disk tier of the prefix cache: segment files in one folder per loaded model and conversation.

The path of a file is `ROOT/IDENTITY/CONVERSATION/START-END-DIGEST.kv`: IDENTITY is a hash of the build, the weights and
the layout of their KV memory, and CONVERSATION is a hash of the conversation id.
"""

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

from edgechat.prefix import segment_file
from edgechat.prefix.segment import KvSegment
from edgechat.prefix.segment_file import InvalidSegmentError, SegmentHeader

_log = logging.getLogger(__name__)
_SUFFIX: Final = ".kv"
_PART_SUFFIX: Final = ".part"
# Time without writes after a failed write.
_RETRY_AFTER_S: Final = 60.0


class DiskTier:
    """Segment files under a size cap, written by a background thread that waits while the tier is paused.

    A file that cannot be read or fails its checksum is deleted and counts as a cache miss.
    """

    def __init__(self, root: Path, cap_bytes: int, find_identity: Callable[[Callable[[], None]], str]) -> None:
        """Start the writer thread.

        `find_identity(pause)` returns the name of the model's folder. It hashes the weights, which takes long: the
        writer thread calls it before its first write, unless `identity` is set by then. `find_identity` calls `pause`
        between chunks.
        """
        self._root = root
        self._cap_bytes = cap_bytes
        self._find_identity = find_identity
        self.identity = ""
        """Name of the model's folder; "" until it is known."""
        # Read buffers, reused because page faults in newly allocated memory take longer than the read.
        self._buffers = [bytearray(), bytearray()]
        self._listed_files: dict[str, set[str]] = {}
        """File names by conversation that `new_files` returned or this process wrote."""
        self._created_folders: set[str] = set()
        """Names of the conversation folders that this process has created."""
        self._refused_ids: set[str] = set()
        """Ids of conversations that were deleted, or that had a segment above the cap; they are no longer written."""
        self._retry_at = 0.0
        self._is_running = threading.Event()
        self._is_running.set()
        self._jobs: queue.SimpleQueue[tuple[KvSegment, list[int], bytearray] | None] = queue.SimpleQueue()
        self._n_pending = 0
        self._thread = threading.Thread(target=self._run, name="prefix writer", daemon=True)
        self._thread.start()

    def pause(self) -> None:
        """Stop writing until `resume`, so that the decode loop can use all cores."""
        self._is_running.clear()

    def resume(self) -> None:
        """Continue to write queued segments."""
        self._is_running.set()

    @property
    def is_failing(self) -> bool:
        """True for 60 seconds after a write failed."""
        return time.monotonic() < self._retry_at

    def accepts(self, conversation: str) -> bool:
        """Return True if segments of `conversation` may be written: the id is not empty, and was not refused before."""
        return bool(conversation) and conversation not in self._refused_ids

    @property
    def is_busy(self) -> bool:
        """True while segments are queued or being written."""
        return self._n_pending > 0

    # Reading

    def new_files(self, conversation: str) -> Iterator[tuple[Path, SegmentHeader]]:
        """Iterate over the files of a conversation that earlier calls did not return."""
        if not self.identity or not conversation:
            return
        folder = self._folder(conversation)
        listed = self._listed_files.setdefault(conversation, set())
        with contextlib.suppress(OSError):
            for path in sorted(folder.glob(f"*{_SUFFIX}")):
                if path.name in listed:
                    continue
                listed.add(path.name)
                try:
                    with path.open("rb") as file:
                        yield path, segment_file.read_header(file)
                except (OSError, InvalidSegmentError):
                    self._delete_invalid(path)

    def read(self, files: Sequence[tuple[Path, Sequence[int]]]) -> Generator[memoryview | None, None, None]:
        """Iterate over the data of `files`, pairs of path and expected tokens; a view is valid until the next one.

        Yields None for a file that is invalid or holds other tokens, and deletes the file. A thread reads ahead by one
        file, since restoring the data takes as long as reading it.
        """
        free_buffers: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        results: queue.SimpleQueue[tuple[SegmentHeader, memoryview] | None] = queue.SimpleQueue()
        for number in range(len(self._buffers)):
            free_buffers.put(number)

        def read_ahead() -> None:
            for path, tokens in files:
                number = free_buffers.get()
                if number is None:
                    return
                results.put(_read(path, tokens, self._buffers, number))

        threading.Thread(target=read_ahead, name="prefix reader", daemon=True).start()
        try:
            for number, (path, _) in enumerate(files):
                result = results.get()
                if result is None or not segment_file.has_valid_checksum(*result):
                    self._delete_invalid(path)
                    yield None
                else:
                    with contextlib.suppress(OSError):
                        os.utime(path)  # `_sweep` deletes the least recently used files
                    yield result[1]
                free_buffers.put(number % len(self._buffers))
        finally:
            free_buffers.put(None)

    def _delete_invalid(self, path: Path) -> None:
        _log.warning("Deleted the invalid cached prefix %s; its tokens are computed again", path.name)
        with contextlib.suppress(OSError):
            path.unlink()

    # Writing

    def queue_write(self, segment: KvSegment, tokens: list[int]) -> None:
        """Queue a segment in RAM; `tokens` is its path from the root. The writer thread sets `segment.file`."""
        if segment.data is not None:
            self._n_pending += 1
            segment.is_pending_write = True
            self._jobs.put((segment, tokens, segment.data))

    def finish(self, timeout_s: float) -> None:
        """Write the queued segments and end the thread; after `timeout_s`, abandon the remaining segments."""
        self.resume()
        self._jobs.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            segment, tokens, data = job
            try:
                self._write(segment, tokens, data)
            except (OSError, MemoryError, ValueError) as error:
                _log.warning("Cannot save a prefix: %s", error)
                self._retry_at = time.monotonic() + _RETRY_AFTER_S
            segment.is_pending_write = False
            self._n_pending -= 1

    def _wait_while_paused(self) -> None:
        self._is_running.wait()

    def _write(self, segment: KvSegment, tokens: list[int], data: bytearray) -> None:
        if not self.identity:
            self.identity = self._find_identity(self._wait_while_paused)
        folder = self._folder(segment.conversation)
        if len(data) > self._cap_bytes or not self._create_folder(folder):
            self._refused_ids.add(segment.conversation)
            return
        self._sweep(len(data))
        digest = hashlib.blake2b(array("i", tokens).tobytes(), digest_size=8).hexdigest()
        path = folder / f"{segment.start}-{len(tokens)}-{digest}{_SUFFIX}"
        part = path.with_suffix(f".{os.getpid()}{_PART_SUFFIX}")
        try:
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                segment_file.write_segment(file, segment, tokens, data, self._wait_while_paused)
            # No fsync: after a power failure the checksum detects a file that is incomplete.
            self._listed_files.setdefault(segment.conversation, set()).add(path.name)
            part.replace(path)
            segment.file = path
        finally:
            with contextlib.suppress(OSError):
                part.unlink()

    def _create_folder(self, folder: Path) -> bool:
        """Create the folder of a conversation; False if an earlier folder was deleted with the conversation."""
        if folder.is_dir():
            return True
        if folder.name in self._created_folders and folder.parent.is_dir():
            return False
        for directory in (self._root, folder.parent, folder):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._created_folders.add(folder.name)
        return True

    def _folder(self, conversation: str) -> Path:
        return self._root / self.identity / folder_name(conversation)

    def _sweep(self, n_bytes: int) -> None:
        """Delete the least recently used files of all models until `n_bytes` more fit under the cap."""
        files: list[tuple[float, int, Path]] = []
        for path in self._root.glob("*/*/*"):
            with contextlib.suppress(OSError):  # another process may have deleted it
                status = path.stat()
                files.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in files) + n_bytes
        for _, size, path in sorted(files):
            if total <= self._cap_bytes:
                return
            with contextlib.suppress(OSError):
                path.unlink()
                total -= size


def delete_conversation(root: Path, conversation: str) -> None:
    """Delete the cached prefixes of a conversation for all models."""
    with contextlib.suppress(OSError):
        for folder in root.iterdir():
            shutil.rmtree(folder / folder_name(conversation), ignore_errors=True)


def folder_name(conversation: str) -> str:
    """Return a conversation's folder name: a hash, because ids from imported files may contain any characters."""
    return hashlib.blake2b(conversation.encode("utf-8", "replace"), digest_size=12).hexdigest()


def _read(
    path: Path, tokens: Sequence[int], buffers: list[bytearray], number: int
) -> tuple[SegmentHeader, memoryview] | None:
    """Read a file into buffer `number`, without a checksum test; None if it is invalid or holds other tokens."""
    try:
        with path.open("rb") as file:
            header = segment_file.read_header(file)
            size = os.fstat(file.fileno()).st_size - file.tell()
            if header.path != array("i", tokens).tobytes() or header.n_bytes != size:
                return None
            if len(buffers[number]) < size:
                buffers[number] = bytearray(size)
            view = memoryview(buffers[number])[:size]
            segment_file.read_data(file, view)
    except (OSError, InvalidSegmentError):
        return None
    return header, view
