"""Expected gain from the heads of a model, and the choice between files by it."""

from __future__ import annotations

import msgspec
import pytest

from edgechat.modelfile.header import Tensor
from edgechat.modelfile.profile import ModelProfile
from edgechat.planner.draft_prior import MIN_GAIN, predict_heads_gain
from edgechat.planner.drafter_choice import DrafterChoice
from edgechat.planner.load_plan import LoadPlan
from edgechat.planner.picks import choose_evaluation
from edgechat.planner.plan import plan
from edgechat.planner.quality import Quality
from edgechat.planner.ranking import Candidate, evaluate
from edgechat.planner.throughput import KernelSpeeds
from tests.unit.planner.profiles import GIB, Q8_0, WITH_AMX, ZEN4, llama, machine, with_heads

MIB = 1 << 20
COMPUTE_BOUND = msgspec.structs.replace(WITH_AMX, product_rates={"Q8_0": {1: 17e9, 4: 5e9, 32: 1e9}})


def model(*, n_experts: int = 0) -> ModelProfile:
    """Return the profile of a model of 16 layers in Q8_0, whose last layer predicts further tokens."""
    profile = with_heads(llama(type_id=Q8_0))
    name = "ffn_up_exps.weight" if n_experts else "ffn_up.weight"
    tensors = tuple(Tensor(f"blk.{i}.{name}", (2048, 32 * 1024), Q8_0, 0, 68 * MIB) for i in range(16))
    profile = profile.with_tensors("heads.gguf", tensors)
    return msgspec.structs.replace(profile, n_experts=n_experts, n_experts_used=n_experts // 16)


def load_plan(profile: ModelProfile, **fields: object) -> LoadPlan:
    return plan(profile, machine(64 * GIB, **fields), drafter=heads_of(profile))


def heads_of(profile: ModelProfile) -> DrafterChoice:
    return DrafterChoice(kind="mtp", name="the MTP heads", profile=profile, reason="test")


def test_heads_pay_where_a_step_of_two_tokens_costs_little() -> None:
    dense = model()
    assert 1.4 < predict_heads_gain(dense, load_plan(dense), ZEN4) < 1.7
    assert predict_heads_gain(dense, load_plan(dense), COMPUTE_BOUND) == 1.0
    experts = model(n_experts=64)
    assert predict_heads_gain(experts, load_plan(experts), ZEN4) == 1.0, "two tokens use other experts"


def test_no_gain_is_expected_without_heads_or_measurement() -> None:
    dense = model()
    assert predict_heads_gain(dense, plan(dense, machine(64 * GIB)), ZEN4) == 1.0
    assert predict_heads_gain(dense, load_plan(dense), None) == 1.0
    other_types = msgspec.structs.replace(ZEN4, product_rates={"Q4_K": {1: 44e9, 4: 23e9}})
    assert predict_heads_gain(dense, load_plan(dense), other_types) == 1.0


@pytest.mark.parametrize("is_unified", [False, True])
def test_heads_count_on_a_gpu_that_shares_the_memory(is_unified: bool) -> None:
    dense = model()
    gpu = {"gpu_name": "GPU", "gpu_is_unified": is_unified, "gpu_free_bytes": 0 if is_unified else 64 * GIB}
    gain = predict_heads_gain(dense, load_plan(dense, **gpu), ZEN4, gpu_is_unified=is_unified)
    assert (gain > MIN_GAIN) == is_unified


@pytest.mark.parametrize(("speeds", "expected"), [(ZEN4, "with heads"), (COMPUTE_BOUND, "without")])
def test_a_file_with_heads_is_preferred_at_equal_quality_if_they_pay(speeds: KernelSpeeds, expected: str) -> None:
    profile = model()
    without = msgspec.structs.replace(
        profile, n_skipped_layers=0, heads=None, tensors=profile.tensors[:15], layers=profile.layers[:15]
    )
    score = Quality(index=20.0, loss=0.0, is_measured=True)
    candidates = [
        Candidate(name="without", quant="Q8_0", profile=without, quality=score),
        Candidate(name="with heads", quant="Q8_0", profile=profile, quality=score, drafter=heads_of(profile)),
    ]
    evaluations = [evaluate(candidate, machine(64 * GIB), speeds=speeds) for candidate in candidates]
    choice = choose_evaluation(evaluations)
    assert choice is not None
    assert choice.candidate.name == expected
