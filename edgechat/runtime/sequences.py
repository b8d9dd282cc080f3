"""Token sequences of a llama.cpp context: copy, truncate, roll back, save and restore their memory."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from edgechat.errors import EngineError
from edgechat.runtime.model import Model


class SequenceMemory:
    """Sequences of a llama_context with their memory: KV cells, sliding-window cells, or recurrent states.

    Sequences share the cells of a common prefix. The token list of a sequence always equals its memory, also after a
    failed or aborted decode. Implements `edgechat.prefix.kv_memory.KvMemory`.
    """

    def __init__(self, model: Model, pointer: Any, n_seqs: int) -> None:
        """Wrap the llama_context `pointer`. It must have `n_seqs` + 1 sequences, the last for internal use."""
        llama = model.bindings.llama
        self.model = model
        self.pointer = pointer
        self.n_seqs = n_seqs
        self._tokens: list[list[int]] = [[] for _ in range(n_seqs + 1)]
        self._scratch_seq = n_seqs
        """Internal sequence for saving, restoring, padding and time measurements."""
        self._gap_ends = [0] * (n_seqs + 1)
        """End of the positions that a restored window does not cover, by sequence."""
        self._uncommitted_seqs: set[int] = set()
        """Sequences with a recurrent state that was rolled back and not committed yet."""
        self._memory = llama.llama_get_memory(pointer)
        is_recurrent = bool(llama.llama_model_is_recurrent(model.pointer))
        self._has_state = is_recurrent or bool(llama.llama_model_is_hybrid(model.pointer))
        self._has_cells = not is_recurrent
        self._window = int(llama.llama_model_n_swa(model.pointer))

    def tokens(self, seq: int = 0) -> Sequence[int]:
        """Return the tokens of a sequence."""
        return self._tokens[seq]

    # Capabilities of the memory

    @property
    def can_truncate(self) -> bool:
        """True if a sequence can be truncated, copied and saved at any position; otherwise only at its end."""
        return not self._has_state and not self._window

    @property
    def saves_full_state(self) -> bool:
        """True if `save` returns the state of the whole sequence for any start position (recurrent models)."""
        return not self._has_cells

    def can_rewind(self, seq: int, n_tokens: int) -> bool:
        """Return True if decoding can continue after the first `n_tokens` of `seq`."""
        if n_tokens in (0, len(self._tokens[seq])):
            return True
        return not self._has_state and self._window_reaches(seq, n_tokens)

    def can_append_segment(self, seq: int, n_tokens: int, end: int) -> bool:
        """Return True if the first `n_tokens` of `seq` and a segment from there to `end` form a valid sequence."""
        if self._has_state:  # the segment contains the state, but may lack the start of a window
            return not self._window
        return n_tokens <= len(self._tokens[seq]) and self._window_reaches(seq, end)

    def _window_reaches(self, seq: int, n_tokens: int) -> bool:
        """Return True if the cells that the token at position `n_tokens` attends to still exist."""
        if not self._window:
            return True
        first = self._first_position(seq)
        return first >= 0 and max(first, self._gap_ends[seq]) <= max(0, n_tokens - self._window)

    def _first_position(self, seq: int) -> int:
        return int(self.model.bindings.llama.llama_memory_seq_pos_min(self._memory, seq))

    def _end_position(self, seq: int) -> int:
        return int(self.model.bindings.llama.llama_memory_seq_pos_max(self._memory, seq)) + 1

    # Truncate and copy

    def rollback(self, seq: int, n_tokens: int) -> None:
        """Remove the last `n_tokens` tokens, which the latest `Context.decode_chain` must have appended.

        Call `commit_rollback` before the sequence is copied or saved. Raises EngineError if llama.cpp refuses; then
        the sequence is empty.
        """
        if not n_tokens:
            return
        end = len(self._tokens[seq]) - n_tokens
        if self._truncate(seq, end) != end:
            raise EngineError(f"llama.cpp could not roll back {n_tokens} drafted tokens. Try --no-speculation.")
        if self._has_state:
            self._uncommitted_seqs.add(seq)

    def commit_rollback(self, seq: int) -> None:
        """Make the recurrent state that `rollback` selected the current one; does nothing for other memory.

        llama.cpp keeps the states of the last tokens (`n_rs_seq`) and would copy or save the newest one.
        """
        if seq not in self._uncommitted_seqs:
            return
        self._uncommitted_seqs.discard(seq)
        llama, partial = self.model.bindings.llama, self.model.bindings.llama.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
        size = int(llama.llama_state_seq_get_size_ext(self.pointer, seq, partial))
        view = (ctypes.c_uint8 * size)()
        if (
            int(llama.llama_state_seq_get_data_ext(self.pointer, view, size, seq, partial)) != size
            or int(llama.llama_state_seq_set_data_ext(self.pointer, view, size, seq, partial)) != size
        ):
            self.drop(seq)

    def rewind(self, n_tokens: int, seq: int = 0) -> int:
        """Truncate to the first `n_tokens` and return the new length: 0 if the memory cannot be truncated there."""
        return self._truncate(seq, n_tokens if self.can_rewind(seq, n_tokens) else 0)

    def _truncate(self, seq: int, n_tokens: int) -> int:
        llama = self.model.bindings.llama
        if not llama.llama_memory_seq_rm(self._memory, seq, n_tokens, -1):
            llama.llama_memory_seq_rm(self._memory, seq, -1, -1)
            n_tokens = 0
        del self._tokens[seq][n_tokens:]
        if not n_tokens:
            self._gap_ends[seq] = 0
            self._uncommitted_seqs.discard(seq)
        return n_tokens

    def drop(self, seq: int) -> None:
        """Remove all tokens of a sequence; cells that other sequences share remain."""
        self._truncate(seq, 0)

    def clear(self) -> None:
        """Remove all sequences, so that the next decode starts at the first cell.

        The order of the cells determines the rounding of attention sums: equal cells give equal results.
        """
        for seq in range(self.n_seqs + 1):
            self.drop(seq)
        self.model.bindings.llama.llama_memory_clear(self._memory, False)

    def copy(self, source: int, target: int, n_tokens: int) -> None:
        """Replace `target` with the first `n_tokens` of `source`, in the same cells.

        The caller must check `can_rewind` or `can_append_segment` before.
        """
        llama = self.model.bindings.llama
        self.drop(target)
        llama.llama_memory_seq_cp(self._memory, source, target, 0, n_tokens)
        self._tokens[target] = self._tokens[source][:n_tokens]
        self._gap_ends[target] = self._gap_ends[source]

    # Save and restore

    def save(self, seq: int, start: int, end: int) -> bytearray:
        """Return the memory of the positions from `start` to `end`.

        Without `can_truncate`, `end` must be the end of the sequence. A recurrent state is saved as a whole. Raises
        MemoryError and EngineError.
        """
        llama = self.model.bindings.llama
        llama.llama_memory_seq_cp(self._memory, seq, self._scratch_seq, start, end)
        try:
            size = int(llama.llama_state_seq_get_size(self.pointer, self._scratch_seq))
            data = bytearray(size)
            view = (ctypes.c_uint8 * size).from_buffer(data)
            n_saved = int(llama.llama_state_seq_get_data(self.pointer, view, size, self._scratch_seq))
        finally:
            self.drop(self._scratch_seq)
        if n_saved != size:
            raise EngineError(f"llama.cpp saved only {n_saved} of {size} bytes of a sequence.")
        return data

    def restore(self, seq: int, start: int, tokens: Sequence[int], data: bytearray | memoryview) -> bool:
        """Append `tokens`, which begin at position `start` and whose memory is `data`.

        `start` may be before the end of the sequence; then the positions that overlap are unchanged.

        Returns False, and changes nothing, if there are too few free cells or llama.cpp rejects the data.
        """
        llama = self.model.bindings.llama
        n_before, end = len(self._tokens[seq]), start + len(tokens)
        view = (ctypes.c_uint8 * len(data)).from_buffer(data)
        try:
            n_read = int(llama.llama_state_seq_set_data(self.pointer, view, len(data), self._scratch_seq))
            if n_read != len(data) or self._end_position(self._scratch_seq) < end:
                return False
            first = self._first_position(self._scratch_seq)
            if self._window and first > n_before:
                # The restored window starts after the end of this sequence: the positions between have no cells.
                self._gap_ends[seq] = first
            llama.llama_memory_seq_cp(self._memory, self._scratch_seq, seq, n_before, end)
        finally:
            self.drop(self._scratch_seq)
        self._tokens[seq].extend(tokens[n_before - start :])
        return True
