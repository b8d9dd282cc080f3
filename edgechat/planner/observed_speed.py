"""Correction of a predicted speed by the speeds of real replies, if the two disagree."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Final

import msgspec

from edgechat.planner.throughput import PredictedSpeed

# Number of recent replies whose median is used, and minimum number of replies for a correction.
_N_RECENT: Final = 5
_MIN_REPLIES: Final = 3
# Factor between observed and predicted speed above which the observed speed is used, and the factor below which the
# prediction is used again. The gap between the two keeps a speed near the limit from changing with each reply.
_MAX_DISAGREEMENT: Final = 1.5
_MAX_AGREEMENT: Final = 1.25


class ObservedSpeed(msgspec.Struct, frozen=True, kw_only=True):
    """Speeds of a model in its recent replies that no other program disturbed, in tokens per second, oldest first."""

    decode_tps: tuple[float, ...] = ()
    prefill_tps: tuple[float, ...] = ()


class SpeedCorrection(msgspec.Struct, frozen=True, kw_only=True):
    """Speed of a model after the comparison with its replies."""

    speed: PredictedSpeed
    reasons: dict[str, str] = {}
    """Reason for each corrected speed, by name of the field: `decode_tps`, `prefill_tps`."""


def correct_speed(predicted: PredictedSpeed, observed: ObservedSpeed) -> SpeedCorrection:
    """Return `predicted`, with observed speeds in place of predicted speeds that are wrong by a factor above 1.5.

    Prefill is never slower than decoding, so if only one speed was observed, the other one is adapted to it.
    """
    decode_tps = _find_correction(predicted.decode_tps, observed.decode_tps)
    prefill_tps = _find_correction(predicted.prefill_tps, observed.prefill_tps)
    reasons = {}
    if decode_tps is not None:
        reasons["decode_tps"] = _explain("decoding", decode_tps, predicted.decode_tps)
    if prefill_tps is not None:
        reasons["prefill_tps"] = _explain("prefill", prefill_tps, predicted.prefill_tps)
    if not reasons:
        return SpeedCorrection(speed=predicted)
    if decode_tps is None:
        decode_tps = min(predicted.decode_tps, prefill_tps or predicted.decode_tps)
    if prefill_tps is None:
        prefill_tps = max(predicted.prefill_tps, decode_tps)
    return SpeedCorrection(speed=PredictedSpeed(decode_tps=decode_tps, prefill_tps=prefill_tps), reasons=reasons)


def _find_correction(predicted_tps: float, observed_tps: Sequence[float]) -> float | None:
    """Return the median speed of the recent replies; None if it agrees with the prediction, or for too few replies."""
    median_tps, is_corrected = 0.0, False
    for end in range(_MIN_REPLIES, len(observed_tps) + 1):
        median_tps = statistics.median(observed_tps[max(0, end - _N_RECENT) : end])
        factor = max(median_tps / predicted_tps, predicted_tps / median_tps)
        is_corrected = factor > (_MAX_AGREEMENT if is_corrected else _MAX_DISAGREEMENT)
    return median_tps if is_corrected else None


def _explain(work: str, observed_tps: float, predicted_tps: float) -> str:
    return (
        f"{work} at {observed_tps:.1f} tokens/s, the median of recent replies, instead of the predicted "
        f"{predicted_tps:.1f} tokens/s"
    )
