"""Evaluation of models and quants on a machine: load plan, speed, time of a typical turn, and quality."""

from __future__ import annotations

import math
from typing import Final

import msgspec

from edgechat.errors import PlanError
from edgechat.humanize import format_size
from edgechat.modelfile.profile import ModelProfile
from edgechat.planner.draft_prior import predict_heads_gain
from edgechat.planner.drafter_choice import NO_DRAFTER, DrafterChoice
from edgechat.planner.gpu_use import predict_measured_speed
from edgechat.planner.load_plan import LoadPlan
from edgechat.planner.load_variants import MIN_N_CTX, default_n_ctx, default_n_seqs, list_offered_kv_types
from edgechat.planner.machine import Machine
from edgechat.planner.memory import LoadOptions, MemoryEstimate, estimate, estimate_buffers, is_all_on_gpu
from edgechat.planner.observed_speed import ObservedSpeed, correct_speed
from edgechat.planner.plan import Estimator, plan
from edgechat.planner.quality import Quality, kv_loss
from edgechat.planner.quant_advice import find_faster_quants, format_quant_advice
from edgechat.planner.throughput import (
    SLOWEST_GPU_RATES,
    KernelSpeeds,
    PredictedSpeed,
    predict_speed,
    predict_speed_by_bandwidth,
)
from edgechat.planner.turn import ReasoningSupport, TypicalTurn, predict_default_turn, predict_shortest_turn

PROMPT_TOKENS: Final = 1000
"""Length of the prompt for which the time to first token is predicted, in tokens."""
# Number of tokens in the context at which the decode speed is predicted: typical for the middle of a reply.
_N_PAST: Final = 512


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """Model file to rank, either installed or available to download."""

    name: str
    quant: str
    profile: ModelProfile
    quality: Quality
    thinking: ReasoningSupport = "no"
    is_installed: bool = True
    is_default: bool = True
    """True if edgechat can choose the model automatically; False if the licence of the model has conditions."""
    file_bytes: int = 0
    """Size of the file, or of all parts of a split model, in bytes; 0 if only the size of the weights is known."""
    is_size_estimated: bool = False
    """True if the file size is estimated from the number of weights."""
    extra_bytes: int = 0
    """Additional memory that earlier loads needed on this machine, compared with the estimate, in bytes."""
    drafter: DrafterChoice = NO_DRAFTER
    """Model drafter that a load would add if there is room, or the reason why there is none."""
    observed_speed: ObservedSpeed = ObservedSpeed()
    """Speeds of recent replies on this machine."""
    measured_divergence: float | None = None
    """KL divergence from the file that the quant was made of, in nats per token; None if it was not measured."""

    @property
    def size_bytes(self) -> int:
        """Size of the file in bytes, or of the weights if the size of the file is unknown."""
        return self.file_bytes or self.profile.tensor_bytes


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """Load plan, predicted speed and quality of a candidate on a machine."""

    candidate: Candidate
    plan: LoadPlan | None
    """Load plan; None if the model does not fit."""
    memory: MemoryEstimate
    """Memory of the plan, or of the smallest load variant if the model does not fit."""
    speed: PredictedSpeed | None
    """Predicted prefill and decode speed, corrected by recent replies; None if unknown."""
    speed_reasons: dict[str, str] = {}
    """Reason for each speed that recent replies corrected: `decode_tps`, `prefill_tps`."""
    quant_advice: str = ""
    """Sentence about another quant of an installed file that decodes much faster; "" if there is none."""
    turn: TypicalTurn | None = None
    """Time of a typical turn with the user's settings; None if the speed is unknown."""
    ranking_s: float | None = None
    """Time of a typical turn, in seconds, by which models are ranked; None if the speed is unknown."""
    points: float
    """Quality score minus the loss from the concessions of the plan, in points."""
    verdict: str
    """Short text for the user that says why the candidate is suitable or not."""
    draft_gain: float = 1.0
    """Expected decode speed with the heads in the file over that without; 1.0 without heads, or if they do not pay."""
    is_fast_enough: bool = True
    """True if the model reaches the minimum speed, or if its speed is unknown."""
    uses_reserve: bool = False
    """True if the model fits only in memory that plans leave to other programs if possible."""
    is_download_too_large: bool = False
    """True if the file is not installed and takes too much of the free disk space to be recommended."""

    @property
    def model_name(self) -> str:
        """Name of the model without its quant."""
        return self.candidate.name.partition(":")[0]


