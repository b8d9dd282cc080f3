"""Model drafter as a source of drafts: when to ask it, for how many tokens, and what its drafts cost."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import msgspec

from edgechat.errors import EdgechatError
from edgechat.speculation.calibration import Calibration, CalibrationCounts
from edgechat.speculation.drafter import FROM_MODEL, Draft, DraftedTokens, DraftRequest, ModelDrafter
from edgechat.speculation.drafter_costs import FIRST_PENDING_TOKENS, DrafterCosts
from edgechat.speculation.step_costs import MIN_SAMPLES, STEP_SIZES, StepCosts
from edgechat.speculation.trial_schedule import TrialSchedule

_log = logging.getLogger(__name__)
# Minimum expected gain of a draft of the model over the best draft from a text and over no draft.
MIN_MODEL_GAIN: Final = 1.05
# Number of pending tokens whose time counts in the expected gain of a draft. More tokens, as after a prompt, are
# computed only once, for many drafts.
_MAX_COUNTED_PENDING: Final = 4
# Number of tokens of the drafts that are timed in idle time.
_MEASURED_TOKENS: Final = 3

StartTimer = Callable[[], Callable[[], tuple[float, bool]]]
"""Starts a timer. The returned function stops it, and returns the seconds and whether other programs disturbed it."""


class DrafterProfile(msgspec.Struct):
    """What is known about a model drafter on this machine, over all replies; the speculation profile saves it."""

    greedy: CalibrationCounts = msgspec.field(default_factory=CalibrationCounts)
    sampled: CalibrationCounts = msgspec.field(default_factory=CalibrationCounts)
    costs: DrafterCosts = msgspec.field(default_factory=DrafterCosts)
    schedule: TrialSchedule = msgspec.field(default_factory=TrialSchedule)


class ModelCandidate(NamedTuple):
    """A sequence for which the model can draft."""

    seq: int
    next_token: int
    """Last token of the text, which the sequence does not contain yet."""
    max_tokens: int
    calibration: Calibration
    ends_at_eog: bool = True
    """True if a draft ends before an end-of-generation token."""


class ModelChoice(NamedTuple):
    """Decision to ask the model for drafts."""

    n_tokens: int
    """Number of tokens to ask for, for each sequence."""
    max_pending: int
    """Maximum number of tokens of each sequence that the model may compute before it drafts."""
    gain: float
    """Expected speed relative to decoding without drafts."""
    pays: bool
    """False for a trial."""


class ModelSource:
    """A model drafter with its costs and its schedule of trials. All sequences share it."""

    def __init__(
        self, drafter: ModelDrafter, profile: DrafterProfile, n_vocab: int, start_timer: StartTimer,
        on_failure: Callable[[str], None] = lambda _message: None,
    ) -> None:  # fmt: skip
        """Create a source of drafts whose tokens are less than `n_vocab`; other tokens end a draft.

        `on_failure` is called once if the drafter fails; it is not used any more then.
        """
        self._drafter = drafter
        self._n_vocab = n_vocab
        self._start_timer = start_timer
        self._on_failure = on_failure
        self._has_failed = False
        self.profile = profile
        self.is_asleep = False
        """True if the memory of the drafter is freed."""
        self._n_frees = 0
        """Number of calls of `free_memory` that freed memory."""
        self._is_cold = False
        """True after `wake`: the next draft is slower than others, because its memory is used for the first time."""
        self.draft_s = 0.0
        """Time of the last call of `draft`, in seconds."""
        self.is_disturbed = False
        """True if other programs disturbed the last call of `draft`."""

    @property
    def is_usable(self) -> bool:
        """False after the drafter has failed."""
        return not self._has_failed

    def choose(
        self, candidates: Sequence[ModelCandidate], costs: StepCosts, depth: int, *, other_gain: float, max_cost: float
    ) -> ModelChoice | None:
        """Choose how many tokens to ask for; return None if no draft of the model is worth its time now.

        `costs` are those of steps for as many sequences as there are `candidates`: a step of size 1 has one token of
        each. `other_gain` is the expected gain of the best other draft. The draft and its step must cost at most
        `max_cost` even if all tokens are rejected. Occasionally returns a trial, to learn whether the model pays now.
        """
        if self._has_failed or self.is_asleep:
            return None
        n_seqs, single_step_s = len(candidates), costs.single_step_s(depth)
        drafter_costs = self.profile.costs
        step_cost = drafter_costs.step_cost(n_seqs, single_step_s)
        max_step_cost = drafter_costs.max_step_cost(n_seqs, single_step_s)
        pending = [self._drafter.count_pending(c.seq) if c.max_tokens > 0 else 0 for c in candidates]
        n_pending = sum(pending)
        n_counted = min(n_pending, _MAX_COUNTED_PENDING * n_seqs)
        counted_cost = drafter_costs.pending_cost(n_counted, n_seqs, single_step_s)
        max_tokens = self._drafter.max_tokens
        estimates = [
            c.calibration.estimate_accepted(min(c.max_tokens, max_tokens) if n else 0)
            for c, n in zip(candidates, pending, strict=True)
        ]
        best: ModelChoice | None = None
        for n_tokens in (size - 1 for size in STEP_SIZES):
            if n_tokens > max_tokens:
                break
            n_drafted = sum(min(n_tokens, len(sums) - 1) for sums in estimates)
            if not n_drafted:
                return None
            ratio = costs.ratio(1 + n_drafted, depth)
            free_cost = max_cost - ratio - n_tokens * max_step_cost
            max_pending = drafter_costs.max_pending(free_cost, n_seqs, single_step_s)
            if free_cost < 0 or max_pending < min(n_pending, FIRST_PENDING_TOKENS * n_seqs):
                break
            expected = 1 + sum(sums[min(n_tokens, len(sums) - 1)] for sums in estimates) / n_seqs
            gain = expected / (ratio + n_tokens * step_cost + counted_cost)
            if best is None or gain > best.gain:
                best = ModelChoice(n_tokens, max(1, max_pending // n_seqs), gain, pays=False)
        if best is None:
            return None
        best = best._replace(pays=best.gain > MIN_MODEL_GAIN * max(1.0, other_gain))
        return best if best.pays or (self.profile.schedule.is_due and other_gain <= 1.0) else None

    def draft(
        self, choice: ModelChoice, candidates: Sequence[ModelCandidate], costs: StepCosts, depth: int
    ) -> dict[int, Draft]:
        """Ask the model for drafts, by sequence. Sets `draft_s`.

        A sequence for which the model cannot draft is missing; a draft that the model ended at once has no tokens.

        An error of the drafter is reported once, and it is not used any more.
        """
        single_step_s = costs.single_step_s(depth)
        step_cost = self.profile.costs.step_cost(len(candidates), single_step_s)
        # A token that is accepted less often than this costs more time than it saves.
        min_rate = min(1.0, step_cost + (costs.ratio(3, depth) - costs.ratio(2, depth)) / len(candidates))
        requests = {
            c.seq: DraftRequest(
                c.next_token, min(choice.n_tokens, c.max_tokens), c.calibration.find_min_probability(min_rate),
                choice.max_pending, c.ends_at_eog,
            )
            for c in candidates if c.max_tokens > 0
        }  # fmt: skip
        stop_timer = self._start_timer()
        try:
            n_pending = sum(min(self._drafter.count_pending(seq), choice.max_pending) for seq in requests)
            drafts = self._drafter.draft(requests)
        except (EdgechatError, MemoryError, OSError) as error:
            self._fail(error)
            return {}
        finally:
            self.draft_s, self.is_disturbed = stop_timer()
        if not n_pending or not drafts:
            return {}
        self.profile.schedule.record_draft(pays=choice.pays)
        checked = {seq: self._check(draft, requests[seq]) for seq, draft in drafts.items() if seq in requests}
        n_steps = max((len(draft.tokens) for draft in checked.values()), default=0)
        # The model computes a token more than it drafts if it ends a draft early.
        n_steps = min(n_steps + 1, choice.n_tokens)
        if not self._is_cold:
            self.profile.costs.record(
                n_steps, n_pending, len(candidates), self.draft_s, is_disturbed=self.is_disturbed
            )  # fmt: skip
        self._is_cold = False
        return checked

    def measure(self, seq: int, next_token: int) -> None:
        """Measure the costs of a draft after the text of `seq`, which `next_token` continues, and discard the draft.

        If other programs disturb all drafts, the costs stay provisional. Does nothing if the drafter cannot draft now.
        """
        for n_tokens in (1, *(_MEASURED_TOKENS for _ in range(MIN_SAMPLES))):
            if self._has_failed or self.is_asleep or not self._drafter.count_pending(seq):
                return
            stop_timer = self._start_timer()
            n_pending = min(self._drafter.count_pending(seq), FIRST_PENDING_TOKENS)
            try:
                self._drafter.draft(
                    {seq: DraftRequest(next_token, n_tokens, 0.0, FIRST_PENDING_TOKENS, ends_at_eog=False)}
                )
            except (EdgechatError, MemoryError, OSError) as error:
                self._fail(error)
                return
            elapsed_s, is_disturbed = stop_timer()
            if n_tokens > 1:  # the first draft also allocates memory
                self.profile.costs.record(n_tokens, n_pending, 1, elapsed_s, is_disturbed=is_disturbed)

    def _check(self, draft: DraftedTokens, request: DraftRequest) -> Draft:
        """Return the beginning of a draft that has valid tokens, at most as many as requested."""
        tokens: list[int] = []
        probabilities: list[float] = []
        for token, probability in zip(draft.tokens[: request.max_tokens], draft.probabilities, strict=False):
            if not 0 <= token < self._n_vocab:
                break
            tokens.append(token)
            probabilities.append(probability if 0 <= probability <= 1 else 0.0)
        return Draft(tokens, 0, FROM_MODEL, probabilities)

    def record_tokens(self, n_tokens: int) -> None:
        """Count tokens that were generated without a draft of the model; after many of them, free its memory."""
        schedule = self.profile.schedule
        schedule.wait(n_tokens)
        if schedule.should_sleep:
            self.sleep()

    def sleep(self) -> None:
        """Free the memory of the drafter until the next trial. Does nothing if it is free already."""
        if self.is_asleep or self._has_failed:
            return
        self.is_asleep = True
        try:
            self._drafter.sleep()
        except (EdgechatError, MemoryError, OSError) as error:
            self._fail(error)

    def free_memory(self) -> bool:
        """Free the memory of the drafter for a long time, because it is needed; return False if it has none."""
        if self.is_asleep or self._has_failed:
            return False
        self.sleep()
        self.profile.schedule.defer(self._n_frees)
        self._n_frees += 1
        return True

    @property
    def wants_wake(self) -> bool:
        """True if the memory of the drafter is freed, and its next trial is due."""
        return self.is_asleep and not self._has_failed and self.profile.schedule.is_due

    def wake(self, has_memory: Callable[[], bool]) -> None:
        """Allocate the memory of the drafter again if it wants to wake, or postpone its trial if that fails.

        Call it between replies: loading the weights can take seconds, which no reply must lose. Nothing is allocated if
        `has_memory` returns False.
        """
        if not self.wants_wake:
            return
        try:
            is_awake = has_memory() and self._drafter.wake()
        except (EdgechatError, MemoryError, OSError) as error:
            self._fail(error)
            return
        if is_awake:
            self.is_asleep, self._is_cold = False, True
        else:
            self.profile.schedule.postpone()

    def _fail(self, error: Exception) -> None:
        self._has_failed = True
        message = str(error) or "memory ran out"
        _log.warning("Decoding continues without the model drafter: %s", message)
        self._on_failure(message)
        with contextlib.suppress(EdgechatError, MemoryError, OSError):
            self._drafter.sleep()  # free its memory, for which the rest of the program may be waiting

    def estimate_costs(self, single_step_s: float) -> dict[int, float]:
        """Return the cost of a draft by its number of tokens, relative to a decode step of `single_step_s`.

        Empty before the first measurement.
        """
        if not self.profile.costs.step_s or single_step_s <= 0:
            return {}
        step_cost = self.profile.costs.step_cost(1, single_step_s)
        return {size - 1: (size - 1) * step_cost for size in STEP_SIZES if size - 1 <= self._drafter.max_tokens}
