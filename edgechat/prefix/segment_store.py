"""Segment store: all saved segments of a prefix cache, in RAM (under a cap) and in the files of the disk tier."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from pathlib import Path

from edgechat.prefix.disk_tier import DiskTier
from edgechat.prefix.segment import KvSegment
from edgechat.prefix.tree import Node, PrefixTree


class SegmentStore:
    """Segments of all owners, each registered at a node of the prefix tree."""

    def __init__(
        self, tree: PrefixTree, find_live_nodes: Callable[[], set[Node]], ram_cap_bytes: int, disk: DiskTier | None
    ) -> None:
        """Create an empty store; `find_live_nodes` returns the tree nodes of all live sequences."""
        self.segments: set[KvSegment] = set()
        self.ram_cap_bytes = ram_cap_bytes
        self.disk = disk
        self._tree = tree
        self._find_live_nodes = find_live_nodes
        self._clock = itertools.count(1)

    @property
    def can_save_any(self) -> bool:
        """True if segments can be saved in RAM or on disk."""
        return bool(self.ram_cap_bytes) or self.disk is not None

    def can_save(self, owner: str) -> bool:
        """Return whether segments of `owner` can be saved; those of "" can be saved only in RAM."""
        return bool(self.ram_cap_bytes) or (self.disk is not None and bool(owner))

    def load_headers(self, owner: str) -> None:
        """Register segments for the files of an owner that have no segment yet."""
        if self.disk is None:
            return
        for path, header in self.disk.list_new_files(owner):
            node = self._tree.insert(header.tokens)
            segment = KvSegment(
                node, header.start, owner, can_resume=header.can_resume, n_bytes=header.n_bytes
            )  # fmt: skip
            segment.file = path
            self.add(segment)

    def add(self, segment: KvSegment) -> None:
        """Register a segment at its node; discard data of other segments from RAM if RAM is above its cap."""
        self.mark_used(segment)
        segment.node.n_segments += 1
        self.segments.add(segment)
        self._limit_ram()

    def remove(self, segment: KvSegment) -> None:
        """Unregister a segment and prune its node."""
        self.segments.discard(segment)
        segment.node.n_segments -= 1
        self._tree.prune(segment.node)

    def mark_used(self, segment: KvSegment) -> None:
        """Mark a segment as the most recently used segment."""
        segment.last_used = next(self._clock)

    def count_covered_tokens(self, tokens: Sequence[int], owners: Collection[str], *, can_truncate: bool) -> int:
        """Return the number of leading tokens that can be restored from the segments of `owners`."""
        match = self._tree.match(tokens)
        candidates = [s for s in self.segments if s.owner in owners and s.has_data]
        if not can_truncate:
            return max((s.end for s in candidates if s.can_resume and match.n_shared(s.node) == s.end), default=0)
        n_covered = 0
        while (end := max((match.n_shared(s.node) for s in candidates if s.start <= n_covered), default=0)) > n_covered:
            n_covered = end
        return n_covered

    def read(self, segments: Sequence[KvSegment]) -> Iterator[tuple[KvSegment, bytearray | memoryview | None]]:
        """Yield each segment with its data: a bytearray from RAM, a memoryview from disk, or None if it was lost."""
        segment_data = [(s, s.data) for s in segments]  # keep references, because an eviction may clear `s.data`
        files = [(s.file, s.node.path()) for s, data in segment_data if data is None and s.file is not None]
        with contextlib.closing(self._read_files(files)) as disk_data:
            for segment, data in segment_data:
                yield segment, next(disk_data, None) if data is None else data

    def _read_files(self, files: Sequence[tuple[Path, list[int]]]) -> Generator[memoryview | None, None, None]:
        if self.disk is not None and files:
            yield from self.disk.read(files)

    def write(self, segment: KvSegment) -> None:
        """Queue a segment for the disk thread."""
        if self.disk is not None:
            self.disk.queue_write(segment, segment.node.path())

    def write_next_segment(self) -> bool:
        """Queue one RAM-only segment for the disk thread; return False if the disk tier accepts no such segment."""
        for segment in self.segments:
            is_only_in_ram = segment.data is not None and segment.file is None
            if is_only_in_ram and self.disk is not None and self.disk.accepts_owner(segment.owner):
                self.write(segment)
                return True
        return False

    def remove_empty_segments(self) -> None:
        """Remove segments without data in RAM or on disk, such as segments of failed writes."""
        for segment in list(self.segments):
            if not segment.has_data:
                self.remove(segment)
        self._limit_ram()

    @property
    def ram_bytes(self) -> int:
        """Size of the segments in RAM, in bytes."""
        return sum(s.n_bytes for s in self.segments if s.data is not None)

    def discard_from_ram(self, n_bytes: int) -> None:
        """Discard at least `n_bytes` of segment data from RAM, or all data that need not be written to disk first."""
        self._limit_ram(max(0, self.ram_bytes - n_bytes))

    def _limit_ram(self, max_bytes: int | None = None) -> None:
        """Discard data of segments from RAM until RAM is under the cap, or under `max_bytes`.

        Data that is also on disk and in a live sequence is discarded first, then the least recently used data. Segments
        that wait to be written stay in RAM.
        """
        max_bytes = self.ram_cap_bytes if max_bytes is None else max_bytes
        live_nodes = self._find_live_nodes()
        segments_in_ram = sorted(
            (s for s in self.segments if s.data is not None),
            key=lambda s: (s.is_pending_write, not (s.file is not None and s.node in live_nodes), s.last_used),
        )
        total_bytes = sum(s.n_bytes for s in segments_in_ram)
        for segment in segments_in_ram:
            if total_bytes <= max_bytes or segment.is_pending_write:
                return
            total_bytes -= segment.n_bytes
            segment.data = None
            if not segment.has_data:
                self.remove(segment)
