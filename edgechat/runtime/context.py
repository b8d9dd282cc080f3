"""llama.cpp context, which decodes tokens into sequences and computes logits."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from edgechat.errors import ComputeError, EngineError
from edgechat.hardware.contention import Stopwatch, Timing
from edgechat.hardware.thread_count import AdaptiveThreadCount
from edgechat.planner.load_plan import LoadPlan
from edgechat.planner.memory import N_OUTPUTS
from edgechat.runtime import activity, attention_padding
from edgechat.runtime.activity import Activity
from edgechat.runtime.hidden_rows import HiddenRows
from edgechat.runtime.model import Model
from edgechat.runtime.resizable_context import ResizableContext

if TYPE_CHECKING:
    from numpy.typing import NDArray


_MAX_STEP_TOKENS: Final = 32
"""Maximum number of tokens in a batch with all logits that counts as a step; larger batches prefill with logprobs."""


class DecodeAborted(Exception):  # noqa: N818  (a requested stop, not an error)
    """Raised when `Context.abort` stops a decode. See `Context.decode` for the state of the sequence afterwards."""


class NoKvSlotError(Exception):
    """Raised when the context has too few free cells for a batch; all sequences are unchanged."""


class Context(ResizableContext):
    """llama.cpp context: decodes tokens into its sequences, and computes logits."""

    def __init__(self, model: Model, plan: LoadPlan) -> None:
        """Create a context with the options of `plan`. Raises PlanError if llama.cpp fails.

        For recurrent models, the context stores `n_rs_seq` earlier states of each sequence, so that up to `n_rs_seq`
        tokens can be rolled back.
        """
        self._min_n_threads = min(plan.n_threads, plan.n_threads_batch)
        self._thread_count = AdaptiveThreadCount(plan.n_threads) if plan.adapts_n_threads else None
        self._is_cpu_bound = not plan.options.uses_gpu
        self._logprob_buffer: NDArray[Any] | None = None
        self._hidden_rows: HiddenRows | None = None
        super().__init__(model, plan)

    # Hidden rows for drafters

    @property
    def hidden_rows(self) -> HiddenRows | None:
        """Hidden rows of the newest outputs; None unless a drafter needs them."""
        return self._hidden_rows

    def record_hidden_rows(self, rows: HiddenRows | None) -> None:
        """Record the hidden rows of all later outputs in `rows`, or stop recording."""
        self._hidden_rows = rows
        if rows is not None and self.is_open:
            rows.attach(self.pointer)

    def _attach(self, pointer: Any) -> None:
        super()._attach(pointer)
        if pointer and self._hidden_rows is not None:
            self._hidden_rows.attach(pointer)

    def _truncate(self, seq: int, n_tokens: int) -> int:
        n_tokens = super()._truncate(seq, n_tokens)
        if self._hidden_rows is not None:
            self._hidden_rows.truncate(seq, n_tokens)
        return n_tokens

    def _clear_token_lists(self) -> None:
        super()._clear_token_lists()
        if self._hidden_rows is not None:
            self._hidden_rows.clear()

    def copy(self, source: int, target: int, n_tokens: int) -> None:
        """Replace `target` with the first `n_tokens` tokens of `source`; see `SequenceMemory.copy`."""
        super().copy(source, target, n_tokens)
        if self._hidden_rows is not None:
            self._hidden_rows.copy(source, target, n_tokens)

    # Decode

    def decode(self, tokens: Sequence[int], seq: int = 0, *, all_logits: bool = False) -> None:
        """Append at most `n_batch` tokens to `seq`, and compute the logits after the last token.

        With `all_logits`, append at most `max_outputs` tokens, and compute the logits after each token.

        Raises DecodeAborted after `abort`, NoKvSlotError if too few cells are free, and EngineError if llama.cpp fails.
        If an exception is raised, the sequence is unchanged, unless its memory cannot be truncated: then a failure or
        an abort within a batch of several tokens empties the sequence.
        """
        self._decode([(seq, token) for token in tokens], logits=all_logits)

    def decode_each(self, tokens: Mapping[int, int]) -> None:
        """Append one token to each sequence, and compute the logits after each token, in the order of `tokens`.

        `tokens` maps sequences to tokens. Raises the same exceptions as `decode`.
        """
        self._decode(list(tokens.items()), logits=True)

    def decode_chains(self, chains: Mapping[int, Sequence[int]]) -> None:
        """Append the tokens of each chain to its sequence, and compute the logits after each token, chain by chain.

        `chains` maps sequences to at most 1 + `max_rollback` tokens each and `max_outputs` tokens in total. Afterwards,
        `rollback` can remove rejected draft tokens of each sequence; `needs_equal_drafts` limits their numbers. Raises
        the same exceptions as `decode`.
        """
        self._decode([(seq, token) for seq, tokens in chains.items() for token in tokens], logits=True)

    def logits(self, index: int = -1) -> NDArray[Any]:
        """Return a view of llama.cpp's logits (float32 [n_vocab]) after the token at `index` of the last batch."""
        import numpy as np

        pointer = self.model.bindings.llama.llama_get_logits_ith(self.pointer, index)
        return np.ctypeslib.as_array(pointer, (self.model.n_vocab,))

    def check_logits(self, index: int) -> None:
        """Raise ComputeError if a GPU computed NaN or infinity in place of the logits at `index` of the last batch."""
        if self._is_cpu_bound:
            return
        logit = float(self.model.bindings.llama.llama_get_logits_ith(self.pointer, index)[0])
        if not math.isfinite(logit):  # one wrong value at the end of the last layer makes all logits wrong
            raise ComputeError(f"The GPU computed {logit} in place of logits.")

    def logprobs(self, token: int, index: int, n_top: int) -> tuple[float, list[tuple[int, float]]]:
        """Return the logprob of `token`, and the `n_top` most likely tokens with their logprobs, before sampling.

        `index` is the position in the last batch whose logits are used.
        """
        import numpy as np

        logits = self.logits(index).astype(np.float64)
        logprobs = logits - logits.max()
        logprobs -= np.log(np.exp(logprobs).sum())
        top_tokens = _find_largest(logprobs, n_top)
        return float(logprobs[token]), [(int(t), float(logprobs[t])) for t in top_tokens]

    def logprob(self, token: int, index: int) -> float:
        """Return only the logprob of `token` that `logprobs` returns, several times as fast, in single precision."""
        import numpy as np

        logits = self.logits(index)
        if self._logprob_buffer is None:
            self._logprob_buffer = np.empty_like(logits)
        buffer, largest = self._logprob_buffer, logits.max()
        np.subtract(logits, largest, out=buffer)
        np.exp(buffer, out=buffer)
        return float(logits[token]) - float(largest) - math.log(float(buffer.sum()))

    @property
    def uses_all_threads(self) -> bool:
        """True if the last decode left no cores to other programs."""
        return self._current_thread_counts[0] == self.n_threads

    def start_stopwatch(self) -> Stopwatch:
        """Start a stopwatch for a decode of this context; it also detects disturbance by other programs."""
        return Stopwatch(self._min_n_threads, is_cpu_bound=self._is_cpu_bound)

    def time_decode(self, tokens: Sequence[int], seq: int | None = None) -> Timing:
        """Measure how long `decode_chains` takes for `tokens`, on a temporary copy of `seq`.

        Without `seq`, the tokens are decoded in an empty sequence. Raises the same exceptions as `decode`.
        """
        if seq is not None:
            self.copy(seq, self._scratch_seq, len(self._tokens[seq]))
        stopwatch = self.start_stopwatch()
        try:
            self._decode([(self._scratch_seq, token) for token in tokens], logits=True)
            self.synchronize()
            return stopwatch.stop()
        finally:
            self.drop(self._scratch_seq)

    def synchronize(self) -> None:
        """Wait until the last decode has finished, because GPU backends compute asynchronously."""
        with activity.during(Activity.COMPUTING):
            self.model.bindings.llama.llama_synchronize(self.pointer)

    @property
    def max_outputs(self) -> int:
        """Maximum number of tokens in a batch whose logits are computed."""
        return min(self.n_batch, N_OUTPUTS)

    @property
    def max_rollback(self) -> int:
        """Maximum number of tokens that `rollback` can remove."""
        if not self._has_state:
            return self.max_outputs - 1
        if not self.is_open:
            return 0
        return int(self.model.bindings.llama.llama_n_rs_seq(self.pointer))

    def _decode(self, entries: list[tuple[int, int]], *, logits: bool) -> None:
        """Decode (sequence, token) pairs, padded to a full attention tile if that is faster and cells are free."""
        start_lengths = {seq: len(self._tokens[seq]) for seq, _ in entries}
        n_padding = 0 if logits else self._count_padding(len(entries), max(start_lengths.values(), default=0))
        if n_padding:
            try:
                self._decode_batch(
                    [(self._scratch_seq, entries[0][1])] * n_padding + entries, start_lengths, logits=False
                )
            except NoKvSlotError:
                pass  # retry without padding
            else:
                return
            finally:
                self.drop(self._scratch_seq)
        self._decode_batch(entries, start_lengths, logits=logits)

    def _count_padding(self, count: int, depth: int) -> int:
        # llama.cpp computes attention in tiles only for keys and values in F16.
        if not self.can_truncate or self.n_batch < attention_padding.TILE_TOKENS or self.kv_type != "f16":
            return 0
        model = self.model
        return attention_padding.count_padding_tokens(
            count, depth, n_params=model.n_params, n_layer=model.n_layer, n_embd=model.n_embd
        )

    def _decode_batch(self, entries: list[tuple[int, int]], start_lengths: dict[int, int], *, logits: bool) -> None:
        """Decode one batch. If this fails, truncate each sequence to its length before the batch (`start_lengths`)."""
        batch, count = self._batch, len(entries)
        next_positions = {self._scratch_seq: 0} | start_lengths
        if not 0 < count <= self.n_batch:
            raise EngineError(f"Cannot decode {count} tokens in one batch: the limit is {self.n_batch}.")
        for i, (seq, token) in enumerate(entries):
            batch.token[i] = token
            batch.pos[i] = next_positions[seq]
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = seq
            batch.logits[i] = logits
            next_positions[seq] += 1
        self._check_length(max(next_positions.values()))
        batch.logits[count - 1] = True
        batch.n_tokens = count
        self._adapt_thread_counts(is_step=len(start_lengths) == count or (logits and count <= _MAX_STEP_TOKENS))
        # A step of a recurrent model must not be aborted: it is short, and an abort would empty the whole sequence.
        code = self._run(batch, is_step=len(start_lengths) == count or (logits and self._has_state))
        if code == 0:
            for seq, token in entries:
                self._tokens[seq].append(token)
            self._uncommitted_seqs -= start_lengths.keys()
            if self._hidden_rows is not None:
                self._record_rows(self._hidden_rows, entries, start_lengths, logits=logits)
            return
        if code == 1:  # no slot for the batch; the context is unchanged (llama.h)
            raise NoKvSlotError
        for seq, start in start_lengths.items():
            self._truncate(seq, start)
        if code == 2:  # noqa: PLR2004  (llama.h: aborted)
            raise DecodeAborted
        position = max(start_lengths.values())
        raise ComputeError(f"llama.cpp failed to decode {count} tokens at position {position} (code {code}).")

    def _record_rows(
        self, rows: HiddenRows, entries: list[tuple[int, int]], start_lengths: dict[int, int], *, logits: bool
    ) -> None:
        """Record the hidden rows of the outputs of the last batch, except those of the internal sequence."""
        outputs, positions = [], dict(start_lengths)
        for i, (seq, _) in enumerate(entries):
            if seq == self._scratch_seq:
                continue
            if logits or i == len(entries) - 1:
                outputs.append((seq, positions[seq], i))
            positions[seq] += 1
        with activity.during(Activity.COMPUTING):
            rows.record(self.pointer, outputs)

    def _check_length(self, n_tokens: int) -> None:
        """Raise NoKvSlotError if a sequence of `n_tokens` needs a longer context, EngineError beyond the maximum."""
        self._check_open()
        if n_tokens > self.max_n_ctx:
            raise EngineError(f"Cannot decode {n_tokens} tokens: the context has at most {self.max_n_ctx} cells.")
        if n_tokens > self.n_ctx:
            raise NoKvSlotError

    def _adapt_thread_counts(self, *, is_step: bool) -> None:
        """Use fewer threads for a step while other programs are busy. Prefill is as fast with all threads."""
        if self._thread_count is None:
            return
        n_left = self.n_threads - self._thread_count.choose()
        counts = self.n_threads - n_left, max(1, self._n_threads_batch - n_left) if is_step else self._n_threads_batch
        if counts != self._current_thread_counts:
            self.model.bindings.llama.llama_set_n_threads(self.pointer, *counts)
            self._current_thread_counts = counts

    def _run(self, batch: object, *, is_step: bool) -> int:
        """Call llama_decode and return its code. If the memory cannot be truncated, a step cannot be aborted."""
        llama = self.model.bindings.llama
        if self._is_aborted:
            raise DecodeAborted
        if not is_step or self.can_truncate:
            return self._compute(batch)
        llama.llama_set_abort_callback(self.pointer, self._no_callback, None)
        try:
            return self._compute(batch)
        finally:
            llama.llama_set_abort_callback(self.pointer, self._abort_callback, ctypes.c_void_p(self._abort_flag))

    def _compute(self, batch: object) -> int:
        with activity.during(Activity.COMPUTING):
            code = int(self.model.bindings.llama.llama_decode(self.pointer, batch))
        if code == 0:
            activity.set_has_computed(True)
        return code


def _find_largest(values: NDArray[Any], count: int) -> NDArray[Any]:
    """Return the indexes of the `count` largest values, largest first; equal values are in the order of their index."""
    import numpy as np

    if count <= 0:
        return np.empty(0, np.intp)
    if count >= len(values):
        return np.argsort(-values, kind="stable")[:count]
    smallest = np.partition(values, -count)[-count]
    candidates = np.flatnonzero(values >= smallest)
    return candidates[np.argsort(-values[candidates], kind="stable")[:count]]
