"""Costs of a model drafter: time of a draft by its length, the tokens computed before it, and number of sequences."""

from __future__ import annotations

import statistics
from typing import Final

import msgspec

from edgechat.speculation.step_costs import MIN_SAMPLES

# Assumed cost of a draft step before the first measurement, relative to a decode step of one token: a guess for the
# expected gain, and an upper bound for the possible loss.
_PRIOR_STEP_COST: Final = 0.3
_MAX_STEP_COST: Final = 1.0
# Assumed cost of a pending token relative to a draft step. Until the cost is measured, only `FIRST_PENDING_TOKENS` of
# each sequence are computed before a draft.
_PRIOR_TOKEN_RATIO: Final = 0.3
FIRST_PENDING_TOKENS: Final = 16
_MIN_TOKEN_COST: Final = 1e-6
# Assumed growth of the cost of a draft step per further sequence.
_PRIOR_SEQ_SLOPE: Final = 0.1
# Number of pending tokens whose time is part of the first draft step.
_FREE_PENDING_TOKENS: Final = 2
# Number of undisturbed times of which the median counts.
MAX_TIMES: Final = 5


class DraftTimes(msgspec.Struct):
    """Newest measured times of a draft step or of a pending token, in seconds, the oldest first."""

    undisturbed: list[float] = []
    disturbed: list[float] = []
    """Times while other programs ran. They are saved, because a program that always runs may allow only one draft in a
    reply."""

    @property
    def value_s(self) -> float:
        """Median of the undisturbed times, or the fastest of several disturbed ones; 0.0 before the first measurement.

        A median follows two newer times, so that a single slow draft does not keep the drafter from being asked.
        """
        if self.undisturbed:
            return statistics.median_low(self.undisturbed)
        return min(self.disturbed) if len(self.disturbed) >= MIN_SAMPLES else 0.0

    def add(self, time_s: float, *, is_disturbed: bool) -> None:
        """Add a time, and remove the oldest one if there are too many."""
        times, max_times = (self.disturbed, MIN_SAMPLES) if is_disturbed else (self.undisturbed, MAX_TIMES)
        times.append(time_s)
        del times[:-max_times]

    def keep_median(self) -> None:
        """Replace the undisturbed times by their median, which two newer ones outweigh."""
        if self.undisturbed:
            self.undisturbed = [self.value_s]


class DrafterCosts(msgspec.Struct):
    """Measured times of a model drafter.

    A draft of k tokens takes k steps and the time of its pending tokens, which the model must compute before it drafts.
    """

    step_s: dict[int, DraftTimes] = {}
    """Times of a draft step by number of sequences."""
    token_s: DraftTimes = msgspec.field(default_factory=DraftTimes)
    """Times of a pending token."""

    def discard_outdated(self) -> None:
        """Let the next measurements replace the costs of an earlier process: drivers, kernels and cooling change."""
        for times in (self.token_s, *self.step_s.values()):
            times.keep_median()

    def record(self, n_steps: int, n_pending: int, n_seqs: int, elapsed_s: float, *, is_disturbed: bool) -> None:
        """Add the time of a draft of `n_steps` tokens, before which `n_pending` tokens of all sequences were computed.

        The time changes the estimate of whichever took most of it: the steps or the pending tokens.
        """
        if elapsed_s <= 0 or n_steps <= 0:
            return
        n_counted = _count_pending(n_pending, n_seqs)
        times = self.step_s.setdefault(n_seqs, DraftTimes())
        if not times.value_s:
            times.add(elapsed_s / (n_steps + n_counted * _PRIOR_TOKEN_RATIO), is_disturbed=is_disturbed)
            return
        token_s = self.token_s.value_s or times.value_s * _PRIOR_TOKEN_RATIO
        steps_s, tokens_s = n_steps * times.value_s, n_counted * token_s
        factor = elapsed_s / (steps_s + tokens_s)
        if steps_s >= tokens_s:
            times.add(times.value_s * factor, is_disturbed=is_disturbed)
        else:
            self.token_s.add(token_s * factor, is_disturbed=is_disturbed)

    @property
    def is_measured(self) -> bool:
        """True if a draft step has a measured or provisional cost."""
        return any(times.value_s for times in self.step_s.values())

    def step_cost(self, n_seqs: int, single_step_s: float) -> float:
        """Return the cost of a draft step for `n_seqs` sequences, relative to a decode step of `single_step_s`."""
        steps_s = {n: times.value_s for n, times in self.step_s.items() if times.value_s}
        if not steps_s or single_step_s <= 0:
            return _PRIOR_STEP_COST * _seq_factor(n_seqs)
        nearest = min(steps_s, key=lambda n: abs(n - n_seqs))
        return steps_s[nearest] / single_step_s * _seq_factor(n_seqs) / _seq_factor(nearest)

    def max_step_cost(self, n_seqs: int, single_step_s: float) -> float:
        """Return the cost of a draft step that a budget must cover: before the first measurement, an upper bound."""
        return self.step_cost(n_seqs, single_step_s) if self.is_measured else _MAX_STEP_COST * _seq_factor(n_seqs)

    def token_cost(self, n_seqs: int, single_step_s: float) -> float:
        """Return the cost of a pending token, relative to a decode step of `single_step_s`."""
        if self.token_s.value_s and single_step_s > 0:
            return max(self.token_s.value_s / single_step_s, _MIN_TOKEN_COST)
        return max(self.step_cost(n_seqs, single_step_s) * _PRIOR_TOKEN_RATIO, _MIN_TOKEN_COST)

    def pending_cost(self, n_pending: int, n_seqs: int, single_step_s: float) -> float:
        """Return the cost of computing `n_pending` tokens of `n_seqs` sequences before a draft."""
        return _count_pending(n_pending, n_seqs) * self.token_cost(n_seqs, single_step_s)

    def max_pending(self, cost: float, n_seqs: int, single_step_s: float) -> int:
        """Return how many tokens of `n_seqs` sequences can be computed before a draft within `cost`."""
        n_tokens = _FREE_PENDING_TOKENS * n_seqs + int(max(0.0, cost) / self.token_cost(n_seqs, single_step_s))
        return n_tokens if self.token_s.value_s else min(n_tokens, FIRST_PENDING_TOKENS * n_seqs)


def _count_pending(n_pending: int, n_seqs: int) -> int:
    return max(0, n_pending - _FREE_PENDING_TOKENS * n_seqs)


def _seq_factor(n_seqs: int) -> float:
    return 1 + _PRIOR_SEQ_SLOPE * (n_seqs - 1)
