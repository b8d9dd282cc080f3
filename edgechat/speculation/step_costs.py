"""What a decode step of several tokens costs, in times of a step of one."""

from __future__ import annotations

import bisect
from typing import Final

import msgspec

# Kernels work in fours; each other size also makes llama.cpp build its graph anew.
SIZES: Final = (2, 3, 4, 8, 12, 16, 24, 32)
# Attention makes steps dearer the more there is before them: positions up to which a ratio holds.
DEPTHS: Final = (512, 2048, 8192, 32768)
# Before anything is measured: what a batch costs where prefill is six times as fast as decoding, as on small boards.
_PRIOR_SLOPE: Final = 1 / 5.9
# Of a new measurement; the first few are averaged.
_WEIGHT: Final = 0.1
_SINGLE_WEIGHT: Final = 0.2
_OLD_WEIGHT: Final = 0.5
# A stutter is no change, many are.
_MOST: Final = 1.6
_OLD_MOST: Final = 3.0
# After so many steps of several tokens one of a single token is due, or nothing is known of what they save.
PROBE_AFTER: Final = 32
# So many steps after it a single one is still something to compare with.
RECENT: Final = 8
# So many make a measurement that can be trusted.
MIN_SAMPLES: Final = 3


class RunningMean(msgspec.Struct):
    """A mean that forgets."""

    value: float = 0.0
    count: int = 0

    def update(self, new: float, weight: float, most: float) -> None:
        """Take in a measurement; one that is further off than `most` times counts as one that is so far off."""
        if self.count >= MIN_SAMPLES:
            new = min(max(new, self.value / most), self.value * most)
        self.count += 1
        self.value += max(weight, 1 / self.count) * (new - self.value)


class StepCosts:
    """Measured times of decode steps on this machine, for one model, by ranges of depths."""

    def __init__(self) -> None:
        self.single_steps: list[RunningMean] = [RunningMean() for _ in range(len(DEPTHS) + 1)]
        """Seconds of a step of one token; measured anew by every process."""
        self.ratios: list[dict[int, RunningMean]] = [{} for _ in range(len(DEPTHS) + 1)]
        """Of steps of several tokens to those of one, by their number."""
        self._since_single = PROBE_AFTER

    def start_reply(self) -> None:
        """Another answer begins, perhaps on a machine that has become faster or slower."""
        self._since_single = PROBE_AFTER

    def record(self, n_tokens: int, depth: int, seconds: float, *, is_benchmark: bool = False) -> None:
        """A step of `n_tokens` after `depth` others took so long."""
        if seconds <= 0:
            return
        where = depth_of(depth)
        if n_tokens == 1:
            # After a run of drafts the last one is old.
            is_old = is_benchmark or self._since_single > RECENT
            weight, most = (_OLD_WEIGHT, _OLD_MOST) if is_old else (_SINGLE_WEIGHT, _MOST)
            self.single_steps[where].update(seconds, weight, most)
            self._since_single = 0
            return
        self._since_single += 1
        single = self.single_steps[where]
        if single.count and self._since_single <= RECENT:
            weight = _OLD_WEIGHT if is_benchmark else _WEIGHT
            self.ratios[where].setdefault(n_tokens, RunningMean()).update(seconds / single.value, weight, _MOST)

    def single_s(self, depth: int) -> float:
        """Seconds of a step of one token after `depth` others; 0.0 if none was measured."""
        return self.single_steps[depth_of(depth)].value

    @property
    def is_single_due(self) -> bool:
        """True if steps of one token were not measured for long."""
        return self._since_single >= PROBE_AFTER

    def is_measured(self, n_tokens: int, depth: int) -> bool:
        """True if steps of this size were measured at about this depth."""
        found = self.ratios[depth_of(depth)].get(n_tokens)
        return found is not None and found.count >= MIN_SAMPLES

    def ratio(self, n_tokens: int, depth: int) -> float:
        """What a step of `n_tokens` costs, in steps of one; between measured sizes on a straight line."""
        if n_tokens <= 1:
            return 1.0
        known = self._nearest(depth_of(depth))
        if not known:
            return 1 + (n_tokens - 1) * _PRIOR_SLOPE
        if n_tokens in known:
            return known[n_tokens].value
        below = max((n for n in known if n < n_tokens), default=1)
        above = min((n for n in known if n > n_tokens), default=None)
        low = known[below].value if below > 1 else 1.0
        if above is None:
            # A guess that invites to measure: each further token half as dear as those before, as larger batches are.
            # As dear as they were would mean that a machine where two cost as much as two steps never learns of eight.
            slope = max(_PRIOR_SLOPE, (low - 1) / (below - 1) / 2 if below > 1 else 0.0)
            return low + (n_tokens - below) * slope
        return low + (known[above].value - low) * (n_tokens - below) / (above - below)

    def _nearest(self, depth: int) -> dict[int, RunningMean]:
        by_distance = sorted(range(len(self.ratios)), key=lambda i: (abs(i - depth), i))
        return next((self.ratios[i] for i in by_distance if self.ratios[i]), {})


def depth_of(depth: int) -> int:
    """The number of the range that a position is in."""
    return bisect.bisect_left(DEPTHS, depth)
