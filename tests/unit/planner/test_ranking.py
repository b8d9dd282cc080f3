"""Evaluation of candidates, and the automatic choice."""

from __future__ import annotations

import math

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from edgechat import humanize
from edgechat.modelfile.header import Tensor
from edgechat.modelfile.profile import ModelProfile
from edgechat.planner.picks import choose_evaluation, choose_picks
from edgechat.planner.quality import quality
from edgechat.planner.ranking import Candidate, evaluate
from edgechat.planner.report import format_row_lines, format_summary, make_plan_row
from tests.unit.planner.profiles import GIB, Q8_0, WITH_AMX, WITHOUT_AMX, candidates, llama, machine, two_quants


def make_model(layer_bytes: int) -> ModelProfile:
    """Return the profile of a model of 16 layers, each with `layer_bytes` of weights in Q8_0."""
    shape = (2048, layer_bytes * 32 // 34 // 2048)
    return llama().with_tensors("m.gguf", tuple(Tensor(f"blk.{i}.w", shape, Q8_0, 0, layer_bytes) for i in range(16)))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 80 * GIB), st.integers(0, 40 * GIB))
def test_larger_budget_never_picks_worse_quality(budget: int, more: int) -> None:
    less, enough = (choose_evaluation([evaluate(c, machine(b)) for c in candidates()]) for b in (budget, budget + more))
    if less is not None:
        assert enough is not None
        # Within a quarter of a point, context length and speed decide.
        assert enough.points >= less.points - 0.25


def test_model_that_does_not_fit_names_the_memory_it_needs() -> None:
    [big] = [evaluate(c, machine(GIB)) for c in candidates() if c.name == "30-F16"]
    assert big.plan is None
    assert big.verdict == f"needs at least {humanize.format_size(big.memory.total)}"
    assert choose_evaluation([big]) is None
    least = big.memory.total
    assert evaluate(big.candidate, machine(least)).plan is not None
    assert evaluate(big.candidate, machine(least - 1)).plan is None


def test_memory_does_not_depend_on_the_backend_much() -> None:
    candidate = two_quants()[0]
    unknown, known = evaluate(candidate, machine(64 * GIB)), evaluate(candidate, machine(64 * GIB), speeds=WITHOUT_AMX)
    assert unknown.memory.repacked_weights > known.memory.repacked_weights == 0
    assert unknown.memory.total == known.memory.total
    assert make_plan_row(unknown).is_memory_upper_bound is False


def test_quality_that_is_estimated_below_zero_is_left_out() -> None:
    row = make_plan_row(evaluate(two_quants()[0], machine(64 * GIB)))
    for points, is_measured, is_shown in ((-3.0, False, False), (3.0, False, True), (-3.0, True, True)):
        changed = msgspec.structs.replace(row, quality=points, quality_is_measured=is_measured)
        assert ("quality" in "\n".join(format_row_lines(changed, 64 * GIB))) == is_shown


def test_size_of_a_model_is_that_of_its_file() -> None:
    candidate = msgspec.structs.replace(two_quants()[0], file_bytes=98_000_000)
    assert format_summary(evaluate(candidate, machine(64 * GIB))).startswith("98 MB file")
    assert make_plan_row(evaluate(candidate, machine(64 * GIB))).file_bytes == 98_000_000


def test_model_with_licence_conditions_is_never_chosen_unasked() -> None:
    one, other = (evaluate(c, machine(64 * GIB)) for c in candidates()[:2])
    restricted = msgspec.structs.replace(other, candidate=msgspec.structs.replace(other.candidate, is_default=False))
    assert choose_evaluation([one, restricted], defaults_only=True) is one
    assert choose_evaluation([one, restricted]) is restricted


def test_measured_kernels_decide_which_quant_is_fast() -> None:
    for speeds, faster in ((WITH_AMX, "Q8_0"), (WITHOUT_AMX, "Q4_K_M")):
        evaluations = [evaluate(c, machine(64 * GIB), speeds=speeds) for c in two_quants()]
        best = max(evaluations, key=lambda e: e.speed.decode_tps if e.speed else 0)
        assert best.candidate.name == faster


def test_minimum_speed_excludes_the_slow_quant_of_this_machine() -> None:
    # 20 tokens/s is more than Q8_0 reaches without AMX.
    chosen = [
        choose_evaluation([evaluate(c, machine(64 * GIB), speeds=speeds, min_tps=20.0) for c in two_quants()])
        for speeds in (WITH_AMX, WITHOUT_AMX)
    ]
    assert [e.candidate.name if e else "" for e in chosen] == ["Q8_0", "Q4_K_M"]


def test_fastest_model_is_chosen_if_none_reaches_the_minimum_speed() -> None:
    evaluations = [evaluate(c, machine(64 * GIB), speeds=WITHOUT_AMX, min_tps=1e6) for c in two_quants()]
    assert not any(e.is_fast_enough for e in evaluations)
    assert all("too slow" in e.verdict for e in evaluations)
    fastest = choose_evaluation(evaluations)
    assert fastest is not None
    assert fastest.candidate.name == "Q4_K_M"


def test_model_with_few_layers_on_a_small_gpu_is_ranked_by_its_cpu_speed() -> None:
    small = Candidate(name="small:Q8_0", quant="Q8_0", profile=make_model(GIB // 4), quality=quality("Q8_0", 4 * 10**9))
    large = Candidate(name="large:Q8_0", quant="Q8_0", profile=make_model(2 * GIB), quality=quality("Q8_0", 32 * 10**9))
    target = machine(40 * GIB, gpu_name="card", gpu_free_bytes=3 * GIB)
    on_cpu = evaluate(large, machine(40 * GIB), speeds=WITH_AMX)
    partial = evaluate(large, target, speeds=WITH_AMX)
    assert partial.plan is not None
    assert 0 < partial.plan.options.n_gpu_layers < 16
    assert on_cpu.ranking_s is not None
    assert partial.ranking_s is not None
    assert 0.8 * on_cpu.ranking_s < partial.ranking_s < on_cpu.ranking_s
    assert partial.ranking_s > 120
    labels = {pick.evaluation.candidate.name: pick.label for pick in choose_picks([
        evaluate(candidate, target, speeds=WITH_AMX) for candidate in (small, large)
    ])}  # fmt: skip
    assert labels == {"small:Q8_0": "Fast, Balanced, Best quality"}


def test_unknown_speed_of_a_model_that_is_only_partly_on_a_gpu_is_no_recommendation() -> None:
    large = Candidate(name="large:Q8_0", quant="Q8_0", profile=make_model(2 * GIB), quality=quality("Q8_0", 32 * 10**9))
    small_gpu, large_gpu = (machine(40 * GIB, gpu_free_bytes=size) for size in (3 * GIB, 48 * GIB))
    assert choose_picks([evaluate(large, small_gpu)]) == []
    assert choose_picks([evaluate(large, large_gpu)])


def test_speed_below_the_minimum_is_not_rounded_up_to_it() -> None:
    [candidate, _] = two_quants()
    speed = evaluate(candidate, machine(64 * GIB), speeds=WITHOUT_AMX).speed
    assert speed is not None
    minimum = math.floor(speed.decode_tps) + 1
    for min_tps in (minimum, math.floor(speed.decode_tps * 100 + 1) / 100):
        verdict = evaluate(candidate, machine(64 * GIB), speeds=WITHOUT_AMX, min_tps=min_tps).verdict
        assert float(verdict.removeprefix("too slow: ").partition(" ")[0]) <= speed.decode_tps
