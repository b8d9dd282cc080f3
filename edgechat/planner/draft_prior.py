"""Expected gain from the heads of a model (MTP) before they were tried on this machine, to choose between files."""

from __future__ import annotations

import math
from typing import Final

from edgechat.modelfile.profile import ModelProfile
from edgechat.planner.drafter_choice import make_heads_profile
from edgechat.planner.load_plan import LoadPlan
from edgechat.planner.memory import is_all_on_gpu
from edgechat.planner.throughput import BATCH_SIZES, KernelSpeeds, used_fraction, used_tensors

MIN_GAIN: Final = 1.05
"""Smallest expected gain with which heads count as worth choosing a file for."""
# Prior for the fraction of single draft tokens that are accepted. With steps that cost as much as plain ones, it gives
# a speed of 1.55, as reported for Qwen3.6 27B on Apple's M5 Max (17.4 to 27.7 tokens/s) and on a Strix Halo (10.9 to
# 16.5); processors report at most 1.28 (OpenVINO on an i9-12900K), because a step of two tokens costs more there.
_ACCEPTANCE: Final = 0.7
_DRAFT_TOKENS: Final = 1
_OUTPUT_TENSORS: Final = ("output.weight", "token_embd.weight")


def predict_heads_gain(
    profile: ModelProfile, plan: LoadPlan, speeds: KernelSpeeds | None, *, gpu_is_unified: bool = False
) -> float:
    """Return the expected decode speed with the heads in the file of a model over that without them.

    The result is 1.0 if the plan does not load heads of the model itself, if they would not gain at least `MIN_GAIN`,
    if the speed of the processor is unknown, and on a GPU with its own memory, from which gains and losses are
    reported.
    """
    if plan.drafter is None or plan.drafter.kind != "mtp":
        return 1.0
    if is_all_on_gpu(profile, plan.options):
        if not gpu_is_unified:
            return 1.0
        step_ratio = 1.0  # limited by the memory bandwidth
    elif plan.options.uses_gpu or speeds is None:
        return 1.0
    else:
        step_ratio = _predict_step_ratio(profile, speeds)
    gain = (1 + _ACCEPTANCE) / (step_ratio + _compute_draft_share(profile))
    return gain if gain >= MIN_GAIN else 1.0


def _predict_step_ratio(profile: ModelProfile, speeds: KernelSpeeds) -> float:
    """Return the time of a step of two tokens over that of one token; infinity if a tensor type was not measured."""
    plain_s = step_s = 0.0
    n_tokens = 1 + _DRAFT_TOKENS
    for tensor in used_tensors(profile):
        if len(tensor.shape) < 2 or min(tensor.shape[:2]) <= 1:  # noqa: PLR2004  (not a matrix)
            continue
        rates = speeds.product_rates.get(tensor.type, {})
        if not {1, BATCH_SIZES[1]} <= set(rates):
            return math.inf
        n_weights, fraction = math.prod(tensor.shape), used_fraction(profile, tensor)
        one_token_s, batch_s = 1 / rates[1], 1 / rates[BATCH_SIZES[1]]
        plain_s += n_weights * fraction * one_token_s
        if fraction < 1:  # most tokens use other experts, each of which is read for one token
            step_s += n_weights * (1 - (1 - fraction) ** n_tokens) * one_token_s
        else:
            step_s += n_weights * (one_token_s + (batch_s - one_token_s) * _DRAFT_TOKENS / (BATCH_SIZES[1] - 1))
    return step_s / plain_s if plain_s else math.inf


def _compute_draft_share(profile: ModelProfile) -> float:
    """Return the weights that a draft token reads (heads and output matrix), as a fraction of those of a token."""
    heads = make_heads_profile(profile)
    heads_bytes = sum(t.size_bytes * used_fraction(profile, t) for t in heads.tensors)
    output_bytes = max((t.size_bytes for t in profile.tensors if t.name in _OUTPUT_TENSORS), default=0)
    token_bytes = sum(t.size_bytes * used_fraction(profile, t) for t in used_tensors(profile))
    return (heads_bytes + output_bytes) / token_bytes if token_bytes else math.inf
