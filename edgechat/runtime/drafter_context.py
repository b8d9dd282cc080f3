"""llama.cpp context of a drafter, which shares the threads and the abort flag of its target."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec

from edgechat.draft_request import TokenChain
from edgechat.errors import DrafterError, PlanError
from edgechat.runtime import activity
from edgechat.runtime.activity import Activity
from edgechat.runtime.bindings import DraftLayout, SequenceDraft
from edgechat.runtime.context import Context, DecodeAborted, NoKvSlotError
from edgechat.runtime.model import Model

_NO_CELL: Final = 1
_ABORTED: Final = 2
"""Code of llama_decode after an abort."""
_EXCEPTION: Final = -100
"""Code of libedgechat after a C++ exception, which nearly always is a failed allocation."""


class DrafterShape(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes of a drafter's context."""

    n_ctx: int
    n_seqs: int
    n_batch: int
    n_outputs: int
    is_mtp: bool = False
    """True for the prediction layers of the target's own model."""
    reads_target: bool = False
    """True if the drafter's graph uses tensors or the KV cache of the target's context."""
    shares_cells: bool = False
    """True if the drafter has no cells of its own, but reads those of the target."""


class PendingDraft(NamedTuple):
    """Pending tokens of one sequence, and limits of the draft after them."""

    seq: int
    chain_seq: int
    """Sequence that gets the draft tokens: `seq`, or an unused one that becomes a copy of it."""
    position: int
    pending: list[int]
    rows: bytes
    """Hidden rows, one for each pending token; empty for a draft model."""
    max_tokens: int
    min_probability: float
    ends_at_eog: bool


