"""Step costs: time of a decode step of several tokens, relative to a step of one token."""

from __future__ import annotations

import bisect
import math
import statistics
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec

# Step sizes in tokens. Only a few sizes are used, because kernels process four tokens at a time, and llama.cpp builds
# a graph for each size.
STEP_SIZES: Final = (2, 3, 4, 8, 12, 16, 24, 32)
# Upper bounds of the depth ranges in tokens. Costs are measured for each range, because they grow with depth.
DEPTH_LIMITS: Final = (512, 2048, 8192, 32768)
_N_DEPTH_RANGES: Final = len(DEPTH_LIMITS) + 1
# Depth ranges for each depth range, nearest first.
_RANGES_BY_DISTANCE: Final = tuple(
    tuple(sorted(range(_N_DEPTH_RANGES), key=lambda i: (abs(i - depth_range), i)))
    for depth_range in range(_N_DEPTH_RANGES)
)
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
# Number of samples beyond which a mean stops counting them, far below the limit of a saved profile.
_MAX_COUNT: Final = 100_000
# Number of steps without a sample after which a mean follows a new sample quickly.
_STALE_AFTER_STEPS: Final = 48
# Factor by which a sample must be lower than the mean to contradict it. After `MIN_SAMPLES` such samples in a depth
# range, the contradicted means are replaced: they were probably measured while other programs ran unnoticed.
_CONTRADICTION_FACTOR: Final = 2.0
# Age from which the first new sample replaces a saved mean, because drivers, kernels and cooling change.
_MAX_AGE_S: Final = 30 * 86400.0
# Bounds of the cost ratio of a step of n tokens: `MIN_RATIO` and n * `MAX_RATIO_PER_TOKEN`. A saved profile with other
# ratios is invalid.
MIN_RATIO: Final = 0.1
MAX_RATIO_PER_TOKEN: Final = 10.0
# Number of recent single-token steps. The fastest of them is the reference for disturbed steps and contradictions.
_N_RECENT_SINGLE_STEPS: Final = 16
# Limits for trials of larger steps. Trials take at most `_TRIAL_FRACTION` of the decode time, according to the measured
# costs. Each trial costs at least `_MIN_TRIAL_COST` single-token steps, so that at most one of fifty steps is a trial.
# Unused time is saved up to `_MAX_TRIAL_CREDIT` single-token steps.
_TRIAL_FRACTION: Final = 0.01
_MIN_TRIAL_COST: Final = 0.5
_MAX_TRIAL_CREDIT: Final = 20.0


class RunningMean(msgspec.Struct):
    """Exponential moving average that limits the effect of outliers."""

    value: float = 0.0
    count: int = 0
    """Number of samples; 0 for a provisional value, which the first sample replaces."""
    measured_at: float = 0.0
    """Time of the last sample in seconds since 1970; 0.0 if unknown, as in files of earlier versions."""

    def update(self, sample: float, weight: float, max_change: float) -> None:
        """Add a sample. After `MIN_SAMPLES` samples, clamp it to the mean divided or multiplied by `max_change`."""
        if self.count >= MIN_SAMPLES:
            sample = min(max(sample, self.value / max_change), self.value * max_change)
        self.count = min(self.count + 1, _MAX_COUNT)
        self.value += max(weight, 1 / self.count) * (sample - self.value)


