"""What was learned of drafts with one model on one machine, kept from one start to the next."""

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


class _Kept(msgspec.Struct, frozen=True):
    version: int
    greedy: list[list[AcceptanceCounts]]
    drawn: list[list[AcceptanceCounts]]
    ratios: list[dict[int, RunningMean]]


class SpeculationProfile:
    """Acceptance apart for greedy and for drawn answers, which are harder to guess, and the costs of steps."""

    def __init__(self) -> None:
        self.greedy = Acceptance()
        self.sampled = Acceptance()
        self.costs = StepCosts()


def load_profile(path: Path) -> SpeculationProfile:
    """The profile in a file; a fresh one if it cannot be used."""
    profile = SpeculationProfile()
    try:
        kept = _file(path).load()
    except InvalidFileError as error:
        _log.warning("discarding the speculation profile: %s", error)
        return profile
    if kept is not None:
        profile.greedy, profile.sampled = Acceptance(kept.greedy), Acceptance(kept.drawn)
        profile.costs.ratios = kept.ratios
    return profile


def save_profile(profile: SpeculationProfile, path: Path) -> None:
    """Keep it, if that can be done."""
    kept = _Kept(_VERSION, profile.greedy.counts, profile.sampled.counts, profile.costs.ratios)
    try:
        _file(path).write(kept)
    except OSError as error:
        _log.warning("cannot save the speculation profile: %s", error)


def _file(path: Path) -> JsonFile[_Kept]:
    return JsonFile(path, _Kept, max_bytes=_MAX_BYTES, is_valid=_is_sound)


def _is_sound(kept: _Kept) -> bool:
    """True if no number in it can do harm: counts are counts, and a step of n tokens costs no more than n steps do."""
    counts = [c for side in (kept.greedy, kept.drawn) for source in side for c in source]
    return (
        kept.version == _VERSION
        and all(len(s) == N_SOURCES and all(len(b) == len(BUCKETS) for b in s) for s in (kept.greedy, kept.drawn))
        and all(_is_between(x, 0, _MAX_COUNT) for c in counts for x in (c.right, c.wrong))
        and len(kept.ratios) == len(DEPTHS) + 1
        and all(
            n in SIZES and _is_between(mean.value, 0.1, 10.0 * n) and _is_between(mean.count, 0, _MAX_COUNT)
            for ratios in kept.ratios
            for n, mean in ratios.items()
        )
    )


def _is_between(number: float, low: float, high: float) -> bool:
    return math.isfinite(number) and low <= number <= high
