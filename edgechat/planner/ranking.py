"""Ranking of models and quants by quality, within the limits of memory and minimum speed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import msgspec

from edgechat.errors import PlanError
from edgechat.humanize import format_size
from edgechat.modelfile.profile import ModelProfile
from edgechat.planner.load_plan import LoadPlan
from edgechat.planner.load_variants import MIN_N_CTX, default_n_ctx, default_n_seqs
from edgechat.planner.machine import Machine
from edgechat.planner.memory import LoadOptions, MemoryEstimate, estimate, estimate_buffers
from edgechat.planner.plan import Estimator, plan
from edgechat.planner.quality import Quality, loss
from edgechat.planner.throughput import KernelSpeeds, PredictedSpeed, predict_speed, predict_speed_by_bandwidth

PROMPT_TOKENS: Final = 1000
"""Length of the prompt for which the time to first token is predicted, in tokens."""
# Number of tokens in the context at which the decode speed is predicted: typical for the middle of a reply.
_N_PAST: Final = 512
# Quants with at most this number of points less than the best count as equally good; context length and speed then
# decide.
_EQUAL_QUALITY_POINTS: Final = 0.25


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """Model file to rank, either installed or available to download."""

    name: str
    quant: str
    profile: ModelProfile
    quality: Quality
    is_installed: bool = True
    is_default: bool = True
    """True if edgechat can choose the model automatically; False if the licence of the model has conditions."""
    is_size_estimated: bool = False
    """True if the file size is estimated from the number of weights."""
    extra_bytes: int = 0
    """Additional memory that earlier loads needed on this machine, compared with the estimate, in bytes."""


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """Load plan, predicted speed and quality of a candidate on a machine."""

    candidate: Candidate
    plan: LoadPlan | None
    """Load plan; None if the model does not fit."""
    memory: MemoryEstimate
    """Memory of the plan, or of the smallest load variant if the model does not fit."""
    speed: PredictedSpeed | None
    """Predicted prefill and decode speed; None if unknown."""
    points: float
    """Quality score minus the loss from the concessions of the plan, in points."""
    verdict: str
    """Short text for the user that says why the candidate is suitable or not."""
    is_fast_enough: bool = True
    """True if the model reaches the minimum speed, or if its speed is unknown."""


def evaluate(
    candidate: Candidate, machine: Machine, *, speeds: KernelSpeeds | None = None, n_ctx: int | None = None,
    min_tps: float = 0.0, estimator: Estimator | None = None,
) -> Evaluation:  # fmt: skip
    """Plan the loading of a candidate on a machine, and predict its speed and quality.

    `min_tps` is the minimum decode speed in tokens per second. `estimator` returns exact buffer sizes; without an
    estimator, buffer sizes are computed from formulas and the repacked types of `speeds`.
    """
    profile = candidate.profile
    if estimator is None and speeds is not None:
        estimator = _make_formula_estimator(profile, speeds.repacked_types)
    try:
        load_plan = plan(profile, machine, n_ctx=n_ctx, estimator=estimator, extra_bytes=candidate.extra_bytes)
    except PlanError:
        return _make_too_large_evaluation(candidate, n_ctx)
    options = load_plan.options
    if speeds is not None and not options.n_gpu_layers:
        # Concessions can raise the speed, and a larger memory budget needs fewer of them. The prediction ignores them,
        # so that a larger budget never makes a model count as too slow.
        speed = predict_speed(profile, speeds, n_past=_N_PAST)
    else:
        gpu_fraction = min(1.0, max(0, options.n_gpu_layers - 1) / max(1, profile.n_layers))
        speed = predict_speed_by_bandwidth(
            profile, machine.read_bytes_per_s, machine.gpu_read_bytes_per_s, gpu_fraction
        )
    points = candidate.quality.points
    if options.kv_type == "q8_0":
        points -= loss("F32", profile.n_params, kv_q8=True)
    is_slow = speed is not None and speed.decode_tps < min_tps
    verdict = "; ".join(load_plan.concessions) or "fits"
    if speed is not None and is_slow:
        verdict = f"too slow: {speed.decode_tps:.1f} tokens/s, minimum {min_tps:g} tokens/s"
    return Evaluation(
        candidate=candidate, plan=load_plan, memory=load_plan.estimate, speed=speed, points=points, verdict=verdict,
        is_fast_enough=not is_slow,
    )  # fmt: skip


def choose_evaluation(evaluations: Sequence[Evaluation], *, defaults_only: bool = False) -> Evaluation | None:
    """Return the evaluation of the best candidate that fits in memory; None if no candidate fits.

    Among candidates that reach the minimum speed, quality decides; if qualities differ by at most a quarter of a point,
    context length and speed decide. If no candidate is fast enough, the fastest is returned. With `defaults_only`,
    candidates whose `is_default` is False are ignored.
    """
    fitting_evaluations = [
        e for e in evaluations if e.plan is not None and (e.candidate.is_default or not defaults_only)
    ]
    fast_evaluations = [e for e in fitting_evaluations if e.is_fast_enough]
    if not fast_evaluations:
        return max(fitting_evaluations, key=lambda e: (_decode_tps(e), e.points), default=None)
    best_points = max(e.points for e in fast_evaluations)
    if not math.isfinite(best_points):  # the quality of every quant is unknown
        return max(fast_evaluations, key=lambda e: (e.memory.weights, _decode_tps(e)))
    best_evaluations = [e for e in fast_evaluations if e.points >= best_points - _EQUAL_QUALITY_POINTS]
    return max(best_evaluations, key=lambda e: (e.plan.options.n_ctx if e.plan else 0, _decode_tps(e), e.points))


def _make_formula_estimator(profile: ModelProfile, repacked_types: frozenset[str]) -> Estimator:
    return lambda options: estimate_buffers(profile, options, repacked_types)


def _decode_tps(evaluation: Evaluation) -> float:
    return evaluation.speed.decode_tps if evaluation.speed is not None else 0.0


def _make_too_large_evaluation(candidate: Candidate, n_ctx: int | None) -> Evaluation:
    """Return the evaluation of a candidate that does not fit, with the memory of its smallest load variant."""
    profile = candidate.profile
    smallest_options = LoadOptions(
        n_ctx=n_ctx or min(default_n_ctx(profile), MIN_N_CTX), n_seqs=default_n_seqs(profile), use_mmap=False,
        kv_type="q8_0", n_ubatch=128,
    )  # fmt: skip
    memory = estimate(profile, smallest_options)
    return Evaluation(
        candidate=candidate, plan=None, memory=memory, speed=None, points=candidate.quality.points,
        verdict=f"needs at least {format_size(memory.total)}",
    )  # fmt: skip
