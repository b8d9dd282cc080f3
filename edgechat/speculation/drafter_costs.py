"""Costs of a model drafter: time of a draft by its length, the tokens computed before it, and number of sequences."""

from __future__ import annotations

from typing import Final

import msgspec

from edgechat.speculation.step_costs import MIN_SAMPLES, RunningMean

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
_WEIGHT: Final = 0.2
_MAX_CHANGE: Final = 1.6


class DrafterCosts(msgspec.Struct):
    """Measured times of a model drafter, in seconds.

    A draft of k tokens takes k steps and the time of its pending tokens, which the model must compute before it drafts.
    Drafts that were disturbed by another program do not change a measured time. If there are only such drafts, the
    fastest of several gives a provisional time.
    """

    step_s: dict[int, RunningMean] = {}
    """Time of a draft step by number of sequences."""
    token_s: RunningMean = msgspec.field(default_factory=RunningMean)
    """Time of a pending token."""
    disturbed_step_s: dict[int, list[float]] = {}
    """Times of draft steps in disturbed drafts by number of sequences, fewer than `MIN_SAMPLES` of each. They are
    saved, because a program that always runs may allow only one draft in a reply."""

    @property
    def is_measured(self) -> bool:
        """True after the first draft that was not disturbed."""
        return any(mean.count for mean in self.step_s.values())

    def record(self, n_steps: int, n_pending: int, n_seqs: int, elapsed_s: float, *, is_disturbed: bool) -> None:
        """Add the time of a draft of `n_steps` tokens, before which `n_pending` tokens of all sequences were computed.

        The time changes the estimate of whichever took most of it: the steps or the pending tokens.
        """
        if elapsed_s <= 0 or n_steps <= 0:
            return
        n_counted = _count_pending(n_pending, n_seqs)
        step = self.step_s.get(n_seqs)
        if step is None or not step.count:
            first_s = elapsed_s / (n_steps + n_counted * _PRIOR_TOKEN_RATIO)
            self._record_first(n_seqs, first_s, is_disturbed=is_disturbed)
            return
        if is_disturbed:
            return
        token_s = self._find_token_s(n_seqs)
        steps_s, tokens_s = n_steps * step.value, n_counted * token_s
        factor = elapsed_s / (steps_s + tokens_s)
        if steps_s >= tokens_s:
            step.update(step.value * factor, _WEIGHT, _MAX_CHANGE)
        else:
            self.token_s.update(token_s * factor, _WEIGHT, _MAX_CHANGE)

    def _record_first(self, n_seqs: int, step_s: float, *, is_disturbed: bool) -> None:
        """Set the time of a draft step before it was measured, provisionally after `MIN_SAMPLES` disturbed drafts."""
        samples = self.disturbed_step_s.setdefault(n_seqs, [])
        samples.append(step_s)
        if not is_disturbed:
            self.step_s[n_seqs] = RunningMean(step_s, 1)
        elif len(samples) >= MIN_SAMPLES:
            self.step_s[n_seqs] = RunningMean(min(samples))
        else:
            return
        del self.disturbed_step_s[n_seqs]

    def _find_token_s(self, n_seqs: int) -> float:
        return self.token_s.value if self.token_s.count else self.step_s[n_seqs].value * _PRIOR_TOKEN_RATIO

    def step_cost(self, n_seqs: int, single_step_s: float) -> float:
        """Return the cost of a draft step for `n_seqs` sequences, relative to a decode step of `single_step_s`."""
        if not self.step_s or single_step_s <= 0:
            return _PRIOR_STEP_COST * _seq_factor(n_seqs)
        nearest = min(self.step_s, key=lambda n: abs(n - n_seqs))
        return self.step_s[nearest].value / single_step_s * _seq_factor(n_seqs) / _seq_factor(nearest)

    def max_step_cost(self, n_seqs: int, single_step_s: float) -> float:
        """Return the cost of a draft step that a budget must cover: before the first measurement, an upper bound."""
        return self.step_cost(n_seqs, single_step_s) if self.step_s else _MAX_STEP_COST * _seq_factor(n_seqs)

    def token_cost(self, n_seqs: int, single_step_s: float) -> float:
        """Return the cost of a pending token, relative to a decode step of `single_step_s`."""
        if self.token_s.count and single_step_s > 0:
            return max(self.token_s.value / single_step_s, _MIN_TOKEN_COST)
        return max(self.step_cost(n_seqs, single_step_s) * _PRIOR_TOKEN_RATIO, _MIN_TOKEN_COST)

    def pending_cost(self, n_pending: int, n_seqs: int, single_step_s: float) -> float:
        """Return the cost of computing `n_pending` tokens of `n_seqs` sequences before a draft."""
        return _count_pending(n_pending, n_seqs) * self.token_cost(n_seqs, single_step_s)

    def max_pending(self, cost: float, n_seqs: int, single_step_s: float) -> int:
        """Return how many tokens of `n_seqs` sequences can be computed before a draft within `cost`."""
        n_tokens = _FREE_PENDING_TOKENS * n_seqs + int(max(0.0, cost) / self.token_cost(n_seqs, single_step_s))
        return n_tokens if self.token_s.count else min(n_tokens, FIRST_PENDING_TOKENS * n_seqs)


def _count_pending(n_pending: int, n_seqs: int) -> int:
    return max(0, n_pending - _FREE_PENDING_TOKENS * n_seqs)


def _seq_factor(n_seqs: int) -> float:
    return 1 + _PRIOR_SEQ_SLOPE * (n_seqs - 1)
