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
from edgechat.speculation.drafter import N_TEXT_SOURCES
from edgechat.speculation.step_costs import (
    DEPTH_LIMITS,
    MAX_RATIO_PER_TOKEN,
    MIN_RATIO,
    STEP_SIZES,
    RunningMean,
    StepCosts,
)

_log = logging.getLogger(__name__)
_FILE_VERSION: Final = 1
_MAX_FILE_BYTES: Final = 1 << 20
_MAX_COUNT: Final = 1e6


class _ProfileFile(msgspec.Struct, frozen=True):
    version: int
    greedy_counts: list[list[AcceptanceCounts]] = msgspec.field(name="greedy")
    sampled_counts: list[list[AcceptanceCounts]] = msgspec.field(name="drawn")
    ratios: list[dict[int, RunningMean]]


class SpeculationProfile:
    """Step costs of a model, and its acceptance rates for greedy replies and for sampled replies."""

    def __init__(self) -> None:
        self.greedy_acceptance = Acceptance()
        self.sampled_acceptance = Acceptance()
        self.costs = StepCosts()


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
    return profile


def save_profile(profile: SpeculationProfile, path: Path) -> None:
    """Save a profile. A failed write is logged and not raised."""
    content = _ProfileFile(
        _FILE_VERSION, profile.greedy_acceptance.counts, profile.sampled_acceptance.counts, profile.costs.ratios
    )
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
        and all(_is_between(x, 0, _MAX_COUNT) for c in counts for x in (c.n_accepted, c.n_rejected))
        and len(content.ratios) == len(DEPTH_LIMITS) + 1
        and all(
            n in STEP_SIZES
            and _is_between(mean.value, MIN_RATIO, MAX_RATIO_PER_TOKEN * n)
            and _is_between(mean.count, 0, _MAX_COUNT)
            and math.isfinite(mean.measured_at)
            for ratios in content.ratios
            for n, mean in ratios.items()
        )
    )


def _is_between(number: float, low: float, high: float) -> bool:
    return math.isfinite(number) and low <= number <= high
