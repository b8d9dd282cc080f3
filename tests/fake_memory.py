"""A memory of a context without a model: it knows which prefix every cell was computed after, and checks it."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import NamedTuple

from edgechat.prefix.cache import PrefixCache
from tests.models import Kind

WINDOW = 12


class CellsFullError(Exception):
    """The cells are full."""


class Cell:
    """What was computed at a position; `after` is all that came before, and the token itself."""

    def __init__(self, after: tuple[int, ...]) -> None:
        self.after = after


class _Held(NamedTuple):
    tokens: list[int]
    cells: dict[int, Cell]
    window: dict[int, Cell]
    state: list[tuple[int, ...]]
    """At most one: the tokens that it was computed from."""


def _nothing() -> _Held:
    return _Held([], {}, {}, [])


class FakeMemory:
    """Memory as one of the kinds of models has it, with cells for `n_cells` tokens."""

    def __init__(self, kind: Kind, n_seqs: int = 4, n_cells: int = 400) -> None:
        self.n_seqs = n_seqs
        self.n_cells = n_cells
        self._has_cells = kind in ("llama", "moe", "sliding", "hybrid")
        self._has_window = "sliding" in kind
        self._has_state = kind in ("mamba", "hybrid", "hybrid sliding")
        self._held = [_nothing() for _ in range(n_seqs)]
        self.computed = 0

    @property
    def can_truncate(self) -> bool:
        return not self._has_window and not self._has_state

    @property
    def saves_full_state(self) -> bool:
        return not self._has_cells and not self._has_window

    def tokens(self, seq: int) -> Sequence[int]:
        return self._held[seq].tokens

    def can_rewind(self, seq: int, n_tokens: int) -> bool:
        if n_tokens in (0, len(self._held[seq].tokens)):
            return True
        return not self._has_state and self._reaches_back(seq, n_tokens)

    def can_append_segment(self, seq: int, n_tokens: int, end: int) -> bool:
        if self._has_state:
            return not self._has_window
        return n_tokens <= len(self._held[seq].tokens) and self._reaches_back(seq, end)

    def _reaches_back(self, seq: int, n_tokens: int) -> bool:
        first = min(self._held[seq].window, default=0) if self._has_window else 0
        return first <= max(0, n_tokens - WINDOW)

    def copy(self, source: int, target: int, n_tokens: int) -> None:
        held = self._held[source]
        assert n_tokens <= len(held.tokens)
        self._held[target] = _Held(
            held.tokens[:n_tokens],
            {p: c for p, c in held.cells.items() if p < n_tokens},
            {p: c for p, c in held.window.items() if p < n_tokens},
            list(held.state),
        )

    def clear(self) -> None:
        for seq in range(len(self._held)):
            self.drop(seq)

    def drop(self, seq: int) -> None:
        self._held[seq] = _nothing()

    def save(self, seq: int, start: int, end: int) -> bytearray:
        held = self._held[seq]
        assert self.can_truncate or end == len(held.tokens)
        assert start < end <= len(held.tokens)
        return bytearray(pickle.dumps((
            {p: c.after for p, c in held.cells.items() if start <= p < end},
            {p: c.after for p, c in held.window.items() if max(start, end - WINDOW) <= p < end},
            held.state,
        )))  # fmt: skip

    def restore(self, seq: int, start: int, tokens: Sequence[int], data: bytearray | memoryview) -> bool:
        held, end = self._held[seq], start + len(tokens)
        cells, window, state = pickle.loads(data)  # noqa: S301
        at = len(held.tokens)
        assert start <= at
        if self._used() + len(cells) > self.n_cells:
            return False
        held.cells.update({p: Cell(after) for p, after in cells.items() if at <= p < end})
        held.window.update({p: Cell(after) for p, after in window.items() if at <= p < end})
        if self._has_state:
            held.state[:] = state
        held.tokens.extend(tokens[at - start :])
        return True

    def decode(self, seq: int, tokens: Sequence[int]) -> None:
        """Compute; fails if what is attended to is not what these tokens need."""
        self.check(seq)
        held = self._held[seq]
        if self._has_cells and self._used() + len(tokens) > self.n_cells:
            raise CellsFullError
        self.computed += len(tokens)
        for token in tokens:
            held.tokens.append(token)
            after, position = tuple(held.tokens), len(held.tokens) - 1
            if self._has_cells:
                held.cells[position] = Cell(after)
            if self._has_window:
                held.window[position] = Cell(after)
            if self._has_state:
                held.state[:] = [after]
        for position in [p for p in held.window if p < len(held.tokens) - 2 * WINDOW]:
            del held.window[position]

    def check(self, seq: int) -> None:
        """What a next token would attend to is there, and was computed from this very sequence."""
        held = self._held[seq]
        tokens = tuple(held.tokens)
        if self._has_cells:
            assert sorted(held.cells) == list(range(len(tokens)))
            assert all(c.after == tokens[: p + 1] for p, c in held.cells.items())
        if self._has_window:
            assert set(range(max(0, len(tokens) - WINDOW + 1), len(tokens))) <= set(held.window)
            assert all(c.after == tokens[: p + 1] for p, c in held.window.items())
        if self._has_state:
            assert held.state == ([tokens] if tokens else [])

    def _used(self) -> int:
        return len({id(c) for held in self._held for c in held.cells.values()})


def check_cache(cache: PrefixCache) -> None:
    """Raises AssertionError if anything here contradicts anything else."""
    nodes = list(cache.tree.nodes())
    for node in nodes:
        if not node.is_in_use or len(node.tokens) != node.end - (node.parent.end if node.parent else 0):
            raise AssertionError(f"a node of {node.path()} is kept for nothing, or has a wrong length")
        if any(child.parent is not node or child.tokens[0] != first for first, child in node.children.items()):
            raise AssertionError(f"the children of {node.path()} are in disorder")
    if {p for node in nodes for p in node.segments} != cache.segments:
        raise AssertionError("pieces are not where they should be")
    for seq, tip in cache.leaves.items():
        if tip.path() != list(cache._memory.tokens(seq)) or seq not in tip.seqs or seq not in cache._owner:
            raise AssertionError(f"sequence {seq} is not what the tree says")
    in_ram = sum(p.n_bytes for p in cache.segments if p.data is not None and not p.is_pending_write)
    if in_ram > cache._ram_cap_bytes:
        raise AssertionError(f"{in_ram} bytes in RAM are over the cap of {cache._ram_cap_bytes}")
