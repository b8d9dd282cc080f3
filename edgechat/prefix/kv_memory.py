"""KV memory interface that the prefix cache needs; `edgechat.runtime.context.Context` implements it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class KvMemory(Protocol):
    """Token sequences of a context with their KV memory; sequences share the cells of a common prefix."""

    n_seqs: int
    """Number of sequences; their ids start at 0."""

    @property
    def can_truncate(self) -> bool:
        """True if a sequence can be truncated, copied and saved at any position; otherwise only at its end."""

    @property
    def saves_full_state(self) -> bool:
        """True if `save` returns the state of the whole sequence for any `start` (recurrent models)."""

    def tokens(self, seq: int) -> Sequence[int]:
        """Return the tokens of a sequence."""

    def can_rewind(self, seq: int, n_tokens: int) -> bool:
        """Return True if decoding can continue after the first `n_tokens` of `seq`."""

    def can_append_segment(self, seq: int, n_tokens: int, end: int) -> bool:
        """Return True if the first `n_tokens` of `seq` and a segment from there to `end` form a valid sequence."""

    def copy(self, source: int, target: int, n_tokens: int) -> None:
        """Replace `target` with the first `n_tokens` of `source`; both share the cells."""

    def drop(self, seq: int) -> None:
        """Remove all tokens of a sequence."""

    def clear(self) -> None:
        """Remove all sequences, so that the next decode starts at the first cell."""

    def save(self, seq: int, start: int, end: int) -> bytearray:
        """Return the memory of the positions from `start` to `end`."""

    def restore(self, seq: int, start: int, tokens: Sequence[int], data: bytearray | memoryview) -> bool:
        """Append `tokens`, which begin at position `start` and whose memory is `data`.

        Returns False if there are too few free cells or `data` is invalid.
        """
