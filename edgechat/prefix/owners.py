"""Owners of the tokens of each sequence: a conversation, and perhaps a shared prefix before it."""

from __future__ import annotations

from collections.abc import Iterator

from edgechat.prefix.kv_memory import KvMemory
from edgechat.prefix.segment_store import SegmentStore
from edgechat.prefix.shared_prefix import SharedPrefix


class SequenceOwners:
    """Owners of the sequences in use, and the ranges of their tokens that are not saved yet."""

    def __init__(self, memory: KvMemory, store: SegmentStore) -> None:
        self._memory = memory
        self._store = store
        self._owners: dict[int, tuple[str, SharedPrefix | None]] = {}
        """Conversation id and shared prefix of each sequence in use."""

    def __contains__(self, seq: int) -> bool:
        """Return whether `seq` is in use."""
        return seq in self._owners

    def __iter__(self) -> Iterator[int]:
        """Iterate over the sequences in use."""
        return iter(self._owners)

    def set(self, seq: int, conversation: str, shared_prefix: SharedPrefix | None) -> None:
        """Mark `seq` as in use; its tokens after `shared_prefix` belong to `conversation`."""
        self._owners[seq] = conversation, shared_prefix

    def copy(self, seq: int, copied_seq: int) -> None:
        """Mark `copied_seq` as in use, with the owners of `seq`."""
        self._owners[copied_seq] = self._owners[seq]

    def drop(self, seq: int) -> None:
        """Mark `seq` as unused."""
        self._owners.pop(seq, None)

    def count_saved_tokens(self, seq: int) -> int:
        """Return the number of leading tokens of `seq` that can be restored from the segments of its owners."""
        conversation, shared_prefix = self._owners[seq]
        owners = {conversation, *([shared_prefix.owner] if shared_prefix is not None else [])}
        tokens, can_truncate = self._memory.tokens(seq), self._memory.can_truncate
        return self._store.count_covered_tokens(tokens, owners, can_truncate=can_truncate)

    def find_unsaved_range(self, seq: int, min_tokens: int) -> tuple[str, int, int]:
        """Return the owner of the next segment of `seq`, and the range of tokens that the segment can hold.

        A segment has tokens of one owner only. If sequences cannot be truncated, it ends at the end of the sequence,
        and belongs to the shared prefix unless that ends before. Fewer than `min_tokens` tokens of the shared prefix
        are saved for the conversation, because no segment of their own could hold them; likewise all of them if the
        disk tier no longer accepts their owner.
        """
        conversation, shared_prefix = self._owners[seq]
        start, end = self.count_saved_tokens(seq), len(self._memory.tokens(seq))
        disk = self._store.disk
        if shared_prefix is not None and (disk is None or disk.accepts_owner(shared_prefix.owner)):
            shared_end = min(end, shared_prefix.n_tokens) if self._memory.can_truncate else end
            if start + min_tokens <= shared_end <= shared_prefix.n_tokens:
                return shared_prefix.owner, start, shared_end
        return conversation, start, end
