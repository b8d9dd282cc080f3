"""Acceptance rates of drafted tokens, by source and length of the match before the draft."""

from __future__ import annotations

import bisect
import math
from typing import Final

import msgspec

from edgechat.speculation.drafter import N_SOURCES

# Lower bounds of the match-length buckets.
BUCKETS: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
# Prior acceptance rate of each bucket, measured by replaying recorded replies (summaries, questions about texts,
# chats and edits, whose rates hardly differ).
_PRIOR: Final = (0.24, 0.42, 0.52, 0.66, 0.72, 0.77, 0.82, 0.88, 0.91, 0.95)
# Weight of the prior, in observations.
_PRIOR_WEIGHT: Final = 8.0
# Decay lengths, in observations, of the counts of all replies and of the current reply.
_DECAY_LENGTH: Final = 96.0
_REPLY_DECAY_LENGTH: Final = 32.0
# Maximum weight of all replies, in observations; the current reply counts in full.
_MAX_HISTORY_WEIGHT: Final = 16.0
_BUCKET_OF_LENGTH: Final = tuple(bisect.bisect_right(BUCKETS, n) - 1 for n in range(BUCKETS[-1] + 1))


class AcceptanceCounts(msgspec.Struct):
    """Exponentially decayed numbers of accepted and rejected tokens."""

    accepted: float = msgspec.field(default=0.0, name="right")
    rejected: float = msgspec.field(default=0.0, name="wrong")

    def add(self, decay_length: float, *, accepted: bool) -> None:
        """Count one token, after reducing the older counts by the fraction 1 / `decay_length`."""
        decay = 1 - 1 / decay_length
        self.accepted = self.accepted * decay + accepted
        self.rejected = self.rejected * decay + (not accepted)


class Acceptance:
    """Probability that a drafted token is accepted, by source and match-length bucket.

    The estimate combines the prior, the counts of all replies (at most 16 observations) and those of the current reply
    in full, so that it adapts to repetitive and to unpredictable text within a few tokens.
    """

    def __init__(self, counts: list[list[AcceptanceCounts]] | None = None) -> None:
        """Initialise from saved `counts`: `N_SOURCES` lists with one entry per bucket."""
        self.counts = counts or _zeros()
        """Counts of all replies, by source and bucket."""
        self._reply_counts = _zeros()
        self.probabilities: list[list[float]] = [[0.0] * len(BUCKETS) for _ in self.counts]
        """Probability that the next token equals the drafted one, by source and bucket."""
        self.low_probabilities: list[list[float]] = [[0.0] * len(BUCKETS) for _ in self.counts]
        """The probabilities minus one standard error, for machines on which a rejected token is expensive."""
        self.start_reply()

    def copy(self) -> Acceptance:
        """Return a deep copy of the counts of all replies."""
        return Acceptance([[AcceptanceCounts(c.accepted, c.rejected) for c in source] for source in self.counts])

    def start_reply(self) -> None:
        """Reset the counts of the current reply."""
        self._reply_counts = _zeros()
        for source in range(N_SOURCES):
            for bucket in range(len(BUCKETS)):
                self._update(source, bucket)

    def record(self, source: int, match_length: int, *, accepted: bool) -> None:
        """Count a drafted token that followed a match of `match_length` tokens."""
        bucket = bucket_of(match_length)
        self.counts[source][bucket].add(_DECAY_LENGTH, accepted=accepted)
        self._reply_counts[source][bucket].add(_REPLY_DECAY_LENGTH, accepted=accepted)
        self._update(source, bucket)

    def _update(self, source: int, bucket: int) -> None:
        history, reply = self.counts[source][bucket], self._reply_counts[source][bucket]
        accepted = history.accepted + _PRIOR[bucket] * _PRIOR_WEIGHT
        weight = history.accepted + history.rejected + _PRIOR_WEIGHT
        scale = min(1.0, _MAX_HISTORY_WEIGHT / weight)
        accepted = accepted * scale + reply.accepted
        weight = weight * scale + reply.accepted + reply.rejected
        p = accepted / weight
        self.probabilities[source][bucket] = p
        self.low_probabilities[source][bucket] = p - math.sqrt(p * (1 - p) / weight)


def _zeros() -> list[list[AcceptanceCounts]]:
    return [[AcceptanceCounts() for _ in BUCKETS] for _ in range(N_SOURCES)]


def bucket_of(match_length: int) -> int:
    """Return the index of the bucket of a match length."""
    return _BUCKET_OF_LENGTH[min(match_length, BUCKETS[-1])]
