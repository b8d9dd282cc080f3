"""Growth of a context: from 4,096 tokens to the longest context that fits, with the memory of each length."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat.errors import PlanError
from edgechat.modelfile.header import Tensor
from edgechat.planner.context_growth import ContextGrowth, ContextSize
from edgechat.planner.load_plan import LoadPlan
from edgechat.planner.memory import estimate
from edgechat.planner.plan import make_smaller_plan, plan
from tests.unit.planner.profiles import GIB, Q4_0, llama, machine


def grow(load_plan: LoadPlan) -> ContextGrowth:
    assert load_plan.growth is not None
    return load_plan.growth


def test_context_grows_up_to_the_training_length_if_memory_suffices() -> None:
    profile = msgspec.structs.replace(llama(), n_ctx_train=40_000)
    load_plan = plan(profile, machine(64 * GIB))
    assert (load_plan.options.n_ctx, load_plan.initial_n_ctx, load_plan.max_n_ctx) == (8192, 4096, 40_000)
    assert [size.n_ctx for size in grow(load_plan).sizes] == [4096, 8192, 16384, 32768, 40_000]
    assert "grows up to 40,000 tokens" in load_plan.reasons["max_n_ctx"]
    assert msgspec.json.decode(msgspec.json.encode(load_plan), type=LoadPlan) == load_plan


def test_largest_context_is_the_longest_one_that_fits() -> None:
    profile = msgspec.structs.replace(llama(), n_ctx_train=1 << 20)
    load_plan = plan(profile, machine(6 * GIB))
    assert 8192 < load_plan.max_n_ctx < 1 << 20
    assert load_plan.max_n_ctx % 256 == 0

    def total(n_ctx: int) -> int:
        options = msgspec.structs.replace(load_plan.options, n_ctx=n_ctx)
        speculation_bytes = load_plan.draft_tokens * 64
        return estimate(profile, options).total + speculation_bytes

    assert total(load_plan.max_n_ctx) <= 6 * GIB < total(load_plan.max_n_ctx + 256)
    assert grow(load_plan).max_bytes == total(load_plan.max_n_ctx)
    assert grow(load_plan).compute_bytes(8192) == load_plan.estimate.total


@pytest.mark.parametrize("n_ctx", [2048, 16384])
def test_length_set_by_the_user_is_fixed(n_ctx: int) -> None:
    load_plan = plan(llama(), machine(64 * GIB), n_ctx=n_ctx)
    assert load_plan.growth is None
    assert load_plan.initial_n_ctx == load_plan.max_n_ctx == n_ctx
    assert "max_n_ctx" not in load_plan.reasons


def test_context_of_a_model_with_short_training_is_fixed() -> None:
    assert plan(msgspec.structs.replace(llama(), n_ctx_train=2048), machine(64 * GIB)).growth is None


def test_context_that_changes_rotary_embeddings_is_fixed() -> None:
    profile = msgspec.structs.replace(llama(), n_ctx_train=40_000)
    factors = Tensor("rope_factors_long.weight", (32,), 0, 0, 128)
    profile = msgspec.structs.replace(profile, tensors=(*profile.tensors, factors))
    assert plan(profile, machine(64 * GIB)).growth is None


def test_plan_after_memory_ran_out_is_smaller_than_the_opened_context_and_does_not_grow() -> None:
    profile = msgspec.structs.replace(llama(GIB // 4), n_ctx_train=40_000)
    load_plan = plan(profile, machine(64 * GIB))
    smaller_plan = make_smaller_plan(profile, machine(64 * GIB), load_plan)
    assert smaller_plan is not None
    assert smaller_plan.growth is None
    assert smaller_plan.estimate.total <= 0.8 * grow(load_plan).sizes[0].total_bytes


@given(st.integers(1, 64), st.integers(16, 1 << 18), st.sampled_from([Q4_0]))
def test_growing_plans_are_consistent(gibibytes: int, n_ctx_train: int, type_id: int) -> None:
    profile = msgspec.structs.replace(llama(type_id=type_id), n_ctx_train=n_ctx_train)
    try:
        load_plan = plan(profile, machine(gibibytes * GIB))
    except PlanError:
        return
    assert load_plan.initial_n_ctx <= load_plan.options.n_ctx <= load_plan.max_n_ctx
    if load_plan.growth is None:
        return
    sizes = load_plan.growth.sizes
    assert all(a.n_ctx < b.n_ctx and a.total_bytes <= b.total_bytes for a, b in itertools.pairwise(sizes))
    assert load_plan.growth.max_bytes <= max(gibibytes * GIB, load_plan.estimate.total)


def test_bytes_are_interpolated_between_the_sizes() -> None:
    growth = ContextGrowth(sizes=(ContextSize(256, 1000), ContextSize(512, 3000), ContextSize(1000, 3000)))
    assert [growth.compute_bytes(n) for n in (256, 384, 512, 900, 1000, 5000)] == [1000, 2000, 3000, 3000, 3000, 3000]
    assert [growth.find_largest_n_ctx(n) for n in (999, 1000, 2999, 3000, 9000)] == [0, 256, 256, 1000, 1000]
