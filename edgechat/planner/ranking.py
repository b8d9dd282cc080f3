"""Ranking of models and quants: the best quality that memory and the minimum speed allow."""

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
"""Length of the prompt whose time to first token is shown."""
# Number of tokens in the context at which the decode speed is predicted: typical in the middle of a reply.
_N_PAST: Final = 512
# Unnoticeable difference in points: among such models, context length and speed decide.
_EQUAL_QUALITY: Final = 0.25


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A model file that could be chosen."""

    name: str
    quant: str
    profile: ModelProfile
    quality: Quality
    is_installed: bool = True
    is_default: bool = True
    """False if its licence has conditions, so that it is only used when the user names it."""
    is_size_estimated: bool = False
    """True if the file size is computed from the number of weights."""
    extra_bytes: int = 0
    """Observed additional memory of earlier loads on this machine."""


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate on a machine: its plan, speed and quality."""

    candidate: Candidate
    plan: LoadPlan | None
    """None if it does not fit."""
    memory: MemoryEstimate
    """Memory of the plan, or of the most frugal options if it does not fit."""
    speed: PredictedSpeed | None
    """None if unknown."""
    points: float
    """Quality score, reduced by the concessions of the plan."""
    verdict: str
    """One short reason for or against the candidate."""
    is_fast_enough: bool = True
    """True also if the speed is unknown."""


def evaluate(
    candidate: Candidate, machine: Machine, *, speeds: KernelSpeeds | None = None, n_ctx: int | None = None,
    min_tps: float = 0.0, estimator: Estimator | None = None,
) -> Evaluation:  # fmt: skip
    """Plan a candidate on a machine, and predict its speed and quality.

    `min_tps` is the minimum decode speed in tokens per second. `estimator` returns exact buffer sizes; without one,
    sizes come from formulas, with the repacked types of `speeds` if given.
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
        # Without the plan's concessions, so that a larger memory budget never makes a model too slow.
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
        verdict = f"too slow: {speed.decode_tps:.1f} tokens/s, the minimum is {min_tps:g}"
    return Evaluation(
        candidate=candidate, plan=load_plan, memory=load_plan.estimate, speed=speed, points=points, verdict=verdict,
        is_fast_enough=not is_slow,
    )  # fmt: skip


def choose(evaluations: Sequence[Evaluation], *, unasked: bool = False) -> Evaluation | None:
    """Return the best evaluation that fits, or None.

    Among those that reach the minimum speed, quality decides; within a quarter of a point context length and speed
    decide. If none is fast enough, the fastest wins: speed goes before quality. With `unasked`, only models that may
    be used without the user naming them are considered.
    """
    fitting = [e for e in evaluations if e.plan is not None and (e.candidate.is_default or not unasked)]
    fast = [e for e in fitting if e.is_fast_enough]
    if not fast:
        return max(fitting, key=lambda e: (_decode_tps(e), e.points), default=None)
    best = max(e.points for e in fast)
    if not math.isfinite(best):  # only quants of unknown quality
        return max(fast, key=lambda e: (e.memory.weights, _decode_tps(e)))
    equal = [e for e in fast if e.points >= best - _EQUAL_QUALITY]
    return max(equal, key=lambda e: (e.plan.options.n_ctx if e.plan else 0, _decode_tps(e), e.points))


def _formulas(profile: ModelProfile, repacked_types: frozenset[str]) -> Estimator:
    return lambda options: formula_buffers(profile, options, repacked_types)


def _decode_tps(evaluation: Evaluation) -> float:
    return evaluation.speed.decode_tps if evaluation.speed is not None else 0.0


def _too_large(candidate: Candidate, n_ctx: int | None) -> Evaluation:
    """Return the evaluation of a candidate that does not fit, with the memory of its most frugal options."""
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
