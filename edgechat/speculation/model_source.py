"""Model drafter as a source of drafts: when to ask it, for how many tokens, and what its drafts cost."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from edgechat.draft_request import NO_WINDOW, DraftRequest, TokenChain
from edgechat.errors import EdgechatError
from edgechat.speculation.calibration import CalibrationCounts
from edgechat.speculation.drafter import FROM_MODEL, Draft, ModelDrafter
from edgechat.speculation.drafter_costs import FIRST_PENDING_TOKENS, DrafterCosts
from edgechat.speculation.model_choice import ModelCandidate, ModelChoice, find_best_length
from edgechat.speculation.step_costs import MIN_SAMPLES, STEP_SIZES, StepCosts
from edgechat.speculation.trial_schedule import TrialSchedule

_log = logging.getLogger(__name__)
# Minimum expected gain of a draft of the model over the best draft from a text and over no draft.
MIN_MODEL_GAIN: Final = 1.05
# Cost, in steps, that no draft reaches.
_UNLIMITED_COST: Final = 1e6
# In idle time, a model restarts if it could then read at least this many times as much text as it has read.
_RESTART_FACTOR: Final = 2
# Number of steps for which a model that does not pay is not considered again: its costs and calibration change only
# with drafts, and the choice takes a percent of a step of a small model.
_N_SKIPPED_STEPS: Final = 7
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


class ModelSource:
    """A model drafter with its costs and its schedule of trials. All sequences share it."""

    def __init__(
        self, drafter: ModelDrafter, profile: DrafterProfile, n_vocab: int, start_timer: StartTimer,
        on_failure: Callable[[str], None] = lambda _message: None, *, is_asleep: bool = False,
    ) -> None:  # fmt: skip
        """Create a source of drafts whose tokens are less than `n_vocab`; other tokens end a draft.

        `on_failure` is called once if the drafter fails; it is not used any more then. `is_asleep` is whether the
        drafter has no memory yet.
        """
        self._drafter = drafter
        self._n_vocab = n_vocab
        self._start_timer = start_timer
        self._on_failure = on_failure
        self._has_failed = False
        self._n_skipped_steps = 0
        """Number of next steps in which the model is not considered unless a trial is due."""
        self._trial_rate = 0.0
        """Estimated acceptance rate of a token before the last draft of a trial, the mean over its sequences."""
        self.profile = profile
        self.is_asleep = is_asleep
        """True if the memory of the drafter is freed."""
        self._n_frees = 0
        """Number of calls of `free_memory` that freed memory."""
        self._is_cold = False
        """True if the next draft is slower than others, because its memory is used for the first time."""
        self.draft_s = 0.0
        """Time of the last call of `draft`, in seconds."""
        self.is_disturbed = False
        """True if other programs disturbed the last call of `draft`."""

    @property
    def is_usable(self) -> bool:
        """False after the drafter has failed."""
        return not self._has_failed

    def choose(
        self, candidates: Sequence[ModelCandidate], costs: StepCosts, depth: int, *, other_gain: float, max_cost: float,
        max_trial_cost: float, reserve: float = 0.0,
    ) -> ModelChoice | None:  # fmt: skip
        """Choose how many tokens to ask for; return None if no draft of the model is worth its time now.

        `costs` are those of steps for as many sequences as there are `candidates`: a step of size 1 has one token of
        each. `other_gain` is the expected gain of the best other draft. The draft and its step must cost at most
        `max_cost` even if all tokens are rejected, less `reserve` if a sequence is not expected to gain from the step.
        Occasionally returns a trial, to learn whether the model pays now; it costs at most `max_trial_cost`.
        """
        if self._has_failed or self.is_asleep:
            return None
        is_trial_due = self.profile.schedule.is_due and max_trial_cost > 1.0
        if self._n_skipped_steps and not is_trial_due:
            self._n_skipped_steps -= 1
            return None
        windows = [self._drafter.find_window(c.seq) if c.max_tokens > 0 else NO_WINDOW for c in candidates]
        candidates = [c._replace(max_tokens=min(c.max_tokens, self._drafter.max_tokens)) for c in candidates]
        find_best = functools.partial(find_best_length, candidates, windows, costs, self.profile.costs, depth)
        best = find_best(max_cost=max_cost, reserve=reserve)
        if best is None:
            return None
        if best.gain > MIN_MODEL_GAIN * max(1.0, other_gain):
            return best._replace(pays=True)
        if best.gain <= MIN_MODEL_GAIN:
            self._n_skipped_steps = _N_SKIPPED_STEPS
        trial = find_best(max_cost=max_trial_cost) if is_trial_due and other_gain <= 1.0 else None
        if trial is None:
            return None
        optimistic = find_best(max_cost=_UNLIMITED_COST, is_optimistic=True)
        return trial if self._allows_trial(candidates, optimistic) else None

    def _allows_trial(self, candidates: Sequence[ModelCandidate], optimistic: ModelChoice | None) -> bool:
        """Return whether the trial begins or continues; end it if its last draft was rejected and the model cannot pay.

        `optimistic` is the best choice with higher acceptance rates: if even that one does not pay, the model cannot.
        """
        rate = sum(c.calibration.estimate_accepted(1)[1] for c in candidates) / len(candidates)
        schedule = self.profile.schedule
        may_pay = optimistic is not None and optimistic.gain > MIN_MODEL_GAIN
        if schedule.n_trial_drafts and rate < self._trial_rate and not may_pay:
            schedule.postpone()
            return False
        self._trial_rate = rate
        return True

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
                choice.max_pending, ends_at_eog=c.ends_at_eog,
            )
            for c in candidates if c.max_tokens > 0
        }  # fmt: skip
        n_pending, stop_timer = self._count_pending(requests), self._start_timer()
        drafts = self._ask(requests)
        self.draft_s, self.is_disturbed = stop_timer()
        if not n_pending or not drafts:
            return {}
        self.profile.schedule.record_draft(pays=choice.pays)
        checked = {seq: self._check(draft, requests[seq]) for seq, draft in drafts.items() if seq in requests}
        n_steps = max((len(draft.tokens) for draft in checked.values()), default=0)
        # The model computes a token more than it drafts if it ends a draft early.
        n_steps = min(n_steps + 1, choice.n_tokens)
        self._record_time(n_steps, n_pending, len(candidates), self.draft_s, is_disturbed=self.is_disturbed)
        return checked

    def _ask(self, requests: Mapping[int, DraftRequest]) -> Mapping[int, TokenChain]:
        """Return the drafts of the model; none after an error.

        If memory that a resize of the target freed cannot be allocated again, the drafter sleeps until its next trial.
        """
        is_open = self._drafter.is_open
        self._is_cold |= not is_open
        try:
            return self._drafter.draft(requests)
        except (EdgechatError, MemoryError, OSError) as error:
            if is_open or self._drafter.is_open:
                self._fail(error)
                return {}
        self.sleep()
        self.profile.schedule.postpone()
        return {}

    def _record_time(
        self, n_steps: int, n_pending: int, n_seqs: int, elapsed_s: float, *, is_disturbed: bool
    ) -> None:  # fmt: skip
        """Record the time of a draft, unless the memory was used for the first time and another time is known."""
        if not (self._is_cold and self.profile.costs.is_measured):
            self.profile.costs.record(n_steps, n_pending, n_seqs, elapsed_s, is_disturbed=is_disturbed)
        self._is_cold = False

    def _count_pending(self, requests: Mapping[int, DraftRequest]) -> int:
        """Return how many tokens the model must compute for `requests`."""
        n_pending = 0
        for seq, request in requests.items():
            window = self._drafter.find_window(seq)
            n_needed = window.n_restart if request.must_restart else window.n_pending
            n_pending += min(n_needed, n_needed if request.max_pending is None else request.max_pending)
        return n_pending

    def read(self, seq: int) -> None:
        """Let the model compute the text of `seq`, so that drafts after the next reply's message know the text before.

        Also measures the cost of a token. Does nothing if the model has computed at least half as much as it can, up to
        the end of the text, or cannot draft. Call it between replies.
        """
        window = self._drafter.find_window(seq)
        if self._has_failed or self.is_asleep or not window.n_restart:
            return
        must_restart = window.n_restart >= _RESTART_FACTOR * window.size
        if window.n_pending > 1 or must_restart:
            self._draft_in_idle_time({seq: DraftRequest(None, 1, must_restart=must_restart)})

    def measure(self, next_tokens: Mapping[int, int]) -> None:
        """Measure the costs of drafts for some sequences at once, each continued by a token; discard the drafts.

        If other programs disturb all drafts, the costs stay provisional. Does nothing if the drafter cannot draft now.
        """
        self._is_cold = True
        for n_tokens in (1, *(_MEASURED_TOKENS for _ in range(MIN_SAMPLES))):
            if self._has_failed or self.is_asleep:
                return
            requests = {
                seq: DraftRequest(token, n_tokens, max_pending=FIRST_PENDING_TOKENS, ends_at_eog=False)
                for seq, token in next_tokens.items()
                if self._drafter.find_window(seq).n_pending
            }
            if len(requests) < len(next_tokens):
                return
            self._draft_in_idle_time(requests)

    def _draft_in_idle_time(self, requests: Mapping[int, DraftRequest]) -> None:
        """Draft, record the time, and discard the drafts."""
        n_pending, stop_timer = self._count_pending(requests), self._start_timer()
        drafts = self._ask(requests)
        elapsed_s, is_disturbed = stop_timer()
        if len(drafts) == len(requests):
            n_steps = max(1, *(len(draft.tokens) for draft in drafts.values()))
            self._record_time(n_steps, n_pending, len(requests), elapsed_s, is_disturbed=is_disturbed)

    def _check(self, draft: TokenChain, request: DraftRequest) -> Draft:
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
        _log.warning("Decoding continues without the drafter: %s", message)
        self._on_failure(message)
        with contextlib.suppress(EdgechatError, MemoryError, OSError):
            self._drafter.sleep()  # free its memory, for which the rest of the program may be waiting

    def estimate_costs(self, single_step_s: float) -> dict[int, float]:
        """Return the cost of a draft by its number of tokens, relative to a decode step of `single_step_s`.

        Empty before the first measurement.
        """
        if not self.profile.costs.is_measured or single_step_s <= 0:
            return {}
        step_cost = self.profile.costs.step_cost(1, single_step_s)
        return {size - 1: (size - 1) * step_cost for size in STEP_SIZES if size - 1 <= self._drafter.max_tokens}
