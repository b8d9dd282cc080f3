"""Hidden rows: activations of a model after its newest tokens, from which prediction heads draft the next ones."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from edgechat.planner.drafter_plan import MAX_HIDDEN_ROWS
from edgechat.runtime.bindings import Bindings


class HiddenRows:
    """Hidden rows of the newest outputs of each sequence of a context, by position in the sequence."""

    def __init__(self, bindings: Bindings, n_row: int, layers: Sequence[int] = ()) -> None:
        """Record rows of `n_row` floats: the joined inputs of `layers`, or without layers those for the model's heads.

        A layer index of the number of layers stands for the output of the last layer.
        """
        self.n_row = n_row
        self._native = bindings.edgechat
        self._layers = (ctypes.c_int32 * max(1, len(layers)))(*layers)
        self._n_layers = len(layers)
        self._rows: dict[int, dict[int, bytes]] = {}

    def attach(self, pointer: Any) -> None:
        """Make the llama_context at `pointer` compute the rows from its next batch on."""
        self._native.edgechat_keep_rows(pointer, self._layers, self._n_layers)

    def record(self, pointer: Any, outputs: Sequence[tuple[int, int, int]]) -> None:
        """Copy the rows of the last batch of the llama_context at `pointer`.

        `outputs` has the sequence, the position and the index in the batch of each token with logits, in order.
        """
        counts: dict[int, int] = {}
        kept: list[tuple[int, int, int]] = []
        for output in reversed(outputs):
            counts[output[0]] = counts.get(output[0], 0) + 1
            if counts[output[0]] <= MAX_HIDDEN_ROWS:
                kept.append(output)
        kept.reverse()
        if not kept:
            return
        indexes = (ctypes.c_int32 * len(kept))(*(index for _, _, index in kept))
        rows = (ctypes.c_float * (self.n_row * len(kept)))()
        if self._native.edgechat_copy_rows(pointer, self._layers, self._n_layers, indexes, len(kept), rows):
            return
        data, size = memoryview(rows).cast("B"), self.n_row * ctypes.sizeof(ctypes.c_float)
        for i, (seq, position, _) in enumerate(kept):
            sequence_rows = self._rows.setdefault(seq, {})
            sequence_rows.pop(position, None)
            sequence_rows[position] = bytes(data[i * size : (i + 1) * size])
            while len(sequence_rows) > MAX_HIDDEN_ROWS:
                del sequence_rows[next(iter(sequence_rows))]

    def truncate(self, seq: int, n_tokens: int) -> None:
        """Remove the rows of `seq` from position `n_tokens` on."""
        rows = self._rows.get(seq, {})
        for position in [p for p in rows if p >= n_tokens]:
            del rows[position]

    def copy(self, source: int, target: int, n_tokens: int) -> None:
        """Replace the rows of `target` with those of the first `n_tokens` tokens of `source`."""
        self._rows[target] = {p: row for p, row in self._rows.get(source, {}).items() if p < n_tokens}

    def clear(self) -> None:
        """Remove all rows."""
        self._rows.clear()

    def find_first(self, seq: int, last_position: int) -> int:
        """Return the first position of the unbroken rows that end at `last_position`; one more if that row is missing.

        The position is that of a row, not of the token that needs it.
        """
        rows, position = self._rows.get(seq, {}), last_position + 1
        while position - 1 in rows:
            position -= 1
        return position

    def join(self, seq: int, start: int, end: int) -> bytes:
        """Return the rows from position `start` to position `end` (exclusive), none of which may be missing."""
        rows = self._rows[seq]
        return b"".join([rows[position] for position in range(start, end)])
