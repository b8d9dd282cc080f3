"""What the cache needs of a context. `edgechat.runtime.context.Context` is one; nothing here knows llama.cpp."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class KvMemory(Protocol):
    """Sequences of tokens, and their memory, which sequences share where they begin alike."""

    n_seqs: int
    """Sequences are numbered from 0."""

    @property
    def can_truncate(self) -> bool:
        """True if a sequence can be cut, copied and saved at any position; else only where it ends."""

    @property
    def saves_full_state(self) -> bool:
        """True if what `save` returns is all that a sequence is, wherever it started."""

    def tokens(self, seq: int) -> Sequence[int]:
        """What a sequence holds."""

    def can_rewind(self, seq: int, n_tokens: int) -> bool:
        """True if the first `n_tokens` can be gone on from."""

    def can_append_segment(self, seq: int, n_tokens: int, end: int) -> bool:
        """True if the first `n_tokens`, with a piece after them that ends at `end`, can be gone on from."""

    def copy(self, source: int, target: int, n_tokens: int) -> None:
        """Let `target` hold the first `n_tokens` of `source`, at no cost."""

    def drop(self, seq: int) -> None:
        """Forget a sequence."""

    def clear(self) -> None:
        """Forget all sequences, and begin with the first cell again."""

    def save(self, seq: int, start: int, end: int) -> bytearray:
        """The memory of positions from `start` to `end`."""

    def restore(self, seq: int, start: int, tokens: Sequence[int], data: bytearray | memoryview) -> bool:
        """Append `tokens`, of which `data` is the memory from `start` on. False if there is no room, or it is no memory."""
