"""Load plans: order of concessions, budgets, GPUs, and plans after memory ran out."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat.errors import ModelFileError, PlanError
from edgechat.modelfile.header import Tensor
from edgechat.planner.load_plan import LoadPlan
from edgechat.planner.load_variants import MIN_N_CTX, describe_kv_type, list_offered_kv_types
from edgechat.planner.machine import Machine
from edgechat.planner.memory import LoadOptions, estimate
from edgechat.planner.plan import make_smaller_plan, plan
from tests.unit.planner.profiles import GIB, I8, Q4_0, llama, machine, options, with_layers


def test_concessions_are_made_in_the_documented_order() -> None:
    profile = llama(type_id=Q4_0, weights=GIB)  # Q4_0 is repacked
    kv_types = list_offered_kv_types(profile)[1:]
    best = options(profile, 8192)
    steps = [
        best,
        *(msgspec.structs.replace(best, kv_type=kv_type) for kv_type in kv_types),
        *(msgspec.structs.replace(best, kv_type=kv_types[-1], n_ctx=n) for n in (4096, 2048)),
        *(msgspec.structs.replace(best, kv_type=kv_types[-1], n_ctx=n, n_ubatch=128) for n in (2048, 1024, 512)),
    ]
    totals = [estimate(profile, step).total for step in steps]
    assert totals == sorted(totals, reverse=True)
    for step, total in zip(steps, totals, strict=True):
        load_plan = plan(profile, machine(total))
        assert load_plan.options == step
        assert load_plan.estimate.total <= total
        assert bool(load_plan.concessions) == (step is not best)
    with pytest.raises(PlanError, match=r"needs about [\d.]+ [MG]B .* but [\d.]+ [MG]B are available"):
        plan(profile, machine(totals[-1] - 1))
    budget = msgspec.structs.replace(machine(1_000_000), is_budget_set=True)
    with pytest.raises(PlanError, match=r"but the memory budget is 1 MB. Set a larger budget, or choose a smaller"):
        plan(profile, budget)


def test_context_length_set_by_the_user_is_kept_or_refused() -> None:
    profile = llama()
    total = estimate(profile, options(profile, 8192)).total
    with pytest.raises(PlanError, match=r"context of 32768.*--ctx"):
        plan(profile, machine(total), n_ctx=32768)
    tight = plan(profile, machine(total - (64 << 20)), n_ctx=8192)
    assert (tight.options.n_ctx, tight.options.kv_type) == (8192, "q8_0")


def test_every_concession_and_every_field_is_explained() -> None:
    profile = llama(type_id=Q4_0)
    smallest_type = list_offered_kv_types(profile)[-1]
    least = estimate(profile, options(profile, 512, kv_type=smallest_type, n_ubatch=128)).total
    load_plan = plan(profile, machine(least, disk_free_bytes=GIB))
    texts = (describe_kv_type(smallest_type), "context of 512 tokens", "micro-batches of 128")
    assert len(load_plan.concessions) == len(texts)
    assert all(c.startswith(text) for c, text in zip(load_plan.concessions, texts, strict=True))
    fields = {*LoadOptions.__struct_fields__, *LoadPlan.__struct_fields__}
    assert set(load_plan.reasons) <= fields
    assert all(load_plan.reasons.values())


def test_each_plan_after_memory_ran_out_takes_a_fifth_less() -> None:
    profile = llama(type_id=Q4_0, weights=GIB // 8)
    load_plan: LoadPlan | None = plan(profile, machine(64 * GIB))
    totals = []
    while load_plan is not None:
        totals.append(load_plan.estimate.total)
        load_plan = make_smaller_plan(profile, machine(64 * GIB), load_plan)
    assert len(totals) > 2
    assert all(after <= 0.8 * before for before, after in itertools.pairwise(totals))


def test_state_copies_for_speculation_depend_on_the_remaining_memory() -> None:
    assert plan(llama(), machine(16 * GIB)).options.n_rs_seq == 0
    with_state = llama(ssm__inner_size=4096, ssm__state_size=128, attention__head_count_kv=[0] * 16)
    ample = plan(with_state, machine(64 * GIB))
    tight = plan(with_state, machine(estimate(with_state, options(with_state, 8192)).total + 8 * GIB))
    assert ample.options.n_rs_seq == 7
    assert tight.options.n_rs_seq in (1, 3)
    assert ample.estimate.speculation > tight.estimate.speculation > 0
    off = plan(with_state, machine(64 * GIB), speculation=False)
    assert (off.speculation, off.options.n_rs_seq, off.draft_tokens) == (False, 0, 0)


@given(st.integers(0, 1 << 35), st.integers(0, 1 << 34), st.sampled_from([Q4_0, I8]), st.integers(1, 128))
def test_more_memory_never_gives_a_smaller_plan(available: int, more: int, type_id: int, n_threads: int) -> None:
    def plan_or_none(memory: int) -> LoadPlan | None:
        try:
            return plan(llama(type_id=type_id), Machine(available_bytes=memory, n_threads=n_threads))
        except PlanError:
            return None

    less, enough = plan_or_none(available), plan_or_none(available + more)
    if less is not None:
        assert less.estimate.total <= available
        assert min(less.prefix_ram_bytes, less.draft_tokens) >= 0
        assert less.options.n_ctx >= MIN_N_CTX
        assert enough is not None
        assert enough.options.n_ctx >= less.options.n_ctx
        assert len(enough.concessions) <= len(less.concessions)


@given(st.lists(st.integers(-(1 << 63), 1 << 63), min_size=4, max_size=4))
def test_impossible_dimensions_raise_one_of_two_errors(numbers: list[int]) -> None:
    layers, heads, embedding, context = numbers
    try:
        profile = llama(
            block_count=layers, attention__head_count=heads, embedding_length=embedding, context_length=context
        )
        load_plan = plan(profile, machine(16 * GIB))
    except (PlanError, ModelFileError):
        return
    assert load_plan.options.n_ctx > 0


def test_plan_after_memory_ran_out_reads_the_weights() -> None:
    # The address space may be limited, and a mapped file needs as much of it as the whole file.
    profile = llama(type_id=Q4_0, weights=GIB // 8)
    load_plan = plan(profile, machine(64 * GIB))
    smaller_plan = make_smaller_plan(profile, machine(64 * GIB), load_plan)
    assert smaller_plan is not None
    assert (load_plan.options.use_mmap, smaller_plan.options.use_mmap) == (True, False)
    assert smaller_plan.concessions[0] == "the weights are read instead of mapped"


def test_as_many_layers_go_to_the_gpu_as_fit() -> None:
    profile = with_layers(llama(), 128 << 20)
    everything = plan(profile, machine(64 * GIB, gpu_free_bytes=24 * GIB, gpu_name="a card"))
    assert everything.options.n_gpu_layers == 17
    assert "16 of 16" in everything.reasons["n_gpu_layers"]
    part = plan(profile, machine(64 * GIB, gpu_free_bytes=GIB, gpu_name="a card"))
    assert 0 < part.options.n_gpu_layers < 16
    assert part.estimate.gpu <= GIB
    assert f"{part.options.n_gpu_layers - 1} of 16 layers fit on the GPU" in part.concessions[0]
    none = plan(profile, machine(64 * GIB, gpu_free_bytes=1 << 20))
    assert none.options.n_gpu_layers == 0


def test_experts_stay_on_the_cpu_before_layers_do() -> None:
    tensors = tuple(
        Tensor(f"blk.{i}.{name}", (2048, size >> 11), I8, 0, size)
        for i in range(16) for name, size in (("attn.w", 16 << 20), ("ffn_up_exps.w", 512 << 20))
    )  # fmt: skip
    profile = llama(expert_count=8, expert_used_count=2).with_tensors("m.gguf", tensors)
    load_plan = plan(profile, machine(64 * GIB, gpu_free_bytes=2 * GIB))
    assert (load_plan.options.n_gpu_layers, load_plan.options.experts_on_cpu) == (17, True)


def test_unified_memory_is_counted_once() -> None:
    profile = llama(weights=4 * GIB)
    load_plan = plan(profile, machine(8 * GIB, gpu_is_unified=True))
    assert load_plan.options.n_gpu_layers == 17
    assert load_plan.estimate.total <= 8 * GIB
    assert load_plan.estimate.total > load_plan.estimate.gpu > 4 * GIB
    with pytest.raises(PlanError):
        plan(profile, machine(4 * GIB, gpu_is_unified=True))


def test_heads_of_partial_q8_blocks_keep_full_kv_precision() -> None:
    profile = llama(attention__key_length=80, attention__value_length=80)
    least = estimate(profile, options(profile, 512, use_mmap=False, n_ubatch=128)).total
    assert plan(profile, machine(least)).options.kv_type == "f16"
    with pytest.raises(PlanError):
        plan(profile, machine(least - 1))


def test_gpu_weights_are_not_in_cpu_memory_too() -> None:
    profile = with_layers(llama(), 512 << 20)
    load_plan = plan(profile, machine(2 * GIB, gpu_free_bytes=24 * GIB, gpu_name="a card"))
    assert (load_plan.options.n_gpu_layers, load_plan.options.use_mmap) == (17, False)
    assert load_plan.estimate.weights == 0


def test_gpu_plan_stores_a_smaller_kv_cache_then_shortens_the_context_before_it_drops_layers() -> None:
    profile = with_layers(llama(), 512 << 20)
    everything = estimate(profile, options(profile, 8192, n_gpu_layers=17)).gpu
    shorter = plan(profile, machine(64 * GIB, gpu_free_bytes=everything - 1))
    assert (shorter.options.n_gpu_layers, shorter.options.n_ctx, shorter.options.kv_type) == (17, 8192, "q8_0")
    smallest_type = list_offered_kv_types(profile, on_gpu=True)[-1]
    smallest = estimate(profile, options(profile, 8192, n_gpu_layers=17, kv_type=smallest_type)).gpu
    shorter = plan(profile, machine(64 * GIB, gpu_free_bytes=smallest - 1))
    assert (shorter.options.n_gpu_layers, shorter.options.n_ctx) == (17, 4096)
    assert shorter.options.kv_type == smallest_type


def test_yarn_extends_only_a_context_beyond_the_training_length() -> None:
    profile = llama(n_ctx_train=8192)
    assert plan(profile, machine(64 * GIB)).options.yarn_factor == 1.0
    for n_ctx, factor in ((8192, 1.0), (8193, 1.5), (12288, 1.5), (12289, 2.0), (16384, 2.0), (32768, 4.0)):
        load_plan = plan(profile, machine(64 * GIB), n_ctx=n_ctx)
        assert (load_plan.options.n_ctx, load_plan.options.yarn_factor) == (n_ctx, factor)
        assert ("yarn_factor" in load_plan.reasons) == (factor != 1.0)
    assert "8192 tokens" in load_plan.reasons["yarn_factor"]
    assert "short prompts" in load_plan.reasons["yarn_factor"]
    assert "up to a factor of 4" in plan(profile, machine(64 * GIB), n_ctx=65536).reasons["yarn_factor"]
    scaled = llama(n_ctx_train=8192, rope__scaling__type="linear", rope__scaling__factor=4.0)
    assert plan(scaled, machine(64 * GIB), n_ctx=32768).options.yarn_factor == 1.0
