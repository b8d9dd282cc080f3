"""Speculation profile of one model on one machine: acceptance counts and step costs, saved in a file."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Final

import msgspec

from edgechat.errors import InvalidFileError
from edgechat.files import JsonFile
from edgechat.speculation.acceptance import BUCKETS, Acceptance, AcceptanceCounts
from edgechat.speculation.drafter import N_SOURCES
from edgechat.speculation.step_costs import DEPTHS, SIZES, RunningMean, StepCosts

_log = logging.getLogger(__name__)
_VERSION: Final = 1
_MAX_BYTES: Final = 1 << 20
_MAX_COUNT: Final = 1e6


class _ProfileFile(msgspec.Struct, frozen=True):
    version: int
    greedy: list[list[AcceptanceCounts]]
    sampled: list[list[AcceptanceCounts]] = msgspec.field(name="drawn")
    ratios: list[dict[int, RunningMean]]


class SpeculationProfile:
    """Step costs and acceptance rates of a model, separate for greedy and for sampled replies."""

    def __init__(self) -> None:
        self.greedy = Acceptance()
        self.sampled = Acceptance()
        self.costs = StepCosts()


def load_profile(path: Path) -> SpeculationProfile:
    """Load a profile. Returns an empty profile if the file is missing or invalid."""
    profile = SpeculationProfile()
    try:
        content = _file(path).load()
    except InvalidFileError as error:
        _log.warning("Discarding the speculation profile: %s", error)
        return profile
    if content is not None:
        profile.greedy, profile.sampled = Acceptance(content.greedy), Acceptance(content.sampled)
        profile.costs.ratios = content.ratios
    return profile


def save_profile(profile: SpeculationProfile, path: Path) -> None:
    """Save a profile. Failures are only logged."""
    content = _ProfileFile(_VERSION, profile.greedy.counts, profile.sampled.counts, profile.costs.ratios)
    try:
        _file(path).write(content)
    except OSError as error:
        _log.warning("Cannot save the speculation profile: %s", error)


def _file(path: Path) -> JsonFile[_ProfileFile]:
    return JsonFile(path, _ProfileFile, max_bytes=_MAX_BYTES, is_valid=_is_valid)


def _is_valid(content: _ProfileFile) -> bool:
    """Check version, list lengths and value ranges, such as a ratio of at most 10 n for a step of n tokens."""
    acceptances = (content.greedy, content.sampled)
    counts = [c for acceptance in acceptances for source in acceptance for c in source]
    return (
        content.version == _VERSION
        and all(len(a) == N_SOURCES and all(len(source) == len(BUCKETS) for source in a) for a in acceptances)
        and all(_is_between(x, 0, _MAX_COUNT) for c in counts for x in (c.accepted, c.rejected))
        and len(content.ratios) == len(DEPTHS) + 1
        and all(
            n in SIZES and _is_between(mean.value, 0.1, 10.0 * n) and _is_between(mean.count, 0, _MAX_COUNT)
            for ratios in content.ratios
            for n, mean in ratios.items()
        )
    )


def _is_between(number: float, low: float, high: float) -> bool:
    return math.isfinite(number) and low <= number <= high
