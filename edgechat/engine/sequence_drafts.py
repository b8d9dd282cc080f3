"""Drafts of the running output sequences: keeps their drafters at their texts, and records the decode steps."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence
from typing import Final, NamedTuple

from edgechat.engine.request import ActiveRequest
from edgechat.engine.sequence import OutputSequence
from edgechat.hardware.contention import Timing
from edgechat.planner.drafter_plan import MAX_DRAFTED_SEQS
from edgechat.runtime.context import Context
from edgechat.speculation.batch_speculator import BatchMember, BatchSpeculator
from edgechat.speculation.speculator import Speculator

_log = logging.getLogger(__name__)

RunningSequence = tuple[ActiveRequest, OutputSequence]


class StepDrafts(NamedTuple):
    """Drafts for one decode step."""

    drafts: dict[int, list[int]]
    """Draft of each sequence that has one, by sequence of the context."""
    depth: int
    """Length of the longest sequence before the step."""
    members: list[BatchMember] = []  # noqa: RUF012  (never changed)
    """Members of a batch, in the order of the sequences; empty if the step must not be recorded."""
    speculator: Speculator | None = None
    """Speculator of the only sequence; None in a batch, or if the step must not be recorded."""


NO_DRAFTS: Final = StepDrafts({}, 0)


class SequenceDrafts:
    """Chooses the drafts of each decode step, and tells the drafters which tokens were generated.

    At most `MAX_DRAFTED_SEQS` sequences have drafts at the same time, and only if all running sequences may have them:
    a draft slows the step down for the others.
    """

    def __init__(self, context: Context, batch_speculator: BatchSpeculator | None = None) -> None:
        """Create an object without sequences; without `batch_speculator`, only a single sequence has drafts."""
        self._context = context
        self._batch_speculator = batch_speculator
        self._started: dict[OutputSequence, Speculator] = {}
        """Sequences whose texts the drafters hold."""
        self._failed: weakref.WeakSet[OutputSequence] = weakref.WeakSet()
        """Sequences without drafts, because memory ran out."""

    def choose(self, sequences: Sequence[RunningSequence]) -> StepDrafts:
        """Choose the drafts for the next step of `sequences`, which decodes one token of each of them, too.

        The tokens that end reasoning are known before, and take the place of the draft of a single sequence. Raises
        DecodeAborted.
        """
        self._stop_others(sequences)
        if len(sequences) == 1:
            return self._choose_for_one(*sequences[0])
        if self._batch_speculator is None or len(sequences) > MAX_DRAFTED_SEQS:
            self.stop()
            return NO_DRAFTS
        if any(sequence.speculator is None for _, sequence in sequences):
            self.stop()
            return NO_DRAFTS
        return self._choose_for_batch(sequences, self._batch_speculator)

    def _choose_for_one(self, request: ActiveRequest, sequence: OutputSequence) -> StepDrafts:
        depth = len(self._context.tokens(sequence.seq))
        max_draft = max(0, min(sequence.max_draft, self._context.max_rollback))
        speculator = self._start(request, sequence)
        closing_tokens = sequence.closing_tokens
        if closing_tokens or speculator is None:
            return StepDrafts({sequence.seq: closing_tokens[:max_draft]} if closing_tokens else {}, depth)
        draft = sequence.find_allowed_prefix(speculator.propose(max_draft, depth))
        return StepDrafts({sequence.seq: draft} if draft else {}, depth, speculator=speculator)

    def _choose_for_batch(self, sequences: Sequence[RunningSequence], batch: BatchSpeculator) -> StepDrafts:
        context = self._context
        depth = max(len(context.tokens(sequence.seq)) for _, sequence in sequences)
        members: list[BatchMember] = []
        for request, sequence in sequences:
            speculator = self._start(request, sequence)
            if speculator is None or sequence.closing_tokens:
                return StepDrafts({}, depth)
            members.append(BatchMember(speculator, max(0, min(sequence.max_draft, context.max_rollback))))
        drafts = {
            sequence.seq: sequence.find_allowed_prefix(draft)
            for (_, sequence), draft in zip(sequences, batch.propose(members, depth), strict=True)
            if draft
        }
        if context.needs_equal_drafts:
            drafts = _cut_to_equal_length(drafts)
        return StepDrafts({seq: draft for seq, draft in drafts.items() if draft}, depth, members)

    def _start(self, request: ActiveRequest, sequence: OutputSequence) -> Speculator | None:
        """Return the speculator of a sequence, whose drafters hold its text; None if it has none, or memory ran out."""
        speculator = sequence.speculator
        if speculator is None or sequence in self._failed:
            return None
        speculator.seq = sequence.seq
        if sequence not in self._started:
            self._started[sequence] = speculator
            try:
                speculator.start([*request.prompt, *sequence.tokens])
            except MemoryError:
                self._fail(sequence)
                return None
        return speculator

    def _fail(self, sequence: OutputSequence) -> None:
        """Continue a sequence without drafts, because memory ran out."""
        _log.warning("A reply continues without drafts, because memory ran out.")
        self._failed.add(sequence)
        self._started.pop(sequence).stop()

    def record(
        self, sequences: Sequence[RunningSequence], step: StepDrafts, drafts: dict[int, list[int]],
        outputs: dict[int, list[int]], timing: Timing,
    ) -> None:  # fmt: skip
        """Record a step and append its tokens to the texts of the drafters.

        `drafts` are those that were decoded: none, if there was no cell for them. `outputs` are the generated tokens by
        sequence; a sequence without an output failed.
        """
        seqs = [sequence.seq for _, sequence in sequences]
        if all(seq in outputs for seq in seqs):
            self._record_step(seqs, step, drafts, outputs, timing)
        for _, sequence in sequences:
            speculator = self._started.get(sequence)
            if speculator is not None and sequence.seq in outputs:
                try:
                    speculator.append(outputs[sequence.seq])
                except MemoryError:
                    self._fail(sequence)

    def _record_step(
        self, seqs: list[int], step: StepDrafts, drafts: dict[int, list[int]], outputs: dict[int, list[int]],
        timing: Timing,
    ) -> None:  # fmt: skip
        is_disturbed = timing.is_disturbed
        if step.speculator is not None and len(seqs) == 1:
            draft, output = drafts.get(seqs[0], []), outputs[seqs[0]]
            step.speculator.record_step(
                len(draft), len(output) - 1, output[-1], step.depth, timing.elapsed_s, is_disturbed=is_disturbed
            )
        elif self._batch_speculator is not None and len(step.members) == len(seqs):
            self._batch_speculator.record_step(
                step.members, [drafts.get(seq, []) for seq in seqs], [outputs[seq] for seq in seqs],
                step.depth, timing.elapsed_s, is_disturbed=is_disturbed,
            )  # fmt: skip

    def _stop_others(self, sequences: Sequence[RunningSequence]) -> None:
        current = {sequence for _, sequence in sequences}
        for sequence in [s for s in self._started if s not in current]:
            self._started.pop(sequence).stop()

    def stop(self) -> None:
        """Let the drafters forget all sequences. Those that continue are started again before their next draft."""
        self._stop_others([])


def _cut_to_equal_length(drafts: dict[int, list[int]]) -> dict[int, list[int]]:
    """Return the drafts cut to one length, without shorter ones, so that most tokens remain."""
    lengths = [len(draft) for draft in drafts.values()]
    best = max(lengths, key=lambda n: n * sum(length >= n for length in lengths), default=0)
    return {seq: draft[:best] for seq, draft in drafts.items() if len(draft) >= best}