class DrafterContext:
    """Owner of the llama_context of a drafter, which `free` or garbage collection frees."""

    def __init__(self, model: Model, target: Context, shape: DrafterShape) -> None:
        """Open a context of `model` beside `target`. Raises PlanError if there is too little memory."""
        self.model = model
        self._target = target
        self._shape = shape
        bindings = model.bindings
        self._llama, self._native = bindings.llama, bindings.edgechat
        self._activity = Activity.DRAFTING_ON_GPU if target.options.n_gpu_layers else Activity.DRAFTING
        bindings.log.take_errors()
        with activity.during(Activity.OPENING_DRAFTER):
            pointer = self._llama.llama_init_from_model(model.pointer, self._create_params())
        if not pointer:
            errors = bindings.log.take_errors()
            raise PlanError(f"Cannot create a context for drafts: {errors[0] if errors else 'out of memory'}")
        self.pointer = pointer
        self._finalizer = weakref.finalize(self, self._llama.llama_free, pointer)
        self._memory = self._llama.llama_get_memory(pointer)
        if shape.is_mtp or shape.reads_target:
            # A drafter of rows also makes the rows for its own next tokens.
            self._native.edgechat_keep_rows(pointer, (ctypes.c_int32 * 1)(), 0)
        target.share_threads(pointer)
        target.add_dependant(self)

    def _create_params(self) -> Any:
        llama, target, shape = self._llama, self._target, self._shape
        params = llama.llama_context_default_params()
        params.n_ctx, params.n_seq_max = shape.n_ctx, shape.n_seqs
        params.n_batch = params.n_ubatch = shape.n_batch
        params.n_outputs_max = max(shape.n_outputs, shape.n_seqs)
        params.n_threads, params.n_threads_batch = target.thread_counts
        params.offload_kqv = params.op_offload = target.options.n_gpu_layers > 0
        params.kv_unified = params.no_perf = True
        params.swa_full = not shape.shares_cells  # so that tokens can be removed anywhere
        if shape.is_mtp:
            params.ctx_type = llama.LLAMA_CONTEXT_TYPE_MTP
        if shape.reads_target:
            params.ctx_other = target.pointer
        return params

    @property
    def reads_target(self) -> bool:
        """True if the context must be freed before the llama_context of the target is replaced."""
        return self._shape.reads_target

    @property
    def is_open(self) -> bool:
        """True until the context is freed."""
        return self._finalizer.alive

    def free(self) -> None:
        """Free the context. A second call does nothing."""
        self._finalizer()

    def close(self) -> None:
        """Free the context, and let the target forget it. A second call does nothing."""
        self.free()
        self._target.remove_dependant(self)

    def remove(self, seq: int, start: int, end: int = -1) -> bool:
        """Remove the positions from `start` to `end` (exclusive; -1: all) of `seq`; return False if that fails."""
        return bool(self._llama.llama_memory_seq_rm(self._memory, seq, start, end))

    def draft(self, layout: DraftLayout, drafts: Sequence[PendingDraft]) -> list[TokenChain]:
        """Compute the pending tokens of all sequences, and return a draft for each.

        Afterwards, `chain_seq` contains the draft tokens, except the last one. Raises DecodeAborted after an abort of
        the target, NoKvSlotError if no cell is free, and DrafterError if llama.cpp fails; then the sequences contain
        any part of the tokens.
        """
        arrays = [_Arrays(d) for d in drafts]
        native_drafts = (SequenceDraft * len(drafts))(*(a.to_native(d) for a, d in zip(arrays, drafts, strict=True)))
        self._llama.llama_set_n_threads(self.pointer, *self._target.thread_counts)
        with activity.during(self._activity):
            code = self._native.edgechat_draft_tokens(self.pointer, ctypes.byref(layout), native_drafts, len(drafts))
        self._check(code, "draft")
        return [a.read(d.n_tokens) for a, d in zip(arrays, native_drafts, strict=True)]

    def encode(self, features: bytes, n_features: int, n_row: int) -> bytes:
        """Return the rows of `n_row` floats that the encoder makes of joined rows of `n_features` floats.

        Raises the same exceptions as `draft`.
        """
        count = len(features) // (n_features * ctypes.sizeof(ctypes.c_float))
        source = (ctypes.c_float * (count * n_features)).from_buffer_copy(features)
        rows = (ctypes.c_float * (count * n_row))()
        with activity.during(self._activity):
            code = self._native.edgechat_encode_rows(
                self.pointer, source, n_features, count, self._shape.n_outputs, rows
            )
        self._check(code, "encode hidden rows")
        return bytes(rows)

    def _check(self, code: int, work: str) -> None:
        if code == _ABORTED:
            raise DecodeAborted
        if code == _NO_CELL:
            raise NoKvSlotError("No cell is free for a draft.")
        if code == _EXCEPTION:
            raise DrafterError(f"llama.cpp failed to {work} with {self.model.path}: memory may have run out.")
        if code:
            raise DrafterError(f"llama.cpp failed to {work} with {self.model.path} (code {code}).")


class _Arrays:
    """Arrays of one draft, which must live as long as the native call."""

    def __init__(self, draft: PendingDraft) -> None:
        self._pending = (ctypes.c_int32 * len(draft.pending))(*draft.pending)
        self._rows = (ctypes.c_float * (len(draft.rows) // 4)).from_buffer_copy(draft.rows) if draft.rows else None
        self._tokens = (ctypes.c_int32 * draft.max_tokens)()
        self._probabilities = (ctypes.c_float * draft.max_tokens)()

    def to_native(self, draft: PendingDraft) -> SequenceDraft:
        return SequenceDraft(
            seq=draft.seq, chain_seq=draft.chain_seq, position=draft.position, n_pending=len(draft.pending),
            pending=self._pending, rows=self._rows, max_tokens=draft.max_tokens,
            min_probability=draft.min_probability, ends_at_eog=draft.ends_at_eog, tokens=self._tokens,
            probabilities=self._probabilities,
        )  # fmt: skip

    def read(self, n_tokens: int) -> TokenChain:
        return TokenChain(self._tokens[:n_tokens], self._probabilities[:n_tokens])
