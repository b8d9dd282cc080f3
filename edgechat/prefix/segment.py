"""KV segment: saved KV memory of a range of token positions."""

from __future__ import annotations

from pathlib import Path

from edgechat.prefix.tree import Node


class KvSegment:
    """KV memory of the positions from `start` to the end of `node`, in RAM, in a file, or in both."""

    def __init__(self, node: Node, start: int, owner: str, *, can_resume: bool, n_bytes: int) -> None:
        self.node = node
        self.start = start
        self.owner = owner
        """Id of the conversation that the tokens belong to, or owner of a shared prefix; "" for a segment that must not
        be written to disk."""
        self.can_resume = can_resume
        """True if decoding can continue at the end of this segment even if sequences cannot be truncated."""
        self.n_bytes = n_bytes
        self.data: bytearray | None = None
        """Copy of the KV memory in RAM; None if there is no copy."""
        self.file: Path | None = None
        """Path of the file that holds the KV memory; None if no file was written."""
        self.is_pending_write = False
        """True while the segment is queued for the disk thread or being written."""
        self.last_used = 0
        """Time of the last use, in ticks of the segment store's clock."""

    @property
    def has_data(self) -> bool:
        """True if the KV memory is in RAM or in a file, or is being written to a file."""
        return self.data is not None or self.file is not None or self.is_pending_write

    @property
    def end(self) -> int:
        """Position after the last token of this segment."""
        return self.node.end
