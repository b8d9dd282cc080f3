"""Costs of a model drafter: time of a draft by its length, the tokens computed before it, and number of sequences."""

from __future__ import annotations

from typing import Final

import msgspec

from edgechat.speculation.step_costs import RunningMean

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
    """

    step_s: dict[int, RunningMean] = {}
    """Time of a draft step by number of sequences."""
    token_s: RunningMean = msgspec.field(default_factory=RunningMean)
    """Time of a pending token."""

    @property
    def is_measured(self) -> bool:
        """True after the first draft."""
        return bool(self.step_s)

    def record(self, n_steps: int, n_pending: int, n_seqs: int, elapsed_s: float, *, is_disturbed: bool) -> None:
        """Add the time of a draft of `n_steps` tokens, before which `n_pending` tokens of all sequences were computed.

        The time changes the estimate of whichever took most of it: the steps or the pending tokens.
        """
        if elapsed_s <= 0 or n_steps <= 0 or is_disturbed:
            return
        n_counted = _count_pending(n_pending, n_seqs)
        if n_seqs not in self.step_s:
            first_s = elapsed_s / (n_steps + n_counted * _PRIOR_TOKEN_RATIO)
            self.step_s[n_seqs] = RunningMean(first_s, 1)
            return
        step, token_s = self.step_s[n_seqs], self._find_token_s(n_seqs)
        steps_s, tokens_s = n_steps * step.value, n_counted * token_s
        factor = elapsed_s / (steps_s + tokens_s)
        if steps_s >= tokens_s:
            step.update(step.value * factor, _WEIGHT, _MAX_CHANGE)
        else:
            self.token_s.update(token_s * factor, _WEIGHT, _MAX_CHANGE)

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
