"""Evaluation of candidates, and the automatic choice."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from edgechat import humanize
from edgechat.planner.picks import choose_evaluation
from edgechat.planner.ranking import evaluate
from tests.unit.planner.profiles import GIB, WITH_AMX, WITHOUT_AMX, candidates, machine, two_quants


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