class StepCosts:
    """Measured times of decode steps of one model on this machine, by number of tokens and depth range.

    Steps that were disturbed by another program do not change a measured cost. If a size has only disturbed steps, the
    fastest of several such steps is its provisional cost.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.single_steps: list[RunningMean] = [RunningMean() for _ in range(_N_DEPTH_RANGES)]
        """Mean seconds of a single-token step by depth range; not saved, so measured again in each process."""
        self.ratios: list[dict[int, RunningMean]] = [{} for _ in range(_N_DEPTH_RANGES)]
        """Mean time of a step, relative to a single-token step, by depth range and number of tokens."""
        self._clock = clock
        self._steps_since_single = SINGLE_STEP_INTERVAL
        self._steps_since_reference = SINGLE_STEP_INTERVAL
        """Number of multi-token steps since the last undisturbed single-token step."""
        self._actual_single_steps: list[RunningMean] = [RunningMean() for _ in range(_N_DEPTH_RANGES)]
        """Mean seconds of a single-token step by depth range, including disturbed steps."""
        self._recent_single_steps: list[deque[float]] = [
            deque(maxlen=_N_RECENT_SINGLE_STEPS) for _ in range(_N_DEPTH_RANGES)
        ]
        self._disturbed_steps: dict[tuple[int, int], list[float]] = {}
        """Seconds of disturbed steps by depth range and number of tokens, at most `MIN_SAMPLES`."""
        self._contradictions: list[dict[int, tuple[int, float]]] = [{} for _ in range(_N_DEPTH_RANGES)]
        """Steps that contradict a mean, as (number of tokens, ratio), by depth range and value of `_n_single_steps`.

        At most one step is recorded after each single-token step, so that one wrong reference has little effect.
        """
        self._n_steps = self._n_single_steps = 0
        self._sampled_at_step: dict[tuple[int, int], int] = {}
        """Value of `_n_steps` at the last undisturbed step of a size, by depth range and number of tokens."""
        self.trial_credit = 0.0
        """Time that trials of larger steps may take, in single-token steps."""

    def discard_outdated(self) -> None:
        """Make costs provisional if they are old, or if an earlier version saved them, which ignored other programs."""
        now = self._clock()
        for mean in (mean for ratios in self.ratios for mean in ratios.values()):
            if not 0 <= now - mean.measured_at <= _MAX_AGE_S:
                mean.count = 0

    def start_reply(self) -> None:
        """Request a new measurement of a single-token step, because the speed of the machine may have changed."""
        self._steps_since_single = self._steps_since_reference = SINGLE_STEP_INTERVAL

    def record(
        self, n_tokens: int, depth: int, elapsed_s: float, *, is_benchmark: bool = False, is_disturbed: bool = False
    ) -> None:
        """Add the time in seconds of a step of `n_tokens` at position `depth`.

        `is_benchmark` marks a step that was measured while the engine was idle. `is_disturbed` marks a step that
        another program or a pause of the process slowed down.
        """
        if elapsed_s <= 0:
            return
        depth_range = find_depth_range(depth)
        self._n_steps += 1
        if n_tokens == 1:
            self._record_single(depth_range, elapsed_s, is_benchmark=is_benchmark, is_disturbed=is_disturbed)
            self._add_trial_credit(1.0)
            return
        self._steps_since_single += 1
        self._steps_since_reference += 1
        single_step = self.single_steps[depth_range]
        if is_disturbed:
            self._record_disturbed(depth_range, n_tokens, elapsed_s)
        elif single_step.count and self._steps_since_reference <= _MAX_REFERENCE_AGE:
            self._record_ratio(depth_range, n_tokens, elapsed_s, is_benchmark=is_benchmark)
        self._add_trial_credit(self.ratio(n_tokens, depth))

    def _record_single(self, depth_range: int, elapsed_s: float, *, is_benchmark: bool, is_disturbed: bool) -> None:
        is_stale = is_benchmark or self._steps_since_reference > _MAX_REFERENCE_AGE
        weight, max_change = (_STALE_WEIGHT, _STALE_MAX_CHANGE) if is_stale else (_SINGLE_STEP_WEIGHT, _MAX_CHANGE)
        self._actual_single_steps[depth_range].update(elapsed_s, weight, max_change)
        self._recent_single_steps[depth_range].append(elapsed_s)
        self._n_single_steps += 1
        # A disturbed single-token step also counts as the required one. If it did not, drafts would stop for ever on a
        # busy machine.
        self._steps_since_single = 0
        self._steps_since_reference = SINGLE_STEP_INTERVAL if is_disturbed else 0
        if not is_disturbed:
            self.single_steps[depth_range].update(elapsed_s, weight, max_change)

    def _record_ratio(self, depth_range: int, n_tokens: int, elapsed_s: float, *, is_benchmark: bool) -> None:
        key = depth_range, n_tokens
        n_other_steps = self._n_steps - self._sampled_at_step.get(key, -_STALE_AFTER_STEPS)
        self._sampled_at_step[key] = self._n_steps
        is_stale = is_benchmark or n_other_steps >= _STALE_AFTER_STEPS
        ratio = _clamp_ratio(elapsed_s / self.single_steps[depth_range].value, n_tokens)
        mean = self.ratios[depth_range].setdefault(n_tokens, RunningMean())
        is_contradicted = self._is_contradicted(depth_range, mean, elapsed_s)
        mean.update(ratio, _STALE_WEIGHT if is_stale else _MULTI_STEP_WEIGHT, _MAX_CHANGE)
        mean.measured_at = self._clock()
        if is_contradicted:
            self._record_contradiction(depth_range, n_tokens, ratio)
        else:
            samples = self._contradictions[depth_range]
            self._contradictions[depth_range] = {i: sample for i, sample in samples.items() if sample[0] != n_tokens}
        self._disturbed_steps.pop(key, None)

    def _is_contradicted(self, depth_range: int, mean: RunningMean, elapsed_s: float) -> bool:
        """Return whether a step is too fast for `mean`, even relative to the fastest recent single-token step.

        Other programs make steps slower, never faster, so a slow single-token step contradicts nothing.
        """
        recent_steps = self._recent_single_steps[depth_range]
        if not mean.count or len(recent_steps) < MIN_SAMPLES:
            return False
        return elapsed_s * _CONTRADICTION_FACTOR < mean.value * min(recent_steps)

    def _record_contradiction(self, depth_range: int, n_tokens: int, ratio: float) -> None:
        """Add a step that contradicts the cost of its size; after `MIN_SAMPLES`, replace the contradicted costs."""
        contradictions, ratios = self._contradictions[depth_range], self.ratios[depth_range]
        if self._n_single_steps in contradictions:
            return
        contradictions[self._n_single_steps] = n_tokens, ratio
        if len(contradictions) < MIN_SAMPLES:
            # Require a single-token step and allow a trial after it, so that further samples follow soon.
            self._steps_since_single, self.trial_credit = SINGLE_STEP_INTERVAL, _MAX_TRIAL_CREDIT
            return
        now = self._clock()
        samples_by_size: dict[int, list[float]] = {}
        for size, sample in contradictions.values():
            samples_by_size.setdefault(size, []).append(sample)
        contradictions.clear()
        for size, samples in samples_by_size.items():
            cost = statistics.median(samples)
            ratios[size] = RunningMean(cost, len(samples), now)
            # A step of n tokens takes at most as long as the smallest number of steps of `size` that process n tokens.
            for n in [n for n in ratios if ratios[n].value > _CONTRADICTION_FACTOR * cost * math.ceil(n / size)]:
                del ratios[n]

    def _record_disturbed(self, depth_range: int, n_tokens: int, elapsed_s: float) -> None:
        """Compute a provisional cost from the fastest of several disturbed steps, if no other cost was measured."""
        mean = self.ratios[depth_range].get(n_tokens)
        single_steps = self._recent_single_steps[depth_range]
        if (mean is not None and mean.count) or not single_steps:
            return
        steps = self._disturbed_steps.setdefault((depth_range, n_tokens), [])
        steps.append(elapsed_s)
        if len(steps) >= MIN_SAMPLES:
            ratio = _clamp_ratio(min(steps) / min(single_steps), n_tokens)
            self.ratios[depth_range][n_tokens] = RunningMean(ratio)
            steps.clear()

    def single_step_s(self, depth: int) -> float:
        """Return the mean seconds of a single-token step at position `depth`; 0.0 before the first measurement.

        Without a step in the depth range of `depth`, return the time of the nearest range that has one. Disturbed steps
        are included, so that the time of a disturbed reply is compared with other disturbed steps.
        """
        ranges = _RANGES_BY_DISTANCE[find_depth_range(depth)]
        return next((value for i in ranges if (value := self._actual_single_steps[i].value)), 0.0)

    @property
    def needs_single_step(self) -> bool:
        """True if the next step must have a single token, to refresh the reference time."""
        return self._steps_since_single >= SINGLE_STEP_INTERVAL

    def has_cost(self, n_tokens: int, depth: int) -> bool:
        """Return whether steps of `n_tokens` have a measured or provisional cost in the depth range of `depth`."""
        return n_tokens in self.ratios[find_depth_range(depth)]

    def is_measured(self, n_tokens: int, depth: int) -> bool:
        """Return whether steps of `n_tokens` have `MIN_SAMPLES` undisturbed samples in the depth range of `depth`."""
        mean = self.ratios[find_depth_range(depth)].get(n_tokens)
        return mean is not None and mean.count >= MIN_SAMPLES

    def ratio(self, n_tokens: int, depth: int) -> float:
        """Return the cost of a step of `n_tokens` relative to a single-token step; interpolates unmeasured sizes."""
        if n_tokens <= 1:
            return 1.0
        ratios = self._find_nearest_ratios(find_depth_range(depth))
        if not ratios:
            return self._estimate_ratio(n_tokens, depth)
        if n_tokens in ratios:
            return ratios[n_tokens].value
        size_below = max((n for n in ratios if n < n_tokens), default=1)
        size_above = min((n for n in ratios if n > n_tokens), default=None)
        ratio_below = ratios[size_below].value if size_below > 1 else 1.0
        if size_above is None:
            # Assume that each further token costs half of the mean so far, so that larger steps are tried. With the
            # full mean, a machine on which two tokens cost as much as two steps would never try eight tokens.
            slope = max(_PRIOR_SLOPE, (ratio_below - 1) / (size_below - 1) / 2 if size_below > 1 else 0.0)
            return ratio_below + (n_tokens - size_below) * slope
        distance, ratio_above = size_above - size_below, ratios[size_above].value
        return ratio_below + (ratio_above - ratio_below) * (n_tokens - size_below) / distance

    def _estimate_ratio(self, n_tokens: int, depth: int) -> float:  # noqa: ARG002  (a subclass uses it)
        """Return the assumed cost of a step of `n_tokens` before the first measurement."""
        return 1 + (n_tokens - 1) * _PRIOR_SLOPE

    def optimistic_ratio(self, n_tokens: int, depth: int) -> float:
        """Return the lower of the measured and the assumed cost of a step of `n_tokens`."""
        return min(self.ratio(n_tokens, depth), 1 + (n_tokens - 1) * _PRIOR_SLOPE)

    def measured_at(self, n_tokens: int, depth: int) -> float:
        """Return when the cost of steps of `n_tokens` was last measured, in seconds since 1970; 0.0 if it never was."""
        mean = self.ratios[find_depth_range(depth)].get(n_tokens)
        return mean.measured_at if mean is not None else 0.0

    def spend_trial(self, cost: float) -> bool:
        """Reserve the time of `cost` single-token steps for a trial; return False if too little trial time is left.

        Trials take at most 1 % of the decode time, except for those that follow a contradicted cost.
        """
        cost = max(cost, _MIN_TRIAL_COST)
        if cost > self.trial_credit:
            return False
        self.trial_credit -= cost
        return True

    def _add_trial_credit(self, cost: float) -> None:
        self.trial_credit = min(_MAX_TRIAL_CREDIT, self.trial_credit + _TRIAL_FRACTION * cost)

    def _find_nearest_ratios(self, depth_range: int) -> dict[int, RunningMean]:
        """Return the cost ratios, by step size, of the measured depth range that is closest to `depth_range`.

        Returns an empty dictionary before the first measurement.
        """
        return next((self.ratios[i] for i in _RANGES_BY_DISTANCE[depth_range] if self.ratios[i]), {})


class BatchStepCosts(StepCosts):
    """Costs of decode steps for several sequences in one batch, relative to a step with one token of each.

    A step of size n has n - 1 drafted tokens in total, beside one token of each sequence.
    """

    def __init__(self, n_seqs: int, costs: StepCosts) -> None:
        """Create costs that are estimated from `costs`, those of a single sequence, until they are measured."""
        super().__init__()
        self._n_seqs = n_seqs
        self._single_seq_costs = costs

    def discard_contradicted(self) -> None:
        """Discard costs far above those that the measured costs of a single sequence suggest.

        Idle time measures only steps of a single sequence. Without this, a wrong high cost that no budget covers would
        never be corrected, because no such step would be decoded.
        """
        single_costs = self._single_seq_costs
        for depth_range, ratios in enumerate(self.ratios):
            depth = DEPTH_LIMITS[min(depth_range, len(DEPTH_LIMITS) - 1)] + (depth_range == len(DEPTH_LIMITS))
            for size in list(ratios):
                n_total = min(self._n_seqs + size - 1, STEP_SIZES[-1])
                measured_size = next(n for n in STEP_SIZES if n >= n_total)
                is_measured = single_costs.is_measured(measured_size, depth)
                if is_measured and ratios[size].value > _CONTRADICTION_FACTOR * self._estimate_ratio(size, depth):
                    del ratios[size]

    def _estimate_ratio(self, n_tokens: int, depth: int) -> float:
        ratio, n_seqs = self._single_seq_costs.ratio, self._n_seqs
        return max(1.0, ratio(n_seqs + n_tokens - 1, depth) / ratio(n_seqs, depth))


def find_depth_range(depth: int) -> int:
    """Return the index of the depth range that contains `depth`."""
    return bisect.bisect_left(DEPTH_LIMITS, depth)


def _clamp_ratio(ratio: float, n_tokens: int) -> float:
    return min(max(ratio, MIN_RATIO), MAX_RATIO_PER_TOKEN * n_tokens)
