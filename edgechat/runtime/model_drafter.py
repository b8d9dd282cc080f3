"""Model drafters: a small model, or prediction heads, that compute the next tokens that a target may generate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from edgechat.draft_request import NO_WINDOW, DraftRequest, TextWindow, TokenChain
from edgechat.errors import DrafterError, EdgechatError, EngineError, PlanError
from edgechat.planner.drafter_plan import DrafterPlan
from edgechat.runtime import activity
from edgechat.runtime.activity import Activity
from edgechat.runtime.bindings import DraftLayout
from edgechat.runtime.context import Context, DecodeAborted, NoKvSlotError
from edgechat.runtime.draft_window import DraftWindow, WindowUpdate
from edgechat.runtime.drafter_context import DrafterContext, PendingDraft
from edgechat.runtime.drafter_source import DrafterSource, make_source
from edgechat.runtime.hidden_rows import HiddenRows
from edgechat.runtime.model import OnLoadProgress


class _PreparedDraft(NamedTuple):
    """A draft whose sequence has been truncated to the text, but whose pending tokens are not computed yet."""

    draft: PendingDraft
    window: DraftWindow | None
    """Window of the sequence; None if the drafter has no cells of its own."""


def open_model_drafter(
    context: Context, plan: DrafterPlan, *, is_asleep: bool = False,
    on_progress: OnLoadProgress = lambda fraction: True,
) -> NativeDrafter:  # fmt: skip
    """Open the drafter of `plan` for the sequences of `context`; if `is_asleep`, only check its file until `wake`.

    Raises PlanError, with the reason, if its file cannot be used, does not match the model, or memory runs out.
    """
    source = make_source(context, plan, on_progress)
    drafter = NativeDrafter(context, plan, source)
    if is_asleep:
        return drafter
    try:
        drafter.open()
    except BaseException:
        drafter.close()
        raise
    return drafter


class NativeDrafter:
    """Drafter that computes with llama.cpp. Implements `edgechat.speculation.drafter.ModelDrafter`.

    It compares its own tokens with those of the target before each draft, so that it needs no messages about undone,
    restored or rejected tokens. All methods must be called on the decoding thread.
    """

    def __init__(self, target: Context, plan: DrafterPlan, source: DrafterSource) -> None:
        """Create a drafter that is still closed; see `open`."""
        self._target = target
        self._plan = plan
        self._source = source
        self._is_awake = False
        self._context: DrafterContext | None = None
        self._rows: HiddenRows | None = None
        self._layout = DraftLayout()
        self._windows: list[DraftWindow] = []
        self._slots: dict[int, int] = {}
        """Sequence of the drafter for each sequence of the target, the least recently used first."""

    def open(self) -> None:
        """Load the model, if it is in a file of its own, and allocate the memory.

        Raises PlanError, and DecodeAborted after an abort of the target.
        """
        source = self._source
        with activity.during(Activity.OPENING_DRAFTER):
            source.load()
        if self._rows is None:
            self._rows = source.make_rows()
            if self._rows is not None:
                self._target.record_hidden_rows(self._rows)
        self._context = self._open_context()
        self._layout = source.layout
        self._windows = [
            DraftWindow(
                self._plan.n_cells, can_truncate=not source.has_state, max_position=source.model.n_ctx_train
            ) for _ in range(self._plan.n_seqs)
        ]  # fmt: skip
        self._slots.clear()
        self._is_awake = True

    def _open_context(self) -> DrafterContext:
        source, target = self._source, self._target

        def open_beside() -> DrafterContext:
            return DrafterContext(source.model, target, source.shape)

        if not source.shares_cells:
            return open_beside()
        # When llama.cpp creates a KV cache that shares the cells of another one, it marks all of them as free.
        try:
            return target.keep_sequences(open_beside)
        except (EngineError, MemoryError) as error:
            raise PlanError(f"Cannot open the drafter beside the sequences: {error or 'out of memory'}") from error

    @property
    def max_tokens(self) -> int:
        """Maximum number of tokens in a draft."""
        return self._source.max_tokens

    @property
    def context(self) -> DrafterContext | None:
        """The context, for memory reports; None while the drafter has none."""
        return self._context if self._context is not None and self._context.is_open else None

    @property
    def is_open(self) -> bool:
        """False if the drafter sleeps, or if the next draft opens the context again after a resize of the target."""
        return self.context is not None

    @property
    def shares_weights(self) -> bool:
        """True if the weights are those of the target's model."""
        return self._source.shares_weights

    def find_window(self, seq: int) -> TextWindow:
        """Return how much of the text of `seq` is computed; `n_pending` is 0 if the drafter cannot draft now."""
        tokens = self._target.tokens(seq)
        first_index = self._find_first_index(seq, len(tokens))
        if not self._is_awake or first_index > len(tokens):
            return NO_WINDOW
        if self._source.shares_cells:
            return TextWindow(1, len(tokens), 0)
        slot = self._slots.get(seq)
        is_open = self.context is not None and slot is not None
        window = self._windows[slot] if is_open and slot is not None else DraftWindow(self._plan.n_cells)
        update = window.plan(tokens, -1, self.max_tokens, first_index=first_index)
        if update is None:
            return NO_WINDOW
        n_restart = min(window.n_cells // 2, len(tokens) + 1 - first_index)
        return TextWindow(len(update.pending), update.n_kept - update.n_dropped, n_restart)

    def draft(self, requests: Mapping[int, DraftRequest]) -> dict[int, TokenChain]:
        """Draft for several sequences at once, by sequence.

        A sequence for which no draft is possible is missing in the result; one that the model ends at once is empty.
        At most `n_seqs` sequences of the plan get a draft. Raises DecodeAborted after an abort of the target, and
        DrafterError if llama.cpp fails or the memory cannot be allocated again; the drafter can be used afterwards.
        """
        target = self._target
        if not self._is_awake or not target.is_open or not requests:
            return {}
        if target.is_aborted:
            raise DecodeAborted
        context = self._reopen()
        prepared: dict[int, _PreparedDraft] = {}
        try:
            for seq, request in list(requests.items())[: self._plan.n_seqs]:
                draft = self._prepare(context, seq, request, requests)
                if draft is not None:
                    prepared[seq] = draft
            chains = context.draft(self._layout, [p.draft for p in prepared.values()]) if prepared else []
        except (DecodeAborted, NoKvSlotError, EdgechatError, MemoryError) as error:
            for unfinished in prepared.values():
                self._undo(context, unfinished, is_valid=isinstance(error, (DecodeAborted, NoKvSlotError)))
            if isinstance(error, NoKvSlotError):  # other sequences hold all cells of the target, which soon may change
                return {}
            if isinstance(error, (DecodeAborted, DrafterError)):
                raise
            raise DrafterError(f"The drafter failed: {error or 'out of memory'}") from error
        for finished, chain in zip(prepared.values(), chains, strict=True):
            self._finish(context, finished, chain)
        return dict(zip(prepared, chains, strict=True))

    def _reopen(self) -> DrafterContext:
        """Return the context; if it was freed because the target's context was replaced, open it again."""
        if self._context is None or not self._context.is_open:
            try:
                self.open()
            except (EdgechatError, MemoryError) as error:
                raise DrafterError(f"The drafter cannot be opened again: {error or 'out of memory'}") from error
        assert self._context is not None  # noqa: S101  (set by `open`)
        return self._context

    def _find_first_index(self, seq: int, n_tokens: int) -> int:
        """Return the index of the first token of the text that can be computed: the one after the oldest row."""
        return self._rows.find_first(seq, n_tokens - 1) + 1 if self._rows is not None else 0

    def _prepare(
        self, context: DrafterContext, seq: int, request: DraftRequest, requests: Mapping[int, DraftRequest]
    ) -> _PreparedDraft | None:
        """Adapt the memory of the drafter to the text; return None if no draft is possible."""
        tokens, next_token = self._target.tokens(seq), request.next_token
        if next_token is None:
            if not tokens:
                return None
            tokens, next_token = tokens[:-1], tokens[-1]
        max_tokens = min(request.max_tokens, self.max_tokens)
        first_index = self._find_first_index(seq, len(tokens))
        if max_tokens < 1 or first_index > len(tokens):
            return None
        limits = max_tokens, request.min_probability, request.ends_at_eog
        if self._source.shares_cells:
            rows = self._join_rows(context, seq, len(tokens), len(tokens))
            return _PreparedDraft(PendingDraft(seq, seq, len(tokens), [next_token], rows, *limits), None)
        slot = self._choose_slot(seq, requests)
        window = self._windows[slot]

        def plan() -> WindowUpdate | None:
            return window.plan(
                tokens, next_token, max_tokens, max_pending=request.max_pending, must_restart=request.must_restart,
                first_index=first_index,
            )  # fmt: skip

        update = plan()
        if update is None:
            return None
        # Rows first: if an abort ends their conversion, the memory is still that which the window describes.
        rows = self._join_rows(context, seq, update.start, len(tokens))
        if not _remove(context, slot, window, update):
            context.remove(slot, -1)
            window.clear()
            update = plan()
            if update is None:
                return None
            rows = self._join_rows(context, seq, update.start, len(tokens))
        window.apply(update)
        pending = self._source.replace_unknown(update.pending)
        chain_slot = slot + self._plan.n_seqs if self._source.has_state else slot
        return _PreparedDraft(PendingDraft(slot, chain_slot, update.position, pending, rows, *limits), window)

    def _join_rows(self, context: DrafterContext, seq: int, start: int, end: int) -> bytes:
        """Return the rows for the tokens of the text from index `start` to index `end`, that of the next token."""
        if self._rows is None:
            return b""
        rows = self._rows.join(seq, start - 1, end)
        return self._source.encode(context, rows)

    def _choose_slot(self, seq: int, requests: Mapping[int, DraftRequest]) -> int:
        slot = self._slots.pop(seq, None)
        if slot is None and len(self._slots) < self._plan.n_seqs:
            slot = next(i for i in range(self._plan.n_seqs) if i not in self._slots.values())
        if slot is None:
            slot = self._slots.pop(next((s for s in self._slots if s not in requests), next(iter(self._slots))))
        self._slots[seq] = slot
        return slot

    def _finish(self, context: DrafterContext, finished: _PreparedDraft, chain: TokenChain) -> None:
        draft, window = finished
        if window is None:
            return
        window.extend(draft.pending)
        if self._source.has_state:
            context.remove(draft.chain_seq, -1)
        elif self._rows is not None:  # the target's own rows are better than those of the heads
            context.remove(draft.seq, draft.position + len(draft.pending))
        else:
            window.extend(chain.tokens[: draft.max_tokens - 1])

    def _undo(self, context: DrafterContext, unfinished: _PreparedDraft, *, is_valid: bool) -> None:
        """Remove the pending tokens after a failure; if `is_valid` is False or that fails, empty the sequence."""
        draft, window = unfinished
        if window is None or not context.is_open:
            return
        if draft.chain_seq != draft.seq:
            context.remove(draft.chain_seq, -1)
        if not is_valid or not context.remove(draft.seq, draft.position):
            context.remove(draft.seq, -1)
            window.clear()

    def sleep(self) -> None:
        """Free the memory of the drafter, with the weights of a file of its own, until the next `wake`."""
        self._is_awake = False
        if self._context is not None:
            self._context.close()
        self._context = None
        if self._rows is not None:
            self._target.record_hidden_rows(None)
        self._rows = None
        self._source.unload()

    def wake(self) -> bool:
        """Allocate the memory again, which also loads the weights; return False if that fails.

        Raises DecodeAborted, and stays asleep, if an abort of the target ends the load.
        """
        if self._is_awake:
            return True
        try:
            self.open()
        except DecodeAborted:
            self.sleep()
            raise
        except (EdgechatError, MemoryError):
            self.sleep()
        return self._is_awake

    def close(self) -> None:
        """Free all memory. Call it before the target is closed. A second call does nothing."""
        self.sleep()


def _remove(context: DrafterContext, slot: int, window: DraftWindow, update: WindowUpdate) -> bool:
    """Make the removals of `update` in the memory; return False if llama.cpp cannot."""
    if update.is_restart:
        return context.remove(slot, -1)
    if not context.remove(slot, update.position):
        return False
    return not update.n_dropped or context.remove(slot, *window.get_dropped_positions(update))
