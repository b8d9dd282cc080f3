"""Step costs: time of a decode step of several tokens, relative to a step of one token."""

from __future__ import annotations

import bisect
from typing import Final

import msgspec

# Step sizes in tokens. Only a few sizes are used, because kernels process four tokens at a time, and llama.cpp builds
# a graph for each size.
STEP_SIZES: Final = (2, 3, 4, 8, 12, 16, 24, 32)
# Upper bounds of the depth ranges in tokens. Costs are measured for each range, because they grow with depth.
DEPTH_LIMITS: Final = (512, 2048, 8192, 32768)
# Assumed cost of each further token in a step before the first measurement, relative to a single-token step. With this
# cost, prefill is about six times as fast as decoding.
_PRIOR_SLOPE: Final = 1 / 5.9
# Weights of a measurement in the moving average: for multi-token steps, for single-token steps, and for steps that are
# measured after a long interval or while the engine is idle. The first measurements have equal weights.
_MULTI_STEP_WEIGHT: Final = 0.1
_SINGLE_STEP_WEIGHT: Final = 0.2
_STALE_WEIGHT: Final = 0.5
# A measurement is limited to this factor above or below the mean, so that a single slow step has little effect.
_MAX_CHANGE: Final = 1.6
_STALE_MAX_CHANGE: Final = 3.0
# Number of multi-token steps after which a single-token step is required, because all ratios refer to single-token
# steps.
SINGLE_STEP_INTERVAL: Final = 32
# Maximum number of multi-token steps for which the time of the last single-token step is used as the reference.
_MAX_REFERENCE_AGE: Final = 8
# Minimum number of samples of a reliable mean.
MIN_SAMPLES: Final = 3


class RunningMean(msgspec.Struct):
    """Exponential moving average that limits the effect of outliers."""

    value: float = 0.0
    count: int = 0

    def update(self, sample: float, weight: float, max_change: float) -> None:
        """Add a sample. After `MIN_SAMPLES` samples, clamp it to the mean divided or multiplied by `max_change`."""
        if self.count >= MIN_SAMPLES:
            sample = min(max(sample, self.value / max_change), self.value * max_change)
        self.count += 1
        self.value += max(weight, 1 / self.count) * (sample - self.value)


class StepCosts:
    """Measured times of decode steps of one model on this machine, by number of tokens and depth range."""

    def __init__(self) -> None:
        self.single_steps: list[RunningMean] = [RunningMean() for _ in range(len(DEPTH_LIMITS) + 1)]
        """Mean seconds of a single-token step by depth range; not saved, so measured again in each process."""
        self.ratios: list[dict[int, RunningMean]] = [{} for _ in range(len(DEPTH_LIMITS) + 1)]
        """Mean time of a step, relative to a single-token step, by depth range and number of tokens."""
        self._steps_since_single = SINGLE_STEP_INTERVAL

    def start_reply(self) -> None:
        """Request a new measurement of a single-token step, because the speed of the machine can have changed."""
        self._steps_since_single = SINGLE_STEP_INTERVAL

    def record(self, n_tokens: int, depth: int, elapsed_s: float, *, is_benchmark: bool = False) -> None:
        """Add the time in seconds of a step of `n_tokens` at position `depth`.

        `is_benchmark` marks a step that was measured while the engine was idle.
        """
        if elapsed_s <= 0:
            return
        depth_range = find_depth_range(depth)
        if n_tokens == 1:
            is_stale = is_benchmark or self._steps_since_single > _MAX_REFERENCE_AGE
            weight, max_change = (_STALE_WEIGHT, _STALE_MAX_CHANGE) if is_stale else (_SINGLE_STEP_WEIGHT, _MAX_CHANGE)
            self.single_steps[depth_range].update(elapsed_s, weight, max_change)
            self._steps_since_single = 0
            return
        self._steps_since_single += 1
        single_step = self.single_steps[depth_range]
        if single_step.count and self._steps_since_single <= _MAX_REFERENCE_AGE:
            weight = _STALE_WEIGHT if is_benchmark else _MULTI_STEP_WEIGHT
            mean = self.ratios[depth_range].setdefault(n_tokens, RunningMean())
            mean.update(elapsed_s / single_step.value, weight, _MAX_CHANGE)

    def single_step_s(self, depth: int) -> float:
        """Return the mean seconds of a single-token step at position `depth`; 0.0 before the first measurement."""
        return self.single_steps[find_depth_range(depth)].value

    @property
    def needs_single_step(self) -> bool:
        """True if the next step must have a single token, to refresh the reference time."""
        return self._steps_since_single >= SINGLE_STEP_INTERVAL

    def is_measured(self, n_tokens: int, depth: int) -> bool:
        """Return whether steps of `n_tokens` have at least `MIN_SAMPLES` samples in the depth range of `depth`."""
        mean = self.ratios[find_depth_range(depth)].get(n_tokens)
        return mean is not None and mean.count >= MIN_SAMPLES

    def ratio(self, n_tokens: int, depth: int) -> float:
        """Return the cost of a step of `n_tokens` relative to a single-token step; interpolates unmeasured sizes."""
        if n_tokens <= 1:
            return 1.0
        ratios = self._find_nearest_ratios(find_depth_range(depth))
        if not ratios:
            return 1 + (n_tokens - 1) * _PRIOR_SLOPE
        if n_tokens in ratios:
            return ratios[n_tokens].value
        size_below = max((n for n in ratios if n < n_tokens), default=1)
        size_above = min((n for n in ratios if n > n_tokens), default=None)
        ratio_below = ratios[size_below].value if size_below > 1 else 1.0
        if size_above is None:
            # Assume that a further token costs half of the mean so far, so that larger steps are tried. With the full
            # mean, a machine on which two tokens cost as much as two steps would never try eight tokens.
            slope = max(_PRIOR_SLOPE, (ratio_below - 1) / (size_below - 1) / 2 if size_below > 1 else 0.0)
            return ratio_below + (n_tokens - size_below) * slope
        distance, ratio_above = size_above - size_below, ratios[size_above].value
        return ratio_below + (ratio_above - ratio_below) * (n_tokens - size_below) / distance

    def _find_nearest_ratios(self, depth_range: int) -> dict[int, RunningMean]:
        """Return the cost ratios, by step size, of the measured depth range that is closest to `depth_range`.

        Returns an empty dictionary before the first measurement.
        """
        ranges_by_distance = sorted(range(len(self.ratios)), key=lambda i: (abs(i - depth_range), i))
        return next((self.ratios[i] for i in ranges_by_distance if self.ratios[i]), {})


def find_depth_range(depth: int) -> int:
    """Return the index of the depth range that contains `depth`."""
    return bisect.bisect_left(DEPTH_LIMITS, depth)
