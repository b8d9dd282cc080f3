"""Calibration of a model drafter: how often its tokens are accepted, by the probability that it gives them."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from typing import Final

import msgspec

from edgechat.speculation.acceptance import AcceptanceCounts
from edgechat.speculation.drafter import Draft

# Lower bounds of the buckets of the drafter's probability.
PROBABILITY_BOUNDS: Final = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97)
# Prior acceptance rate of each bucket: somewhat below the probability itself, because a small model is overconfident.
_PRIOR_RATES: Final = (0.05, 0.13, 0.22, 0.31, 0.4, 0.49, 0.58, 0.67, 0.77, 0.88, 0.96)
# Prior acceptance rate of a token at any position of a draft, if all tokens before it were accepted.
_PRIOR_POSITION_RATE: Final = 0.65
# Number of positions with rates of their own; later positions have the rate of the last one.
N_POSITIONS: Final = 8
# Weights and decay lengths, in observations.
_PRIOR_WEIGHT: Final = 4.0
_HISTORY_DECAY_LENGTH: Final = 96.0
_REPLY_DECAY_LENGTH: Final = 24.0
_MAX_HISTORY_WEIGHT: Final = 16.0
# Largest probability below which drafts may end. A higher one would leave too few tokens to correct a wrong estimate.
_MAX_MIN_PROBABILITY: Final = 0.6


class CalibrationCounts(msgspec.Struct):
    """Counts over all replies, which the speculation profile saves."""

    buckets: list[AcceptanceCounts] = msgspec.field(
        default_factory=lambda: [AcceptanceCounts() for _ in PROBABILITY_BOUNDS]
    )
    """Counts by bucket of the drafter's probability."""
    positions: list[AcceptanceCounts] = msgspec.field(
        default_factory=lambda: [AcceptanceCounts() for _ in range(N_POSITIONS)]
    )
    """Counts by position in the draft. A draft that the model ended early counts as rejected where it ended."""

    def copy(self) -> CalibrationCounts:
        """Return an independent copy."""
        return CalibrationCounts(
            [AcceptanceCounts(c.n_accepted, c.n_rejected) for c in self.buckets],
            [AcceptanceCounts(c.n_accepted, c.n_rejected) for c in self.positions],
        )


class _Rates:
    """Acceptance rates of several classes of tokens, from a prior, all replies, and the current reply."""

    def __init__(self, priors: Sequence[float], counts: list[AcceptanceCounts]) -> None:
        self._priors = priors
        self._counts = counts
        self._reply_counts = [AcceptanceCounts() for _ in counts]
        self.values = [0.0] * len(counts)
        self.lower_bounds = [0.0] * len(counts)
        """Rates minus one standard error."""
        for i in range(len(counts)):
            self._update(i)

    def record(self, i: int, *, is_accepted: bool) -> None:
        self._counts[i].add(_HISTORY_DECAY_LENGTH, is_accepted=is_accepted)
        self._reply_counts[i].add(_REPLY_DECAY_LENGTH, is_accepted=is_accepted)
        self._update(i)

    def _update(self, i: int) -> None:
        self.values[i], weight = self.combine(i, self._priors[i])
        self.lower_bounds[i] = self.values[i] - math.sqrt(self.values[i] * (1 - self.values[i]) / weight)

    def combine(self, i: int, prior: float) -> tuple[float, float]:
        """Return the rate of class `i` that the counts give to `prior`, and its weight in observations."""
        counts, reply_counts = self._counts[i], self._reply_counts[i]
        n_accepted = counts.n_accepted + prior * _PRIOR_WEIGHT
        weight = counts.n_accepted + counts.n_rejected + _PRIOR_WEIGHT
        scale = min(1.0, _MAX_HISTORY_WEIGHT / weight)
        n_accepted = n_accepted * scale + reply_counts.n_accepted
        weight = weight * scale + reply_counts.n_accepted + reply_counts.n_rejected
        return n_accepted / weight, weight


class Calibration:
    """Acceptance rates of a model drafter in one reply.

    Replies that are generated at the same time share the counts of all replies, but not those of their own.
    """

    def __init__(self, counts: CalibrationCounts | None = None) -> None:
        """Start a reply with the counts of earlier replies, which `record` changes."""
        counts = counts or CalibrationCounts()
        self._buckets = _Rates(_PRIOR_RATES, counts.buckets)
        self._positions = _Rates([_PRIOR_POSITION_RATE] * N_POSITIONS, counts.positions)

    def estimate_rate(self, probability: float, *, is_cautious: bool = False) -> float:
        """Return how often a token to which the drafter gives `probability` is accepted.

        With `is_cautious`, return the rate minus one standard error.
        """
        rates = self._buckets.lower_bounds if is_cautious else self._buckets.values
        return rates[find_bucket(probability)]

    def estimate_accepted(self, n_tokens: int, *, is_optimistic: bool = False) -> list[float]:
        """Return the expected number of accepted tokens of a new draft of 0, 1, ... `n_tokens` tokens.

        With `is_optimistic`, every acceptance rate is one standard error higher.
        """
        expected, probability, rate, sums = 0.0, 1.0, _PRIOR_POSITION_RATE, [0.0]
        error = 0.0
        for i in range(n_tokens):
            if i < N_POSITIONS:
                # The rate of the position before is the prior: acceptance hardly depends on the position.
                rate, weight = self._positions.combine(i, rate)
                error = math.sqrt(rate * (1 - rate) / weight) if is_optimistic else 0.0
            probability *= min(1.0, rate + error)
            expected += probability
            sums.append(expected)
        return sums

    def find_min_probability(self, rate: float) -> float:
        """Return the lowest probability from which tokens are accepted with at least `rate`; 0.6 at most."""
        for bound, bucket_rate in zip(PROBABILITY_BOUNDS, self._buckets.values, strict=True):
            if bucket_rate >= rate or bound >= _MAX_MIN_PROBABILITY:
                return bound
        return _MAX_MIN_PROBABILITY

    def record(self, draft: Draft, n_requested: int, actual: Sequence[int]) -> None:
        """Compare a draft of the model, which was asked for `n_requested` tokens, with the tokens that followed.

        `actual` are the tokens of one step. Only the first difference counts as rejected.
        """
        for i, token in enumerate(actual):
            if i == len(draft.tokens):
                if i < n_requested:
                    self._positions.record(min(i, N_POSITIONS - 1), is_accepted=False)
                return
            self._record_token(draft, i, is_accepted=draft.tokens[i] == token)
            if draft.tokens[i] != token:
                return

    def _record_token(self, draft: Draft, i: int, *, is_accepted: bool) -> None:
        self._buckets.record(find_bucket(draft.model_probabilities[i]), is_accepted=is_accepted)
        self._positions.record(min(i, N_POSITIONS - 1), is_accepted=is_accepted)


def find_bucket(probability: float) -> int:
    """Return the index of the bucket of `probability`."""
    return bisect.bisect_right(PROBABILITY_BOUNDS, probability) - 1
