"""KV memory interface that the prefix cache needs; `edgechat.runtime.context.Context` implements it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class KvMemory(Protocol):
    """Token sequences of a context, with their KV memory. Sequences with a common prefix can share its cells."""

    n_seqs: int
    """Number of sequences; the ids of the sequences are 0 to `n_seqs` - 1."""

    @property
    def can_truncate(self) -> bool:
        """True if a sequence can be truncated, copied and saved at any position, and not only at its end."""

    @property
    def saves_full_state(self) -> bool:
        """True if `save` ignores `start` and returns the state of the whole sequence (recurrent models)."""

    def tokens(self, seq: int) -> Sequence[int]:
        """Return the tokens of a sequence."""

    def can_rewind(self, seq: int, n_tokens: int) -> bool:
        """Return whether decoding can continue after the first `n_tokens` of `seq`."""

    def can_append_segment(self, seq: int, n_tokens: int, end: int) -> bool:
        """Return whether a segment from position `n_tokens` to `end` can follow the first `n_tokens` of `seq`."""

    def copy(self, source: int, target: int, n_tokens: int) -> None:
        """Replace sequence `target` with the first `n_tokens` of sequence `source`; both sequences share the cells."""

    def drop(self, seq: int) -> None:
        """Remove all tokens of a sequence."""

    def clear(self) -> None:
        """Remove all sequences, so that the next decode starts at the first cell."""

    def save(self, seq: int, start: int, end: int) -> bytearray:
        """Return the KV memory of sequence `seq` from position `start` to `end` (exclusive)."""

    def restore(self, seq: int, start: int, tokens: Sequence[int], data: bytearray | memoryview) -> bool:
        """Append `tokens` to sequence `seq` at position `start`, and copy their KV memory from `data`.

        Returns False if there are too few free cells or `data` is invalid.
        """
