"""Speculation profile of one model on one machine: acceptance counts and step costs, saved in a file."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Final

import msgspec

from edgechat.errors import InvalidFileError
from edgechat.files import JsonFile
from edgechat.speculation.acceptance import BUCKET_STARTS, Acceptance, AcceptanceCounts
from edgechat.speculation.calibration import N_POSITIONS, PROBABILITY_BOUNDS, CalibrationCounts
from edgechat.speculation.drafter import N_TEXT_SOURCES
from edgechat.speculation.drafter_costs import MAX_TIMES, DraftTimes
from edgechat.speculation.model_source import DrafterProfile
from edgechat.speculation.step_costs import (
    DEPTH_LIMITS,
    MAX_RATIO_PER_TOKEN,
    MIN_RATIO,
    MIN_SAMPLES,
    STEP_SIZES,
    BatchStepCosts,
    RunningMean,
    StepCosts,
)
from edgechat.speculation.trial_schedule import MAX_INTERVAL, MIN_INTERVAL

_log = logging.getLogger(__name__)
_FILE_VERSION: Final = 1
_MAX_FILE_BYTES: Final = 1 << 20
_MAX_COUNT: Final = 1e6
_MIN_STEP_S: Final = 1e-9
_MAX_STEP_S: Final = 3600.0
# Maximum number of model drafters whose profiles are saved, and of sequences in a batch with drafts.
_MAX_DRAFTERS: Final = 8
_MAX_BATCH_SEQS: Final = 64


class _ProfileFile(msgspec.Struct, frozen=True):
    version: int
    greedy_counts: list[list[AcceptanceCounts]] = msgspec.field(name="greedy")
    sampled_counts: list[list[AcceptanceCounts]] = msgspec.field(name="drawn")
    ratios: list[dict[int, RunningMean]]
    batch_ratios: dict[int, list[dict[int, RunningMean]]] = {}
    drafters: dict[str, DrafterProfile] = {}


class SpeculationProfile:
    """Step costs of a model, its acceptance rates for greedy and for sampled replies, and its model drafters."""

    def __init__(self) -> None:
        self.greedy_acceptance = Acceptance()
        self.sampled_acceptance = Acceptance()
        self.costs = StepCosts()
        self.batch_costs: dict[int, BatchStepCosts] = {}
        """Costs of steps for several sequences, by their number."""
        self.drafters: dict[str, DrafterProfile] = {}
        """Profiles of model drafters by name, the last used one last."""

    def find_batch_costs(self, n_seqs: int) -> StepCosts:
        """Return the costs of steps for `n_seqs` sequences."""
        if n_seqs == 1:
            return self.costs
        return self.batch_costs.setdefault(n_seqs, BatchStepCosts(n_seqs, self.costs))

    def find_drafter(self, name: str) -> DrafterProfile:
        """Return the profile of the model drafter `name`; only those of a few drafters are kept."""
        self.drafters[name] = self.drafters.pop(name, DrafterProfile())
        while len(self.drafters) > _MAX_DRAFTERS:
            del self.drafters[next(iter(self.drafters))]
        return self.drafters[name]


class LearnedRates:
    """Acceptance rates that replies change: those of the profile for replies that may be saved, others for the rest.

    The rates of unsaved replies start as a copy of the profile, and all unsaved replies share them until the model is
    unloaded. A copy for each reply would learn nothing: drafts that never succeed would cost every reply the same time.
    """

    def __init__(self, profile: SpeculationProfile, drafter: DrafterProfile | None) -> None:
        """`drafter` is the profile of the model drafter; None without one."""
        self._profile = profile
        self._drafter = drafter or DrafterProfile()
        self._unsaved: dict[bool, tuple[Acceptance, CalibrationCounts]] = {}
        """Rates of unsaved replies, by whether they are sampled."""

    def find(self, *, is_sampled: bool, is_saved: bool) -> tuple[Acceptance, CalibrationCounts]:
        """Return the rates of drafts from texts and of those from the model, which a reply reads and changes."""
        profile, drafter = self._profile, self._drafter
        acceptance = profile.sampled_acceptance if is_sampled else profile.greedy_acceptance
        counts = drafter.sampled if is_sampled else drafter.greedy
        if is_saved:
            return acceptance, counts
        if is_sampled not in self._unsaved:
            self._unsaved[is_sampled] = acceptance.copy(), counts.copy()
        return self._unsaved[is_sampled]


def load_profile(path: Path) -> SpeculationProfile:
    """Load a profile. Returns an empty profile if the file is missing or invalid."""
    profile = SpeculationProfile()
    try:
        content = _open_file(path).load()
    except InvalidFileError as error:
        _log.warning("Discarding the speculation profile: %s", error)
        return profile
    if content is not None:
        profile.greedy_acceptance = Acceptance(content.greedy_counts)
        profile.sampled_acceptance = Acceptance(content.sampled_counts)
        profile.costs.ratios = content.ratios
        profile.costs.discard_outdated()
        for n_seqs, ratios in content.batch_ratios.items():
            costs = profile.find_batch_costs(n_seqs)
            costs.ratios = ratios
            costs.discard_outdated()
        profile.drafters = dict(content.drafters)
        for drafter in profile.drafters.values():
            drafter.costs.discard_outdated()
    return profile


def save_profile(profile: SpeculationProfile, path: Path) -> None:
    """Save a profile. A failed write is logged and not raised."""
    content = _ProfileFile(
        _FILE_VERSION, profile.greedy_acceptance.counts, profile.sampled_acceptance.counts, profile.costs.ratios,
        {n_seqs: costs.ratios for n_seqs, costs in profile.batch_costs.items()}, profile.drafters,
    )  # fmt: skip
    try:
        _open_file(path).write(content)
    except OSError as error:
        _log.warning("Cannot save the speculation profile: %s", error)


def _open_file(path: Path) -> JsonFile[_ProfileFile]:
    return JsonFile(path, _ProfileFile, max_bytes=_MAX_FILE_BYTES, is_valid=_is_valid)


def _is_valid(content: _ProfileFile) -> bool:
    """Return whether the version, the list lengths and all values are valid.

    For example, the cost ratio of a step of n tokens must be at most 10 n.
    """
    tables = (content.greedy_counts, content.sampled_counts)
    counts = [c for table in tables for source in table for c in source]
    return (
        content.version == _FILE_VERSION
        and all(len(t) == N_TEXT_SOURCES and all(len(source) == len(BUCKET_STARTS) for source in t) for t in tables)
        and _are_valid_counts(counts)
        and all(_are_valid_ratios(ratios) for ratios in (content.ratios, *content.batch_ratios.values()))
        and all(1 < n_seqs <= _MAX_BATCH_SEQS for n_seqs in content.batch_ratios)
        and len(content.drafters) <= _MAX_DRAFTERS
        and all(_is_valid_drafter(drafter) for drafter in content.drafters.values())
    )


def _are_valid_counts(counts: list[AcceptanceCounts]) -> bool:
    return all(_is_between(x, 0, _MAX_COUNT) for c in counts for x in (c.n_accepted, c.n_rejected))


def _are_valid_ratios(depth_ranges: list[dict[int, RunningMean]]) -> bool:
    return len(depth_ranges) == len(DEPTH_LIMITS) + 1 and all(
        n in STEP_SIZES and _is_valid_mean(mean, MIN_RATIO, MAX_RATIO_PER_TOKEN * n)
        for ratios in depth_ranges
        for n, mean in ratios.items()
    )


def _is_valid_drafter(drafter: DrafterProfile) -> bool:
    schedule, costs = drafter.schedule, drafter.costs
    return (
        all(
            len(c.buckets) == len(PROBABILITY_BOUNDS)
            and len(c.positions) == N_POSITIONS
            and _are_valid_counts([*c.buckets, *c.positions])
            for c in (drafter.greedy, drafter.sampled)
        )
        and all(1 <= n <= _MAX_BATCH_SEQS for n in costs.step_s)
        and all(_are_valid_times(times) for times in (costs.token_s, *costs.step_s.values()))
        and MIN_INTERVAL <= schedule.interval <= MAX_INTERVAL
        and all(0 <= n <= _MAX_COUNT for n in (schedule.n_waited, schedule.n_trial_drafts, schedule.n_paid))
    )


def _are_valid_times(times: DraftTimes) -> bool:
    return (
        len(times.undisturbed) <= MAX_TIMES
        and len(times.disturbed) <= MIN_SAMPLES
        and all(_is_between(s, _MIN_STEP_S, _MAX_STEP_S) for s in (*times.undisturbed, *times.disturbed))
    )


def _is_valid_mean(mean: RunningMean, low: float, high: float) -> bool:
    return (
        _is_between(mean.value, low, high)
        and _is_between(mean.count, 0, _MAX_COUNT)
        and math.isfinite(mean.measured_at)
    )


def _is_between(number: float, low: float, high: float) -> bool:
    return math.isfinite(number) and low <= number <= high
