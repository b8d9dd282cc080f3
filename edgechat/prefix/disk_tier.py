"""Disk tier of the prefix cache: segment files, in one folder per model and owner.

The path of a file is `ROOT/IDENTITY/OWNER/START-END-DIGEST.kv`. IDENTITY is a hash of the weights, the llama.cpp build
and the layout of the KV memory. OWNER is a hash of the conversation id, or "pinned-" and hashes for a shared prefix.
DIGEST is a hash of the tokens.
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

from edgechat.files import open_private, open_regular
from edgechat.prefix import segment_file
from edgechat.prefix.segment import KvSegment
from edgechat.prefix.segment_file import InvalidSegmentError, SegmentHeader
from edgechat.prefix.shared_prefix import is_pinned_file, make_folder_name

_log = logging.getLogger(__name__)
_SEGMENT_SUFFIX: Final = ".kv"
_PART_SUFFIX: Final = ".part"
# Part of the size cap that pinned files can fill; beyond it, the least recently used of them are like other files.
_MAX_PINNED_FRACTION: Final = 0.5
# Delay before the next write after a failed write.
_RETRY_AFTER_S: Final = 60.0


class DiskTier:
    """Reads and writes segment files under a size cap. A background thread writes, and waits while the tier is paused.

    A file that cannot be read, or has a wrong checksum, is deleted; its tokens are then computed again.
    """

    def __init__(self, root: Path, cap_bytes: int, compute_identity: Callable[[Callable[[], None]], str]) -> None:
        """Start the writer thread.

        `compute_identity(pause)` returns the name of the model's folder. It hashes the weights, which takes seconds per
        gigabyte, so the writer thread calls it before the first write, unless `identity` has been set. Between chunks
        of the weights, `compute_identity` calls `pause`, which blocks while the tier is paused.
        """
        self._root = root
        self._cap_bytes = cap_bytes
        self._compute_identity = compute_identity
        self.identity = ""
        """Name of the model's folder; "" before it is computed."""
        # Read buffers, reused because page faults in newly allocated memory take longer than the read.
        self._buffers = [bytearray(), bytearray()]
        self._listed_files: dict[str, set[str]] = {}
        """Names of the files that `list_new_files` has returned or this process has written, by owner."""
        self._created_folders: set[str] = set()
        """Names of the owners' folders that this process has created."""
        self._refused_owners: set[str] = set()
        """Owners whose segments are no longer saved: they were deleted, or had a segment above the cap."""
        self._retry_at = 0.0
        self._is_running = threading.Event()
        self._is_running.set()
        self._jobs: queue.SimpleQueue[tuple[KvSegment, list[int], bytearray] | None] = queue.SimpleQueue()
        self._n_pending = 0
        self._thread = threading.Thread(target=self._write_queued, name="prefix writer", daemon=True)
        self._thread.start()

    def pause(self) -> None:
        """Stop writing until `resume`, so that the decode loop can use all cores."""
        self._is_running.clear()

    def resume(self) -> None:
        """Continue writing queued segments."""
        self._is_running.set()

    @property
    def is_failing(self) -> bool:
        """True for 60 seconds after a failed write."""
        return time.monotonic() < self._retry_at

    def accepts_owner(self, owner: str) -> bool:
        """Return whether segments of `owner` may be written: False if it is "" or in `_refused_owners`."""
        return bool(owner) and owner not in self._refused_owners

    @property
    def is_busy(self) -> bool:
        """True while any segment is queued or being written."""
        return self._n_pending > 0

    # Reading

    def list_new_files(self, owner: str) -> Iterator[tuple[Path, SegmentHeader]]:
        """Yield the path and header of each file of an owner, except files that this process has seen before."""
        if not self.identity or not owner:
            return
        folder = self._owner_folder(owner)
        listed_names = self._listed_files.setdefault(owner, set())
        with contextlib.suppress(OSError):
            for path in sorted(folder.glob(f"*{_SEGMENT_SUFFIX}")):
                if path.name in listed_names:
                    continue
                listed_names.add(path.name)
                try:
                    with open_regular(path) as file:
                        yield path, segment_file.read_header(file)
                except (OSError, InvalidSegmentError):
                    self._delete_invalid(path)

    def read(self, files: Sequence[tuple[Path, Sequence[int]]]) -> Generator[memoryview | None, None, None]:
        """Yield the data of each of `files` (path and expected tokens). A view is valid until the next iteration.

        Yields None for a file that is invalid or has other tokens, and deletes that file. A thread reads one file
        ahead, because restoring a file takes as long as reading it.
        """
        free_buffers: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        results: queue.SimpleQueue[tuple[SegmentHeader, memoryview] | None] = queue.SimpleQueue()
        for buffer_index in range(len(self._buffers)):
            free_buffers.put(buffer_index)

        def read_ahead() -> None:
            for path, tokens in files:
                buffer_index = free_buffers.get()
                if buffer_index is None:
                    return
                results.put(_read_file(path, tokens, self._buffers, buffer_index))

        threading.Thread(target=read_ahead, name="prefix reader", daemon=True).start()
        try:
            for file_index, (path, _) in enumerate(files):
                result = results.get()
                if result is None or not segment_file.has_valid_checksum(*result):
                    self._delete_invalid(path)
                    yield None
                else:
                    with contextlib.suppress(OSError):
                        os.utime(path)  # mark the file as recently used for `_evict_files`
                    yield result[1]
                free_buffers.put(file_index % len(self._buffers))
        finally:
            free_buffers.put(None)

    def _delete_invalid(self, path: Path) -> None:
        _log.warning("Deleted the invalid cached prefix %s; its tokens are computed again", path.name)
        with contextlib.suppress(OSError):
            path.unlink()

    # Writing

    def queue_write(self, segment: KvSegment, tokens: list[int]) -> None:
        """Queue a segment in RAM for writing; `tokens` are all tokens from the root to the end of the segment.

        The writer thread sets `segment.file`.
        """
        if segment.data is not None:
            self._n_pending += 1
            segment.is_pending_write = True
            self._jobs.put((segment, tokens, segment.data))

    def finish(self, timeout_s: float) -> None:
        """Write the queued segments and end the writer thread; after `timeout_s`, abandon the remaining segments."""
        self.resume()
        self._jobs.put(None)
        self._thread.join(timeout_s)

    def _write_queued(self) -> None:
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
            self.identity = self._compute_identity(self._wait_while_paused)
        folder = self._owner_folder(segment.owner)
        if len(data) > self._cap_bytes or not self._create_folder(folder):
            self._refused_owners.add(segment.owner)
            return
        self._evict_files(len(data))
        digest = hashlib.blake2b(array("i", tokens).tobytes(), digest_size=8).hexdigest()
        path = folder / f"{segment.start}-{len(tokens)}-{digest}{_SEGMENT_SUFFIX}"
        part_path = path.with_suffix(f".{os.getpid()}{_PART_SUFFIX}")
        try:
            with open_private(part_path) as file:
                segment_file.write_segment(file, segment, tokens, data, self._wait_while_paused)
            # No fsync: the checksum detects a file that is incomplete after a power failure.
            self._listed_files.setdefault(segment.owner, set()).add(path.name)
            part_path.replace(path)
            segment.file = path
        finally:
            with contextlib.suppress(OSError):
                part_path.unlink()

    def _create_folder(self, folder: Path) -> bool:
        """Create the folder of an owner. Return False if the folder was deleted after this process created it."""
        if folder.is_dir():
            return True
        if folder.name in self._created_folders and folder.parent.is_dir():
            return False
        for directory in (self._root, folder.parent, folder):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._created_folders.add(folder.name)
        return True

    def _owner_folder(self, owner: str) -> Path:
        return self._root / self.identity / make_folder_name(owner)

    def _evict_files(self, n_bytes: int) -> None:
        """Delete the least recently used files of all models until `n_bytes` of new data fit under the cap.

        Pinned files are deleted last, except those beyond their part of the cap.
        """
        files: list[tuple[float, int, Path]] = []
        for path in self._root.glob("*/*/*"):
            with contextlib.suppress(OSError):  # another process may have deleted the file
                file_status = path.stat()
                files.append((file_status.st_mtime, file_status.st_size, path))
        total_bytes = sum(size for _, size, _ in files) + n_bytes
        for _, size, path in self._order_by_use(files):
            if total_bytes <= self._cap_bytes:
                return
            with contextlib.suppress(OSError):
                path.unlink()
                total_bytes -= size

    def _order_by_use(self, files: list[tuple[float, int, Path]]) -> list[tuple[float, int, Path]]:
        """Return files (time of the last use, size and path), those to be deleted first at the beginning."""
        kept: list[tuple[float, int, Path]] = []
        others: list[tuple[float, int, Path]] = []
        pinned_bytes = 0
        for file in sorted(files, reverse=True):
            pinned_bytes += file[1] if is_pinned_file(file[2]) else 0
            is_kept = is_pinned_file(file[2]) and pinned_bytes <= _MAX_PINNED_FRACTION * self._cap_bytes
            (kept if is_kept else others).append(file)
        return [*reversed(others), *reversed(kept)]


def delete_conversation(root: Path, conversation: str) -> None:
    """Delete the cached prefixes of a conversation for all models."""
    with contextlib.suppress(OSError):
        for folder in root.iterdir():
            shutil.rmtree(folder / make_folder_name(conversation), ignore_errors=True)


def _read_file(
    path: Path, tokens: Sequence[int], buffers: list[bytearray], buffer_index: int
) -> tuple[SegmentHeader, memoryview] | None:
    """Read a file into `buffers[buffer_index]`, without checking the checksum.

    Returns None if the file is invalid or has other tokens.
    """
    try:
        with open_regular(path) as file:
            header = segment_file.read_header(file)
            size = os.fstat(file.fileno()).st_size - file.tell()
            if header.token_bytes != array("i", tokens).tobytes() or header.n_bytes != size:
                return None
            if len(buffers[buffer_index]) < size:
                buffers[buffer_index] = bytearray(size)
            view = memoryview(buffers[buffer_index])[:size]
            segment_file.read_data(file, view)
    except (OSError, InvalidSegmentError):
        return None
    return header, view
