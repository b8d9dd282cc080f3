"""Idle work of a model drafter: wake it, measure its drafts, and let it read the texts of the sequences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from edgechat.planner.drafter_plan import DrafterPlan
from edgechat.runtime.context import Context, DecodeAborted
from edgechat.speculation.model_source import ModelSource

# Number of loads of a waking drafter that requests may end before its trial is postponed: a client that sends requests
# all the time would keep the engine reading the file.
_MAX_ABORTED_WAKES: Final = 3


class DrafterWork:
    """Tasks of a model drafter between replies. All methods must be called on the decoding thread."""

    def __init__(self, context: Context, plan: DrafterPlan, model: ModelSource) -> None:
        self._context = context
        self._plan = plan
        self._model = model
        self._batches_to_measure: list[int] = []
        """Numbers of sequences for which the costs of drafts are measured."""
        self._seqs_to_read: list[int] = []
        """Sequences whose texts are read, after the measurements."""
        self._n_aborted_wakes = 0

    def wake(self, has_memory: Callable[[int], bool], allow_abort: Callable[[bool], None]) -> bool:
        """Wake the drafter if its next trial is due; return False if none is due.

        If `has_memory` refuses the number of bytes that the drafter needs, postpone the trial and return True. Loading
        the weights can take seconds: a request ends it, with DecodeAborted, and the next idle time loads them again;
        after three such loads in succession, the trial is postponed.
        Calls `allow_abort` as `DraftManager.idle_step` does.
        """
        if not self._model.wants_wake:
            return False
        # Opening an assistant copies all sequences, because it shares their cells.
        copied_bytes = self._context.state_bytes if self._plan.kind == "assistant" and self._context.is_open else 0
        allow_abort(True)
        try:
            self._model.wake(lambda: has_memory(self._plan.total + copied_bytes))
            self._n_aborted_wakes = 0
        except DecodeAborted:
            self._n_aborted_wakes += 1
            if self._n_aborted_wakes >= _MAX_ABORTED_WAKES:
                self._n_aborted_wakes = 0
                self._model.profile.schedule.postpone()
            raise
        finally:
            allow_abort(False)
        return True

    def plan(self, *, must_measure: bool) -> None:
        """Plan to read all texts, and before that to measure drafts for one sequence, two, and so on."""
        seqs = self._list_seqs()
        if must_measure:
            self._batches_to_measure = [*range(len(seqs), 0, -1)]
        self._seqs_to_read = [seq for seq in seqs if self._context.tokens(seq)]

    def _list_seqs(self) -> list[int]:
        """Return the longest sequences, as many as the drafter has room for, the longest one last."""
        seqs = sorted(range(self._context.n_seqs), key=lambda seq: len(self._context.tokens(seq)))
        return seqs[-self._plan.n_seqs :]

    def step(self, allow_abort: Callable[[bool], None]) -> bool:
        """Do the next task; return False if none is left. If it raises DecodeAborted, it stays the next one.

        Calls `allow_abort` as `DraftManager.idle_step` does.
        """
        if not self._context.is_open:
            self._batches_to_measure, self._seqs_to_read = [], []
        if not self._batches_to_measure and not self._seqs_to_read:
            return False
        allow_abort(True)
        try:
            if self._batches_to_measure:
                seqs = self._list_seqs()[-self._batches_to_measure[-1] :]
                self._model.measure({seq: tokens[-1] if (tokens := self._context.tokens(seq)) else 0 for seq in seqs})
                self._batches_to_measure.pop()
            else:
                self._model.read(self._seqs_to_read[-1])
                self._seqs_to_read.pop()
        finally:
            allow_abort(False)
        return True
