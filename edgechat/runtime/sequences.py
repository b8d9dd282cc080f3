"""Token sequences of a llama.cpp context: copy, truncate, roll back, save and restore their memory."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence
from typing import Any

from edgechat.errors import EngineError
from edgechat.runtime.model import Model


class SequenceMemory:
    """Sequences of a llama_context with their memory: KV cells, sliding-window cells, or recurrent states.

    Sequences share the cells of a common prefix. The token list of a sequence always matches its memory, even after a
    failed or aborted decode. Implements `edgechat.prefix.kv_memory.KvMemory`.
    """

    def __init__(self, model: Model, pointer: Any, n_seqs: int) -> None:
        """Manage the llama_context at `pointer`. It must have `n_seqs` + 1 sequences; the last is for internal use."""
        llama = model.bindings.llama
        self.model = model
        self.n_seqs = n_seqs
        self._tokens: list[list[int]] = [[] for _ in range(n_seqs + 1)]
        self._scratch_seq = n_seqs
        """Internal sequence for saving, restoring, padding and time measurements."""
        self._gap_ends = [0] * (n_seqs + 1)
        """Position where the cells of a restored sliding window start, by sequence; 0 if no positions lack cells."""
        self._uncommitted_seqs: set[int] = set()
        """Sequences whose recurrent state was rolled back, but not yet committed."""
        self._sharing_seqs: set[int] = set()
        """Sequences that may share cells of the sliding window with other sequences."""
        self._attach(pointer)
        is_recurrent = bool(llama.llama_model_is_recurrent(model.pointer))
        self._has_state = is_recurrent or bool(llama.llama_model_is_hybrid(model.pointer))
        self._has_cells = not is_recurrent
        self._window = int(llama.llama_model_n_swa(model.pointer))

    def _attach(self, pointer: Any) -> None:
        """Use the llama_context at `pointer`, which is None while none is open."""
        self.pointer = pointer
        self._memory = self.model.bindings.llama.llama_get_memory(pointer) if pointer else None

    @property
    def is_open(self) -> bool:
        """True if there is a llama_context. Without one, all sequences are empty."""
        return bool(self.pointer)

    def _check_open(self) -> None:
        """Raise EngineError if no llama_context is open, because llama.cpp crashes without one."""
        if not self.is_open:
            raise EngineError("The context was closed, because memory ran out. Send the request again.")

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

    @property
    def needs_equal_drafts(self) -> bool:
        """True if the drafts of several sequences in one batch must have the same length, after sequences without one.

        llama.cpp computes recurrent states in groups of sequences with the same number of tokens. For a later group, it
        can move the states of earlier ones, but not their copies before each token, one of which a rollback selects.
        """
        return self._has_state

    def can_rewind(self, seq: int, n_tokens: int) -> bool:
        """Return whether decoding can continue after the first `n_tokens` tokens of `seq`."""
        if n_tokens in (0, len(self._tokens[seq])):
            return True
        return not self._has_state and self._has_complete_window(seq, n_tokens)

    def can_append_segment(self, seq: int, n_tokens: int, end: int) -> bool:
        """Return whether a segment that ends at position `end` can follow the first `n_tokens` tokens of `seq`."""
        if self._has_state:  # a segment restores the state, but may lack the first cells of a sliding window
            return not self._window
        return n_tokens <= len(self._tokens[seq]) and self._has_complete_window(seq, end)

    def _has_complete_window(self, seq: int, n_tokens: int) -> bool:
        """Return whether the sliding window before position `n_tokens` of `seq` still has all its cells."""
        if not self._window:
            return True
        first_position = self._get_first_position(seq)
        return first_position >= 0 and max(first_position, self._gap_ends[seq]) <= max(0, n_tokens - self._window)

    def _get_first_position(self, seq: int) -> int:
        return int(self.model.bindings.llama.llama_memory_seq_pos_min(self._memory, seq))

    def _get_end_position(self, seq: int) -> int:
        return int(self.model.bindings.llama.llama_memory_seq_pos_max(self._memory, seq)) + 1

    # Truncate and copy

    def rollback(self, seq: int, n_tokens: int) -> None:
        """Remove the last `n_tokens` tokens of `seq`, which the latest `Context.decode_chains` must have appended.

        Call `commit_rollback` before you copy or save the sequence. Raises EngineError, and empties the sequence, if
        llama.cpp cannot roll back.
        """
        if not n_tokens:
            return
        end = len(self._tokens[seq]) - n_tokens
        if self._truncate(seq, end) != end:
            raise EngineError(f"llama.cpp could not roll back {n_tokens} draft tokens. Try --no-speculation.")
        if self._has_state:
            self._uncommitted_seqs.add(seq)

    def commit_rollback(self, seq: int) -> None:
        """Replace the newest recurrent state of `seq` with the state that `rollback` selected.

        Without this call, llama.cpp would copy or save the newest of the `n_rs_seq` states that it stores. Does nothing
        for sequences without a recurrent state.
        """
        if seq not in self._uncommitted_seqs:
            return
        self._uncommitted_seqs.discard(seq)
        llama, partial_flag = self.model.bindings.llama, self.model.bindings.llama.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
        size = int(llama.llama_state_seq_get_size_ext(self.pointer, seq, partial_flag))
        buffer = (ctypes.c_uint8 * size)()
        if (
            int(llama.llama_state_seq_get_data_ext(self.pointer, buffer, size, seq, partial_flag)) != size
            or int(llama.llama_state_seq_set_data_ext(self.pointer, buffer, size, seq, partial_flag)) != size
        ):
            self.drop(seq)

    def rewind(self, n_tokens: int, seq: int = 0) -> int:
        """Truncate `seq` to its first `n_tokens` tokens, and return the new length.

        If the memory cannot be truncated there, the sequence becomes empty.
        """
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
            self._sharing_seqs.discard(seq)
        return n_tokens

    def drop(self, seq: int) -> None:
        """Remove all tokens of a sequence; cells that other sequences share remain."""
        self._truncate(seq, 0)

    def clear(self) -> None:
        """Remove all sequences, so that the next decode starts at the first cell.

        Attention sums are rounded in the order of the cells, so results are reproducible only with the same order.
        """
        for seq in range(self.n_seqs + 1):
            self.drop(seq)
        self.model.bindings.llama.llama_memory_clear(self._memory, False)

    def copy(self, source: int, target: int, n_tokens: int) -> None:
        """Replace `target` with the first `n_tokens` tokens of `source`; the two sequences share the cells.

        The caller must first check `can_rewind` or `can_append_segment`.
        """
        llama = self.model.bindings.llama
        self.drop(target)
        llama.llama_memory_seq_cp(self._memory, source, target, 0, n_tokens)
        self._tokens[target] = self._tokens[source][:n_tokens]
        self._gap_ends[target] = self._gap_ends[source]
        if self._window:
            self._sharing_seqs |= {source, target}

    def separate_windows(self) -> bool:
        """Copy shared cells of sliding windows, so that each sequence has its own; return whether some were shared.

        llama.cpp reuses the cells that a window has left behind only if a single sequence has them. So several replies
        to one long prompt would soon have no free cells, although `find_slot` in llama-kv-cache.cpp has enough cells
        for the windows of all sequences. Raises MemoryError, and EngineError if the sequences were lost.
        """
        if not self._sharing_seqs:
            return False
        llama, partial_flag = self.model.bindings.llama, self.model.bindings.llama.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
        windows: dict[int, Any] = {}
        for seq in sorted(self._sharing_seqs):
            self.commit_rollback(seq)
            windows[seq] = (ctypes.c_uint8 * int(llama.llama_state_seq_get_size_ext(self.pointer, seq, partial_flag)))()
        for seq, window in windows.items():
            llama.llama_state_seq_get_data_ext(self.pointer, window, len(window), seq, partial_flag)
        self._sharing_seqs.clear()
        for _ in range(2):  # a restore also frees cells, so that those that failed succeed in the second round
            for seq, window in list(windows.items()):
                if llama.llama_state_seq_set_data_ext(self.pointer, window, len(window), seq, partial_flag):
                    del windows[seq]
        for seq in windows:
            self.drop(seq)
        if windows:
            raise EngineError("The KV cache had no cells for a sliding window. Send the request again.")
        return True

    # Save and restore

    def save(self, seq: int, start: int, end: int) -> bytearray:
        """Return the memory of `seq` from position `start` to position `end` (exclusive).

        If `can_truncate` is False, `end` must be the end of the sequence. A recurrent state is saved as a whole. Raises
        MemoryError, and EngineError if llama.cpp saves only a part or no context is open.
        """
        self._check_open()
        llama = self.model.bindings.llama
        llama.llama_memory_seq_cp(self._memory, seq, self._scratch_seq, start, end)
        try:
            size = int(llama.llama_state_seq_get_size(self.pointer, self._scratch_seq))
            data = bytearray(size)
            buffer = (ctypes.c_uint8 * size).from_buffer(data)
            n_saved_bytes = int(llama.llama_state_seq_get_data(self.pointer, buffer, size, self._scratch_seq))
        finally:
            self.drop(self._scratch_seq)
        if n_saved_bytes != size:
            raise EngineError(f"llama.cpp saved only {n_saved_bytes} of {size} bytes of a sequence.")
        return data

    def restore(self, seq: int, start: int, tokens: Sequence[int], data: bytearray | memoryview) -> bool:
        """Append `tokens` to `seq` with their saved memory `data`, and return whether this succeeded.

        `start` is the position of the first token. If it is before the end of the sequence, the overlapping positions
        are unchanged. The sequence is unchanged if too few cells are free or llama.cpp rejects `data`.
        """
        if not self.is_open:
            return False
        llama = self.model.bindings.llama
        n_tokens_before, end = len(self._tokens[seq]), start + len(tokens)
        buffer = (ctypes.c_uint8 * len(data)).from_buffer(data)
        try:
            n_read_bytes = int(llama.llama_state_seq_set_data(self.pointer, buffer, len(data), self._scratch_seq))
            if n_read_bytes != len(data) or self._get_end_position(self._scratch_seq) < end:
                return False
            first_position = self._get_first_position(self._scratch_seq)
            if self._window and first_position > n_tokens_before:
                # The restored sliding window starts after the tokens that the sequence already has; the positions in
                # between have no cells.
                self._gap_ends[seq] = first_position
            llama.llama_memory_seq_cp(self._memory, self._scratch_seq, seq, n_tokens_before, end)
        finally:
            self.drop(self._scratch_seq)
        self._tokens[seq].extend(tokens[n_tokens_before - start :])
        return True

    # All sequences

    @property
    def state_bytes(self) -> int:
        """Size of the saved memory of all sequences, in bytes."""
        return int(self.model.bindings.llama.llama_state_get_size(self.pointer)) if self.is_open else 0

    def _save_all(self) -> mmap.mmap:
        """Return the memory of all sequences; cells that several sequences share are saved once.

        Rollbacks are committed first. Raises MemoryError, and EngineError if llama.cpp saves only a part.
        """
        for seq in list(self._uncommitted_seqs):
            self.commit_rollback(seq)
        size = self.state_bytes
        try:
            data = mmap.mmap(-1, max(1, size))  # unlike memory of malloc, it is returned to the system at once
        except (OSError, ValueError) as error:
            raise MemoryError from error
        buffer = (ctypes.c_uint8 * size).from_buffer(data)
        n_saved_bytes = int(self.model.bindings.llama.llama_state_get_data(self.pointer, buffer, size))
        del buffer
        if n_saved_bytes != size:
            data.close()
            raise EngineError(f"llama.cpp saved only {n_saved_bytes} of {size} bytes of the context.")
        return data

    def _restore_all(self, data: mmap.mmap) -> bool:
        """Restore the data of `_save_all` in an empty context; return False if the data does not fit."""
        buffer = (ctypes.c_uint8 * len(data)).from_buffer(data)
        n_read_bytes = int(self.model.bindings.llama.llama_state_set_data(self.pointer, buffer, len(data)))
        del buffer
        return n_read_bytes == len(data)

    def _clear_token_lists(self) -> None:
        """Empty the token lists of all sequences, whose memory was lost."""
        for seq in range(self.n_seqs + 1):
            self._tokens[seq].clear()
            self._gap_ends[seq] = 0
        self._uncommitted_seqs.clear()
        self._sharing_seqs.clear()
