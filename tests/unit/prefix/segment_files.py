"""Helpers that make segments and write them to a disk tier."""

from __future__ import annotations

from pathlib import Path

from edgechat.prefix.disk_tier import DiskTier
from edgechat.prefix.segment import KvSegment
from edgechat.prefix.tree import PrefixTree
from tests.waiting import until

TOKENS = list(range(1, 101))


def make_disk(root: Path, cap_bytes: int = 1 << 20, identity: str = "it") -> DiskTier:
    disk = DiskTier(root, cap_bytes, lambda pause: identity)
    disk.identity = identity
    return disk


def wait_for_writes(disk: DiskTier) -> None:
    until(lambda: not disk.is_busy, interval_s=0.001)


def make_segment(
    data: bytes = b"x" * 1000, *, start: int = 0, conversation: str = "talk", tokens: list[int] = TOKENS
) -> KvSegment:
    segment = KvSegment(PrefixTree().insert(tokens), start, conversation, can_resume=True, n_bytes=len(data))
    segment.data = bytearray(data)
    return segment


def write(disk: DiskTier, segment: KvSegment | None = None) -> KvSegment:
    """Write a segment and wait until the disk thread has finished with it."""
    segment = segment or make_segment()
    disk.queue_write(segment, segment.node.path())
    wait_for_writes(disk)
    return segment


def write_file(root: Path, segment: KvSegment | None = None) -> Path:
    """Write a segment with a disk tier of its own and return the path of its file."""
    disk = make_disk(root)
    segment = write(disk, segment)
    disk.finish(1)
    assert segment.file is not None
    return segment.file


def read(disk: DiskTier, path: Path, tokens: list[int] = TOKENS) -> bytes | None:
    [data] = disk.read([(path, tokens)])
    return bytes(data) if data is not None else None
