"""Acceptance rates of drafted tokens, by source of the draft and length of the match before the token."""

from __future__ import annotations

import bisect
import math
from typing import Final

import msgspec

from edgechat.speculation.drafter import N_TEXT_SOURCES

# Lower bounds of the match-length buckets, in tokens.
BUCKET_STARTS: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
# Prior acceptance rate of each bucket, measured by replaying recorded replies: summaries, answers to questions about
# texts, chats and edits. The rates hardly differ between these tasks.
_PRIOR_RATES: Final = (0.24, 0.42, 0.52, 0.66, 0.72, 0.77, 0.82, 0.88, 0.91, 0.95)
# Weight of the prior, in observations.
_PRIOR_WEIGHT: Final = 8.0
# Decay lengths, in observations, for the counts of all replies and for the counts of the current reply.
_HISTORY_DECAY_LENGTH: Final = 96.0
_REPLY_DECAY_LENGTH: Final = 32.0
# Maximum weight of the counts of all replies, in observations; the counts of the current reply have no limit.
_MAX_HISTORY_WEIGHT: Final = 16.0
_BUCKETS_BY_LENGTH: Final = tuple(bisect.bisect_right(BUCKET_STARTS, n) - 1 for n in range(BUCKET_STARTS[-1] + 1))


class AcceptanceCounts(msgspec.Struct):
    """Exponentially decayed counts of accepted and rejected tokens."""

    n_accepted: float = msgspec.field(default=0.0, name="right")
    n_rejected: float = msgspec.field(default=0.0, name="wrong")

    def add(self, decay_length: float, *, is_accepted: bool) -> None:
        """Reduce both counts by the fraction 1 / `decay_length`, then count one token."""
        decay = 1 - 1 / decay_length
        self.n_accepted = self.n_accepted * decay + is_accepted
        self.n_rejected = self.n_rejected * decay + (not is_accepted)


class Acceptance:
    """Estimator of the probability that a drafted token is accepted, by source and match-length bucket.

    The estimate combines the prior and the counts of all replies, limited to a weight of 16 observations, with the
    counts of the current reply, so that it adapts to repetitive or unpredictable text within a few tokens.
    """

    def __init__(self, counts: list[list[AcceptanceCounts]] | None = None) -> None:
        """Start with saved `counts` (`N_TEXT_SOURCES` lists with one entry per bucket), or with no observations."""
        self.counts = counts or _create_empty_counts()
        """Counts over all replies, by source and bucket."""
        self._reply_counts = _create_empty_counts()
        self.probabilities: list[list[float]] = [[0.0] * len(BUCKET_STARTS) for _ in self.counts]
        """Probability that the next token equals the drafted one, by source and bucket."""
        self.probability_lower_bounds: list[list[float]] = [[0.0] * len(BUCKET_STARTS) for _ in self.counts]
        """Probabilities minus one standard error, for machines on which a rejected token is expensive."""
        self.start_reply()

    def copy(self) -> Acceptance:
        """Return an independent copy, without the counts of the current reply."""
        return Acceptance([[AcceptanceCounts(c.n_accepted, c.n_rejected) for c in source] for source in self.counts])

    def start_reply(self) -> None:
        """Reset the counts of the current reply."""
        self._reply_counts = _create_empty_counts()
        for source in range(N_TEXT_SOURCES):
            for bucket in range(len(BUCKET_STARTS)):
                self._update(source, bucket)

    def record(self, source: int, match_length: int, *, is_accepted: bool) -> None:
        """Count a drafted token from `source` that followed a match of `match_length` tokens."""
        bucket = find_bucket(match_length)
        self.counts[source][bucket].add(_HISTORY_DECAY_LENGTH, is_accepted=is_accepted)
        self._reply_counts[source][bucket].add(_REPLY_DECAY_LENGTH, is_accepted=is_accepted)
        self._update(source, bucket)

    def _update(self, source: int, bucket: int) -> None:
        counts, reply_counts = self.counts[source][bucket], self._reply_counts[source][bucket]
        n_accepted = counts.n_accepted + _PRIOR_RATES[bucket] * _PRIOR_WEIGHT
        weight = counts.n_accepted + counts.n_rejected + _PRIOR_WEIGHT
        scale = min(1.0, _MAX_HISTORY_WEIGHT / weight)
        n_accepted = n_accepted * scale + reply_counts.n_accepted
        weight = weight * scale + reply_counts.n_accepted + reply_counts.n_rejected
        probability = n_accepted / weight
        standard_error = math.sqrt(probability * (1 - probability) / weight)
        self.probabilities[source][bucket] = probability
        self.probability_lower_bounds[source][bucket] = probability - standard_error


def _create_empty_counts() -> list[list[AcceptanceCounts]]:
    return [[AcceptanceCounts() for _ in BUCKET_STARTS] for _ in range(N_TEXT_SOURCES)]


def find_bucket(match_length: int) -> int:
    """Return the index of the bucket that contains `match_length`."""
    return _BUCKETS_BY_LENGTH[min(match_length, BUCKET_STARTS[-1])]
