"""How often a drafted token is right, by the length of the match before it."""

from __future__ import annotations

import bisect
import math
from typing import Final

import msgspec

from edgechat.speculation.drafter import N_SOURCES

# Matches as long as this or longer, up to the next.
BUCKETS: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
# Before anything is known: replays of recorded answers to summaries, questions about texts, chats and edits, which
# hardly differ in this.
_PRIOR: Final = (0.24, 0.42, 0.52, 0.66, 0.72, 0.77, 0.82, 0.88, 0.91, 0.95)
# So many observations is that worth, and so many are remembered.
_PRIOR_WEIGHT: Final = 8.0
_MEMORY: Final = 96.0
_PRESENT_MEMORY: Final = 32.0
_EARLIER: Final = 16.0
_OF_LENGTH: Final = tuple(bisect.bisect_right(BUCKETS, n) - 1 for n in range(BUCKETS[-1] + 1))


class AcceptanceCounts(msgspec.Struct):
    """Right and wrong guesses of one kind, the older ones counted less."""

    right: float = 0.0
    wrong: float = 0.0

    def add(self, memory: float, *, accepted: bool) -> None:
        """Count one more; about `memory` of them are remembered."""
        keep = 1 - 1 / memory
        self.right = self.right * keep + accepted
        self.wrong = self.wrong * keep + (not accepted)


class Acceptance:
    """Decayed counts for each source and each bucket of match lengths, and the chances that follow from them.

    What all answers taught is worth `_EARLIER` observations at most, what the present one teaches counts fully: texts
    that repeat themselves and texts that do not are told apart after a few tokens.
    """

    def __init__(self, counts: list[list[AcceptanceCounts]] | None = None) -> None:
        """`counts` as they were when they were kept: `N_SOURCES` lists of as many as there are `BUCKETS`."""
        self.counts = counts or _zeros()
        """Of all answers."""
        self._present = _zeros()
        self.probabilities: list[list[float]] = [[0.0] * len(BUCKETS) for _ in self.counts]
        """That the next token is the drafted one, by source and bucket."""
        self.low_probabilities: list[list[float]] = [[0.0] * len(BUCKETS) for _ in self.counts]
        """The same less the standard error: for machines where a wrong guess costs much."""
        self.start_reply()

    def copy(self) -> Acceptance:
        """The same counts, which go ways of their own."""
        return Acceptance([[AcceptanceCounts(c.right, c.wrong) for c in source] for source in self.counts])

    def start_reply(self) -> None:
        """Another answer begins."""
        self._present = _zeros()
        for source in range(N_SOURCES):
            for bucket in range(len(BUCKETS)):
                self._update(source, bucket)

    def record(self, source: int, match_length: int, *, accepted: bool) -> None:
        """A guess after a match of this length was right, or wrong."""
        bucket = bucket_of(match_length)
        self.counts[source][bucket].add(_MEMORY, accepted=accepted)
        self._present[source][bucket].add(_PRESENT_MEMORY, accepted=accepted)
        self._update(source, bucket)

    def _update(self, source: int, bucket: int) -> None:
        earlier, present = self.counts[source][bucket], self._present[source][bucket]
        right = earlier.right + _PRIOR[bucket] * _PRIOR_WEIGHT
        weight = earlier.right + earlier.wrong + _PRIOR_WEIGHT
        share = min(1.0, _EARLIER / weight)
        right, weight = right * share + present.right, weight * share + present.right + present.wrong
        p = right / weight
        self.probabilities[source][bucket] = p
        self.low_probabilities[source][bucket] = p - math.sqrt(p * (1 - p) / weight)


def _zeros() -> list[list[AcceptanceCounts]]:
    return [[AcceptanceCounts() for _ in BUCKETS] for _ in range(N_SOURCES)]


def bucket_of(match_length: int) -> int:
    """The number of a match length's bucket."""
    return _OF_LENGTH[min(match_length, BUCKETS[-1])]