def evaluate(
    candidate: Candidate, machine: Machine, *, speeds: KernelSpeeds | None = None, n_ctx: int | None = None,
    min_tps: float = 0.0, think: bool | None = None, estimator: Estimator | None = None,
) -> Evaluation:  # fmt: skip
    """Plan the loading of a candidate on a machine, and predict its speed and quality.

    The plan is that for a load, which uses `machine.reserved_bytes` only for a model that does not fit otherwise.
    `min_tps` is the minimum decode speed in tokens per second, and `think` the user's setting for reasoning.
    `estimator` returns exact buffer sizes; without an estimator, buffer sizes are computed from formulas and the
    repacked types of `speeds`.
    """
    profile = candidate.profile
    if estimator is None and speeds is not None:
        estimator = _make_formula_estimator(profile, speeds.repacked_types)
    try:
        load_plan = plan(
            profile, machine, n_ctx=n_ctx, estimator=estimator, extra_bytes=candidate.extra_bytes,
            drafter=candidate.drafter,
        )  # fmt: skip
    except PlanError:
        return _make_too_large_evaluation(candidate, n_ctx)
    options = load_plan.options
    speed, speed_reasons = _predict_speed(profile, machine, speeds, options), {}
    if speed is not None and not options.uses_gpu:
        correction = correct_speed(speed, candidate.observed_speed)
        speed, speed_reasons = correction.speed, correction.reasons
    points = candidate.quality.points - kv_loss(options.kv_type)
    is_slow = speed is not None and speed.decode_tps < min_tps
    uses_reserve = load_plan.estimate.total > machine.leave_reserve().available_bytes
    reserve_text = f"fits only without the {format_size(machine.reserved_bytes)} reserved for other programs"
    verdict = "; ".join([reserve_text] * uses_reserve + [*load_plan.concessions]) or "fits"
    if speed is not None and is_slow:
        verdict = f"too slow: {math.floor(speed.decode_tps * 10) / 10:.1f} tokens/s, minimum {min_tps:g} tokens/s"
    max_bytes = machine.max_download_bytes
    is_download_too_large = not candidate.is_installed and max_bytes is not None and profile.tensor_bytes > max_bytes
    if is_download_too_large:
        verdict = f"the download is too large for the disk: {format_size(profile.tensor_bytes)}"
    thinking = candidate.thinking
    quant_advice = ""
    if speeds is not None and candidate.is_installed and not profile.is_embedding:
        quant_advice = format_quant_advice(candidate.name, profile, find_faster_quants(profile, speeds, options))
    return Evaluation(
        candidate=candidate, plan=load_plan, memory=load_plan.estimate, speed=speed, points=points, verdict=verdict,
        speed_reasons=speed_reasons, quant_advice=quant_advice,
        turn=predict_default_turn(speed, thinking, think=think) if speed else None,
        ranking_s=predict_shortest_turn(speed, thinking, think=think).total_s if speed else None,
        draft_gain=predict_heads_gain(profile, load_plan, speeds, gpu_is_unified=machine.gpu_is_unified),
        is_fast_enough=not is_slow, uses_reserve=uses_reserve, is_download_too_large=is_download_too_large,
    )  # fmt: skip


def _predict_speed(
    profile: ModelProfile, machine: Machine, speeds: KernelSpeeds | None, options: LoadOptions
) -> PredictedSpeed | None:
    """Predict the speed of a model; None if it is unknown."""
    measured = predict_measured_speed(profile, options, machine.gpu_speeds) if options.uses_gpu else None
    if measured is not None:
        return measured
    if is_all_on_gpu(profile, options):
        return predict_speed_by_bandwidth(profile, machine.rates, machine.gpu_rates, options)
    # The layers in CPU memory decide the speed, so the slowest GPU is a good enough guess for the others.
    gpu_rates = machine.gpu_rates if machine.gpu_rates.read_bytes_per_s else SLOWEST_GPU_RATES
    if speeds is None:
        return predict_speed_by_bandwidth(profile, machine.rates, gpu_rates, options)
    # Concessions can raise the speed, and a larger memory budget needs fewer of them. The prediction ignores them
    # except for the layers on a GPU, so that a larger budget never makes a model count as too slow.
    return predict_speed(profile, speeds, n_past=_N_PAST, options=options, gpu_rates=gpu_rates)


def _make_formula_estimator(profile: ModelProfile, repacked_types: frozenset[str]) -> Estimator:
    return lambda options: estimate_buffers(profile, options, repacked_types)


def _make_too_large_evaluation(candidate: Candidate, n_ctx: int | None) -> Evaluation:
    """Return the evaluation of a candidate that does not fit, with the memory of its smallest load variant."""
    profile = candidate.profile
    smallest_options = LoadOptions(
        n_ctx=n_ctx or min(default_n_ctx(profile), MIN_N_CTX), n_seqs=default_n_seqs(profile),
        kv_type=list_offered_kv_types(profile)[-1], n_ubatch=128,
    )  # fmt: skip
    memory = estimate(profile, smallest_options)
    return Evaluation(
        candidate=candidate, plan=None, memory=memory, speed=None, points=candidate.quality.points,
        verdict=f"needs at least {format_size(memory.total)}",
    )  # fmt: skip
