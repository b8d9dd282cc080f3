"""Growth of a context: from 4,096 tokens to the longest context that fits, with the memory of each length."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat.errors import PlanError
from edgechat.modelfile.header import Tensor
from edgechat.planner import memory as memory_module
from edgechat.planner import plan as plan_module
from edgechat.planner.context_growth import ContextGrowth, ContextSize
from edgechat.planner.load_plan import LoadPlan
from edgechat.planner.memory import MemoryEstimate, estimate, estimate_context_buffers
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

    def memory(n_ctx: int) -> MemoryEstimate:
        options = msgspec.structs.replace(load_plan.options, n_ctx=n_ctx)
        return estimate(profile, options, draft_tokens=load_plan.draft_tokens)

    def peak(n_ctx: int) -> int:
        """Return the memory while the context is resized, when there is a copy of all cells, and RAM of prefixes."""
        return memory(n_ctx).total + memory(n_ctx).kv_cache + load_plan.prefix_ram_bytes

    assert load_plan.prefix_ram_bytes > 100 << 20
    assert peak(load_plan.max_n_ctx) <= 6 * GIB < peak(load_plan.max_n_ctx + 256)
    assert grow(load_plan).max_bytes == memory(load_plan.max_n_ctx).total
    assert grow(load_plan).compute_bytes(8192) == load_plan.estimate.total


def test_context_without_memory_for_the_copy_of_a_resize_is_fixed() -> None:
    profile = msgspec.structs.replace(llama(), n_ctx_train=1 << 20)
    planned_bytes = plan(profile, machine(64 * GIB), speculation=False).estimate.total
    load_plan = plan(profile, machine(planned_bytes + (64 << 20)), speculation=False)
    assert load_plan.options.n_ctx == 8192
    assert load_plan.growth is None


def test_context_on_a_discrete_gpu_is_fixed() -> None:
    profile = msgspec.structs.replace(llama(), n_ctx_train=40_000)
    with_gpu = msgspec.structs.replace(machine(64 * GIB), gpu_name="GPU", gpu_free_bytes=24 * GIB)
    load_plan = plan(profile, with_gpu)
    assert load_plan.options.n_gpu_layers
    assert load_plan.growth is None
    unified = msgspec.structs.replace(machine(64 * GIB), gpu_name="GPU", gpu_is_unified=True)
    assert plan(profile, unified).max_n_ctx == 40_000


def test_context_on_an_integrated_gpu_grows_up_to_the_limit_of_its_driver() -> None:
    profile = msgspec.structs.replace(llama(), n_ctx_train=1 << 20)
    unified = machine(64 * GIB, gpu_name="GPU", gpu_is_unified=True)
    unlimited, limited = (
        plan(profile, msgspec.structs.replace(unified, gpu_free_bytes=n_bytes)) for n_bytes in (0, 4 * GIB)
    )
    assert unlimited.options == limited.options
    assert 8192 < limited.max_n_ctx < unlimited.max_n_ctx

    def peak(n_ctx: int) -> int:
        """Return the memory on the GPU while the context is resized, when there is a copy of its buffers."""
        options = msgspec.structs.replace(limited.options, n_ctx=n_ctx)
        return estimate(profile, options, is_unified=True).gpu + estimate_context_buffers(profile, options).gpu

    assert peak(limited.max_n_ctx) <= 4 * GIB < peak(limited.max_n_ctx + 256)


def test_growth_needs_no_further_estimates_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    profile = msgspec.structs.replace(llama(), n_ctx_train=1 << 20)
    n_calls: list[int] = []

    def count(n_ctx: int | None) -> int:
        n_calls.clear()
        assert (plan(profile, machine(6 * GIB), n_ctx=n_ctx).growth is None) == (n_ctx is not None)
        return len(n_calls)

    estimate_all = memory_module.estimate_buffers

    def record(*arguments: Any) -> Any:
        n_calls.append(1)
        return estimate_all(*arguments)

    for module in (memory_module, plan_module):
        monkeypatch.setattr(module, "estimate_buffers", record)
    assert count(None) == count(8192) >= 1


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
