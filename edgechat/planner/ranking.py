"""Ranking of models and quants by quality, within the limits of memory and minimum speed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import msgspec

from edgechat.errors import PlanError
from edgechat.humanize import size
from edgechat.modelfile.profile import ModelProfile
from edgechat.planner.load_plan import LoadPlan
from edgechat.planner.load_variants import MIN_N_CTX, default_n_ctx, default_n_seqs
from edgechat.planner.machine import Machine
from edgechat.planner.memory import LoadOptions, MemoryEstimate, estimate, formula_buffers
from edgechat.planner.plan import Estimator, plan
from edgechat.planner.quality import Quality, loss
from edgechat.planner.throughput import KernelSpeeds, PredictedSpeed, predict_speed, speed_by_bandwidth

PROMPT_TOKENS: Final = 1000
"""Length of the prompt for which the time to first token is predicted, in tokens."""
# Number of tokens in the context for which the decode speed is predicted: a typical value in the middle of a reply.
_N_PAST: Final = 512
# Difference in points that counts as equal quality; context length and speed then decide.
_EQUAL_QUALITY: Final = 0.25


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A model file that the ranking compares, installed or not."""

    name: str
    quant: str
    profile: ModelProfile
    quality: Quality
    is_installed: bool = True
    is_default: bool = True
    """False if the licence has conditions, so that the model is used only when the user names it."""
    is_size_estimated: bool = False
    """True if the file size is estimated from the number of weights."""
    extra_bytes: int = 0
    """Memory beyond the estimate that earlier loads needed on this machine, in bytes."""


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """Evaluation of a candidate on a machine: plan, predicted speed and quality."""

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
    """Short reason for or against the candidate, for display."""
    is_fast_enough: bool = True
    """True if the model reaches the minimum speed, or if its speed is unknown."""


def evaluate(
    candidate: Candidate, machine: Machine, *, speeds: KernelSpeeds | None = None, n_ctx: int | None = None,
    min_tps: float = 0.0, estimator: Estimator | None = None,
) -> Evaluation:  # fmt: skip
    """Plan a candidate on a machine, and predict its speed and quality.

    `min_tps` is the minimum decode speed in tokens per second. `estimator` returns exact buffer sizes; without it,
    sizes are estimated with formulas and the repacked types of `speeds`.
    """
    profile = candidate.profile
    if estimator is None and speeds is not None:
        estimator = _formulas(profile, speeds.repacked_types)
    try:
        load_plan = plan(profile, machine, n_ctx=n_ctx, estimator=estimator, extra_bytes=candidate.extra_bytes)
    except PlanError:
        return _too_large(candidate, n_ctx)
    options = load_plan.options
    if speeds is not None and not options.n_gpu_layers:
        # Concessions of the plan are ignored, so that a larger memory budget never makes a model too slow.
        speed = predict_speed(profile, speeds, n_past=_N_PAST)
    else:
        gpu_fraction = min(1.0, max(0, options.n_gpu_layers - 1) / max(1, profile.n_layers))
        speed = speed_by_bandwidth(profile, machine.read_bps, machine.gpu_read_bps, gpu_fraction)
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


def choose(evaluations: Sequence[Evaluation], *, defaults_only: bool = False) -> Evaluation | None:
    """Return the evaluation of the best candidate that fits; None if no candidate fits.

    Among candidates that reach the minimum speed, quality decides; if qualities differ by less than a quarter of a
    point, context length and speed decide. If no candidate is fast enough, the fastest is returned. With
    `defaults_only`, candidates without `is_default` are ignored.
    """
    fitting = [e for e in evaluations if e.plan is not None and (e.candidate.is_default or not defaults_only)]
    fast = [e for e in fitting if e.is_fast_enough]
    if not fast:
        return max(fitting, key=lambda e: (_decode_tps(e), e.points), default=None)
    best = max(e.points for e in fast)
    if not math.isfinite(best):  # the quality of all quants is unknown
        return max(fast, key=lambda e: (e.memory.weights, _decode_tps(e)))
    equal = [e for e in fast if e.points >= best - _EQUAL_QUALITY]
    return max(equal, key=lambda e: (e.plan.options.n_ctx if e.plan else 0, _decode_tps(e), e.points))


def _formulas(profile: ModelProfile, repacked_types: frozenset[str]) -> Estimator:
    return lambda options: formula_buffers(profile, options, repacked_types)


def _decode_tps(evaluation: Evaluation) -> float:
    return evaluation.speed.decode_tps if evaluation.speed is not None else 0.0


def _too_large(candidate: Candidate, n_ctx: int | None) -> Evaluation:
    """Return the evaluation of a candidate that does not fit, with the memory of its smallest load variant."""
    profile = candidate.profile
    frugal = LoadOptions(
        n_ctx=n_ctx or min(default_n_ctx(profile), MIN_N_CTX), n_seqs=default_n_seqs(profile), use_mmap=False,
        kv_type="q8_0", n_ubatch=128,
    )  # fmt: skip
    least = estimate(profile, frugal)
    return Evaluation(
        candidate=candidate, plan=None, memory=least, speed=None, points=candidate.quality.points,
        verdict=f"needs at least {size(least.total)}",
    )  # fmt: skip
