"""Step costs: time of a decode step by number of tokens, relative to a step of one token."""

from __future__ import annotations

import bisect
from typing import Final

import msgspec

# Step sizes in tokens. Only a few are used, because kernels process tokens in fours, and llama.cpp builds a graph for
# each size.
SIZES: Final = (2, 3, 4, 8, 12, 16, 24, 32)
# Upper bounds of the position ranges: attention makes steps more expensive with depth.
DEPTHS: Final = (512, 2048, 8192, 32768)
# Relative cost per further token before the first measurement; corresponds to prefill at six times the decode speed.
_PRIOR_SLOPE: Final = 1 / 5.9
# Weights of a measurement in the moving average; the first measurements are averaged equally.
_WEIGHT: Final = 0.1
_SINGLE_WEIGHT: Final = 0.2
_STALE_WEIGHT: Final = 0.5
# Maximum change of the mean by one measurement, as a factor, which limits the effect of a single slow step.
_MAX_CHANGE: Final = 1.6
_STALE_MAX_CHANGE: Final = 3.0
# Number of larger steps after which a single-token step is due, because all ratios refer to single-token steps.
SINGLE_STEP_INTERVAL: Final = 32
# Number of larger steps for which the last single-token step is used as a reference.
_MAX_REFERENCE_AGE: Final = 8
# Number of samples that make a mean reliable.
MIN_SAMPLES: Final = 3


class RunningMean(msgspec.Struct):
    """Exponential moving average with a limit on outliers."""

    value: float = 0.0
    count: int = 0

    def update(self, sample: float, weight: float, max_change: float) -> None:
        """Add a sample; after `MIN_SAMPLES` the sample is limited to within a factor `max_change` of the mean."""
        if self.count >= MIN_SAMPLES:
            sample = min(max(sample, self.value / max_change), self.value * max_change)
        self.count += 1
        self.value += max(weight, 1 / self.count) * (sample - self.value)


class StepCosts:
    """Measured decode steps of one model on this machine, by number of tokens and range of positions."""

    def __init__(self) -> None:
        self.single_steps: list[RunningMean] = [RunningMean() for _ in range(len(DEPTHS) + 1)]
        """Seconds of a single-token step by position range, measured again in each process."""
        self.ratios: list[dict[int, RunningMean]] = [{} for _ in range(len(DEPTHS) + 1)]
        """Time of a step relative to a single-token step, by position range and number of tokens."""
        self._since_single = SINGLE_STEP_INTERVAL

    def start_reply(self) -> None:
        """Request a single-token step, since the machine may be faster or slower than at the last reply."""
        self._since_single = SINGLE_STEP_INTERVAL

    def record(self, n_tokens: int, depth: int, seconds: float, *, is_benchmark: bool = False) -> None:
        """Add the time of a step of `n_tokens` at position `depth`.

        `is_benchmark` marks a step that was measured while the engine was idle.
        """
        if seconds <= 0:
            return
        depth_range = depth_range_of(depth)
        if n_tokens == 1:
            is_stale = is_benchmark or self._since_single > _MAX_REFERENCE_AGE
            weight, max_change = (_STALE_WEIGHT, _STALE_MAX_CHANGE) if is_stale else (_SINGLE_WEIGHT, _MAX_CHANGE)
            self.single_steps[depth_range].update(seconds, weight, max_change)
            self._since_single = 0
            return
        self._since_single += 1
        single = self.single_steps[depth_range]
        if single.count and self._since_single <= _MAX_REFERENCE_AGE:
            weight = _STALE_WEIGHT if is_benchmark else _WEIGHT
            mean = self.ratios[depth_range].setdefault(n_tokens, RunningMean())
            mean.update(seconds / single.value, weight, _MAX_CHANGE)

    def single_s(self, depth: int) -> float:
        """Return the seconds of a step of one token at position `depth`; 0.0 if none was measured."""
        return self.single_steps[depth_range_of(depth)].value

    @property
    def is_single_due(self) -> bool:
        """True if the next step should have one token, to refresh the reference."""
        return self._since_single >= SINGLE_STEP_INTERVAL

    def is_measured(self, n_tokens: int, depth: int) -> bool:
        """Return True if steps of `n_tokens` have enough samples in the range of `depth`."""
        mean = self.ratios[depth_range_of(depth)].get(n_tokens)
        return mean is not None and mean.count >= MIN_SAMPLES

    def ratio(self, n_tokens: int, depth: int) -> float:
        """Return the time of a step of `n_tokens` relative to one token; interpolates linearly between sizes."""
        if n_tokens <= 1:
            return 1.0
        ratios = self._nearest_ratios(depth_range_of(depth))
        if not ratios:
            return 1 + (n_tokens - 1) * _PRIOR_SLOPE
        if n_tokens in ratios:
            return ratios[n_tokens].value
        below = max((n for n in ratios if n < n_tokens), default=1)
        above = min((n for n in ratios if n > n_tokens), default=None)
        low = ratios[below].value if below > 1 else 1.0
        if above is None:
            # A further token is assumed to cost half of the mean so far, so that larger sizes are tried. With the full
            # mean, a machine on which two tokens cost two steps would never measure eight tokens.
            slope = max(_PRIOR_SLOPE, (low - 1) / (below - 1) / 2 if below > 1 else 0.0)
            return low + (n_tokens - below) * slope
        return low + (ratios[above].value - low) * (n_tokens - below) / (above - below)

    def _nearest_ratios(self, depth_range: int) -> dict[int, RunningMean]:
        """Return the ratios of the closest position range with measurements."""
        by_distance = sorted(range(len(self.ratios)), key=lambda i: (abs(i - depth_range), i))
        return next((self.ratios[i] for i in by_distance if self.ratios[i]), {})


def depth_range_of(depth: int) -> int:
    """Return the index of the position range that contains `depth`."""
    return bisect.bisect_left(DEPTHS, depth)
