"""Window of a drafter's memory over the end of a text: which tokens to compute, remove or keep before a draft."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

# First tokens of a sequence that stay when its window moves. A model pays much attention to the first tokens, whatever
# they are, so that it would draft badly without them.
N_SINK_TOKENS: Final = 4


class WindowUpdate(NamedTuple):
    """Changes to a sequence of a drafter before a draft; the result of `DraftWindow.plan`."""

    is_restart: bool
    """True if the sequence must be emptied first."""
    n_kept: int
    """Number of computed tokens, from the start of the window, that stay; those after them must be removed."""
    n_dropped: int
    """Number of kept tokens at the start of the window that must be removed then."""
    start: int
    """Index of the first pending token in the text."""
    position: int
    """Position of the first pending token in the drafter's memory."""
    pending: list[int]
    """Tokens to compute, at least one; the last one is the token that the draft follows."""


class DraftWindow:
    """Tokens of one sequence in the memory of a drafter: a part of the text that ends at or before the text's end.

    Positions in the memory are counted from the token at which the sequence began, which can be anywhere in the text.
    """

    def __init__(self, n_cells: int, *, can_truncate: bool = True, max_position: int = 0) -> None:
        """Start with an empty sequence of at most `n_cells` cells.

        If `can_truncate` is False, tokens cannot be removed at the end of the sequence. Positions are less than
        `max_position`, unless it is 0.
        """
        self.n_cells = n_cells
        self.can_truncate = can_truncate
        self._max_position = max_position
        self._origin = 0
        """Index in the text of the token at position 0."""
        self._start = 0
        """Index in the text of the first token of the window."""
        self._n_sinks = 0
        """Number of tokens that stay before a gap, at the positions from 0."""
        self._tokens: list[int] = []

    def __len__(self) -> int:
        """Return the number of computed tokens."""
        return self._n_sinks + len(self._tokens)

    def clear(self) -> None:
        """Set that the sequence is empty."""
        self._origin = self._start = self._n_sinks = 0
        self._tokens.clear()

    def plan(
        self, tokens: Sequence[int], next_token: int, max_tokens: int, *,
        max_pending: int | None = None, must_restart: bool = False, first_index: int = 0,
    ) -> WindowUpdate | None:  # fmt: skip
        """Return the changes before a draft of at most `max_tokens` tokens after `tokens` and `next_token`.

        At most half of the window and at most `max_pending` tokens are computed, and only tokens from `first_index` on.
        With `must_restart`, no computed token stays. Returns None if the next token itself cannot be computed.
        """
        n_text, half = len(tokens) + 1, self.n_cells // 2
        if first_index >= n_text:
            return None
        max_new = max(1, half if max_pending is None else min(half, max_pending))
        n_kept = max(0, min(self._count_matching(tokens, next_token), n_text - 1 - self._start))
        n_pending = n_text - self._start - n_kept
        n_dropped = 0
        if len(self) + n_pending + max_tokens > self.n_cells:
            n_dropped = max(0, n_kept - max(0, half - n_pending))
        if (
            must_restart
            or n_kept - n_dropped <= 0
            or (n_kept < len(self._tokens) and not self.can_truncate)
            or n_pending > max_new
            or self._start + n_kept < first_index
            or (self._max_position and n_text - self._origin + max_tokens > self._max_position)
        ):
            start = max(0, n_text - max_new, first_index)
            return WindowUpdate(True, 0, 0, start, 0, [*tokens[start:], next_token])
        start = self._start + n_kept
        return WindowUpdate(False, n_kept, n_dropped, start, start - self._origin, [*tokens[start:], next_token])

    def _count_matching(self, tokens: Sequence[int], next_token: int) -> int:
        """Return how many tokens of the window are those of the text."""
        window, start = self._tokens, self._start
        part = [*tokens[start : start + len(window)]]
        if len(part) < len(window) and start + len(part) == len(tokens):
            part.append(next_token)
        if part == window:
            return len(window)
        pairs = enumerate(zip(window, part, strict=False))
        return next((i for i, (token, other) in pairs if token != other), len(part))

    def get_dropped_positions(self, update: WindowUpdate) -> tuple[int, int]:
        """Return the first position to remove at the start of the window, and the position after the last one."""
        first = self._count_sinks(update)
        return first, self._start + update.n_dropped - self._origin

    def _count_sinks(self, update: WindowUpdate) -> int:
        return self._n_sinks or min(N_SINK_TOKENS, update.n_dropped)

    def apply(self, update: WindowUpdate) -> None:
        """Record that the removals of `update` were made; its pending tokens are not computed yet."""
        if update.is_restart:
            self._origin = self._start = update.start
            self._n_sinks = 0
            self._tokens.clear()
            return
        del self._tokens[update.n_kept :]
        if update.n_dropped:
            self._n_sinks = self._count_sinks(update)
            self._start += update.n_dropped
            del self._tokens[: update.n_dropped]

    def extend(self, tokens: Sequence[int]) -> None:
        """Record that `tokens` were computed."""
        self._tokens += tokens
