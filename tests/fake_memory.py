"""Fake KV memory for tests of the prefix cache: each cell records the tokens before it, and `decode` checks them."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from edgechat.prefix.cache import PrefixCache
from tests.models import Kind

WINDOW = 12


class CellsFullError(Exception):
    """Raised when a decode needs more cells than are free."""


class Cell:
    """KV cell of one position; `history` holds its token and all earlier tokens of the sequence."""

    def __init__(self, history: tuple[int, ...]) -> None:
        self.history = history


class _Sequence(NamedTuple):
    tokens: list[int]
    cells: dict[int, Cell]
    window: dict[int, Cell]
    state: list[tuple[int, ...]]
    """Recurrent state: the tokens from which it was computed; at most one entry."""


def _empty() -> _Sequence:
    return _Sequence([], {}, {}, [])


class FakeMemory:
    """Fake KV memory of a model of `kind`, with `n_cells` cells."""

    def __init__(self, kind: Kind, n_seqs: int = 4, n_cells: int = 400) -> None:
        self.n_seqs = n_seqs
        self.n_cells = n_cells
        self._has_cells = kind in ("llama", "moe", "sliding", "hybrid")
        self._has_window = "sliding" in kind
        self._has_state = kind in ("mamba", "hybrid", "hybrid sliding")
        self._seqs = [_empty() for _ in range(n_seqs)]
        self.n_computed = 0

    @property
    def can_truncate(self) -> bool:
        return not self._has_window and not self._has_state

    @property
    def saves_full_state(self) -> bool:
        return not self._has_cells and not self._has_window

    def tokens(self, seq: int) -> Sequence[int]:
        return self._seqs[seq].tokens

    def can_rewind(self, seq: int, n_tokens: int) -> bool:
        if n_tokens in (0, len(self._seqs[seq].tokens)):
            return True
        return not self._has_state and self._has_complete_window(seq, n_tokens)

    def can_append_segment(self, seq: int, n_tokens: int, end: int) -> bool:
        if self._has_state:
            return not self._has_window
        return n_tokens <= len(self._seqs[seq].tokens) and self._has_complete_window(seq, end)

    def _has_complete_window(self, seq: int, n_tokens: int) -> bool:
        if not self._has_window:
            return True
        window = self._seqs[seq].window
        # A segment that was appended to few tokens can leave positions without cells before its own window.
        start = max((p for p in window if p - 1 not in window), default=0)
        return start <= max(0, n_tokens - WINDOW)

    def copy(self, source: int, target: int, n_tokens: int) -> None:
        original = self._seqs[source]
        assert n_tokens <= len(original.tokens)
        self._seqs[target] = _Sequence(
            original.tokens[:n_tokens],
            {p: c for p, c in original.cells.items() if p < n_tokens},
            {p: c for p, c in original.window.items() if p < n_tokens},
            list(original.state),
        )

    def clear(self) -> None:
        for seq in range(len(self._seqs)):
            self.drop(seq)

    def drop(self, seq: int) -> None:
        self._seqs[seq] = _empty()

    def save(self, seq: int, start: int, end: int) -> bytearray:
        sequence = self._seqs[seq]
        assert self.can_truncate or end == len(sequence.tokens)
        assert start < end <= len(sequence.tokens)
        return bytearray(pickle.dumps((
            {p: c.history for p, c in sequence.cells.items() if start <= p < end},
            {p: c.history for p, c in sequence.window.items() if max(start, end - WINDOW) <= p < end},
            sequence.state,
        )))  # fmt: skip

    def restore(self, seq: int, start: int, tokens: Sequence[int], data: bytearray | memoryview) -> bool:
        sequence, end = self._seqs[seq], start + len(tokens)
        cells, window, state = pickle.loads(data)  # noqa: S301
        position = len(sequence.tokens)
        assert start <= position
        if self._n_used() + len(cells) > self.n_cells:
            return False
        sequence.cells.update({p: Cell(history) for p, history in cells.items() if position <= p < end})
        sequence.window.update({p: Cell(history) for p, history in window.items() if position <= p < end})
        if self._has_state:
            sequence.state[:] = state
        sequence.tokens.extend(tokens[position - start :])
        return True

    def decode(self, seq: int, tokens: Sequence[int]) -> None:
        """Append `tokens`. Raises CellsFullError, and AssertionError if the earlier memory belongs to other tokens."""
        self.check(seq)
        sequence = self._seqs[seq]
        if self._has_cells and self._n_used() + len(tokens) > self.n_cells:
            raise CellsFullError
        self.n_computed += len(tokens)
        for token in tokens:
            sequence.tokens.append(token)
            history, position = tuple(sequence.tokens), len(sequence.tokens) - 1
            if self._has_cells:
                sequence.cells[position] = Cell(history)
            if self._has_window:
                sequence.window[position] = Cell(history)
            if self._has_state:
                sequence.state[:] = [history]
        for position in [p for p in sequence.window if p < len(sequence.tokens) - 2 * WINDOW]:
            del sequence.window[position]

    def check(self, seq: int) -> None:
        """Assert that all memory that the next token needs exists and was computed from this sequence."""
        sequence = self._seqs[seq]
        tokens = tuple(sequence.tokens)
        if self._has_cells:
            assert sorted(sequence.cells) == list(range(len(tokens)))
            assert all(c.history == tokens[: p + 1] for p, c in sequence.cells.items())
        if self._has_window:
            assert set(range(max(0, len(tokens) - WINDOW + 1), len(tokens))) <= set(sequence.window)
            assert all(c.history == tokens[: p + 1] for p, c in sequence.window.items())
        if self._has_state:
            assert sequence.state == ([tokens] if tokens else [])

    def _n_used(self) -> int:
        return len({id(c) for sequence in self._seqs for c in sequence.cells.values()})


def check_cache(cache: PrefixCache) -> None:
    """Check the invariants between tree, sequences, segments and RAM cap. Raises AssertionError."""
    nodes = list(cache.tree.nodes())
    for node in nodes:
        if not node.is_in_use or len(node.tokens) != node.end - (node.parent.end if node.parent else 0):
            raise AssertionError(f"node {node.path()} is unused or has a wrong length")
        if any(child.parent is not node or child.tokens[0] != first for first, child in node.children.items()):
            raise AssertionError(f"node {node.path()} has children with a wrong parent or first token")
    segments = cache.store.segments
    if Counter({node: node.n_segments for node in nodes}) != Counter(segment.node for segment in segments):
        raise AssertionError("the tree and the segment store disagree about the segments")
    for seq, leaf in cache.leaves.items():
        if leaf.path() != list(cache._memory.tokens(seq)) or seq not in leaf.seqs or seq not in cache._owners:
            raise AssertionError(f"sequence {seq} does not hold the path to its leaf")
    in_ram_bytes = sum(s.n_bytes for s in segments if s.data is not None and not s.is_pending_write)
    if in_ram_bytes > cache.store.ram_cap_bytes:
        raise AssertionError(f"{in_ram_bytes} bytes in RAM exceed the cap of {cache.store.ram_cap_bytes}")
