"""Model drafters in plans: their memory, and the room that they leave and need."""

from __future__ import annotations

import msgspec
import pytest

from edgechat.modelfile.layers import Layer
from edgechat.modelfile.profile import ModelProfile
from edgechat.planner.drafter_choice import DrafterChoice, RemainingMemory, estimate_drafter, make_heads_profile
from edgechat.planner.drafter_plan import DRAFTER_CELLS, MAX_DRAFTED_SEQS, MAX_MODEL_DRAFT_TOKENS, DrafterPlan
from edgechat.planner.load_plan import LoadPlan
from edgechat.planner.memory import LoadOptions
from edgechat.planner.plan import make_smaller_plan, plan
from edgechat.planner.report import format_plan_lines
from tests.unit.planner.profiles import GIB, I8, llama, machine, with_heads, with_layers

MIB = 1 << 20
DRAFT_BYTES = GIB // 8
OPTIONS = LoadOptions(n_ctx=8192, n_seqs=8)


def draft_model(*, is_required: bool = False) -> DrafterChoice:
    return DrafterChoice(
        kind="draft-model", name="small", profile=llama(DRAFT_BYTES, path="small.gguf"), reason="the smallest",
        is_required=is_required,
    )  # fmt: skip


def with_states(profile: ModelProfile) -> ModelProfile:
    layers = tuple(msgspec.structs.replace(layer, cache_kind="state") for layer in profile.layers)
    return msgspec.structs.replace(profile, layers=layers, state_width=1 << 16)


def total_without_drafter(profile: ModelProfile) -> int:
    return plan(profile, machine(64 * GIB)).estimate.total


def test_memory_of_a_draft_model() -> None:
    drafter = estimate_drafter("draft-model", llama(DRAFT_BYTES), llama(), OPTIONS)
    assert drafter.model_path == "m.gguf"
    assert DRAFT_BYTES < drafter.weights < DRAFT_BYTES + 16 * MIB
    # 16 layers, keys and values of 8 heads with 64 values of two bytes.
    assert drafter.kv_cache == 16 * 2 * 8 * 64 * 2 * DRAFTER_CELLS * MAX_DRAFTED_SEQS
    # Logits of one token of each sequence.
    assert MAX_DRAFTED_SEQS * 32000 * 4 < drafter.compute < 20 * MIB
    assert drafter.total == drafter.weights + drafter.kv_cache + drafter.compute
    assert (drafter.n_seqs, drafter.max_tokens) == (MAX_DRAFTED_SEQS, MAX_MODEL_DRAFT_TOKENS)


def test_context_of_a_drafter_does_not_depend_on_the_context_of_its_target() -> None:
    drafters = [
        estimate_drafter("draft-model", llama(DRAFT_BYTES), llama(), msgspec.structs.replace(OPTIONS, n_ctx=n_ctx))
        for n_ctx in (512, 1 << 17)
    ]
    assert drafters[0] == drafters[1]
    few = estimate_drafter("draft-model", llama(DRAFT_BYTES), llama(), msgspec.structs.replace(OPTIONS, n_seqs=2))
    assert few.n_seqs == 2
    assert few.kv_cache == drafters[0].kv_cache // 2


def test_memory_of_heads_in_the_file_of_the_model() -> None:
    target = with_heads(llama())
    drafter = estimate_drafter("mtp", target, target, OPTIONS)
    assert (drafter.model_path, drafter.weights) == ("", 64 * MIB)
    assert drafter.kv_cache == 2 * 8 * 64 * 2 * DRAFTER_CELLS * MAX_DRAFTED_SEQS
    heads = make_heads_profile(target)
    assert (heads.n_layers, heads.n_skipped_layers, heads.layers[0].cache_kind) == (1, 0, "full")


def test_drafts_for_recurrent_states_are_limited_by_their_copies() -> None:
    target = with_states(llama())
    options = msgspec.structs.replace(OPTIONS, n_rs_seq=3)
    assert estimate_drafter("draft-model", llama(), target, options).max_tokens == 3
    own = estimate_drafter("draft-model", target, target, options)
    states_bytes = 16 * (1 << 16) * 4 * own.n_seqs
    assert own.kv_cache == 2 * states_bytes  # drafts are computed on a copy of the sequence
    without_copies = plan(target, machine(total_without_states(target)), drafter=draft_model(is_required=True))
    assert without_copies.options.n_rs_seq == 0
    assert without_copies.drafter is None
    assert "copies of recurrent states" in without_copies.reasons["draft_model"]


def total_without_states(profile: ModelProfile) -> int:
    return plan(profile, machine(64 * GIB), speculation=False).estimate.total + MIB


def test_a_plan_with_room_has_the_drafter_and_counts_it() -> None:
    without = plan(llama(), machine(64 * GIB))
    load_plan = plan(llama(), machine(64 * GIB), drafter=draft_model())
    assert load_plan.drafter is not None
    assert load_plan.estimate.drafter == load_plan.drafter.total
    assert load_plan.estimate.total == without.estimate.total + load_plan.drafter.total
    assert load_plan.options == without.options
    assert load_plan.reasons["drafter"].startswith("small, the smallest; needs")
    assert any(line.startswith("  drafter  ") for line in format_plan_lines(load_plan))
    assert not load_plan.concessions


def test_growth_and_prompt_cache_leave_the_memory_of_the_drafter() -> None:
    available = total_without_drafter(llama()) + 5 * DRAFT_BYTES
    without, load_plan = (
        plan(llama(), machine(available), drafter=d) for d in (DrafterChoice(reason=""), draft_model())
    )
    assert without.growth is not None
    assert load_plan.growth is not None
    assert load_plan.drafter is not None
    assert load_plan.growth.max_n_ctx < without.growth.max_n_ctx
    assert load_plan.growth.max_bytes + load_plan.prefix_ram_bytes <= available
    smallest = load_plan.growth.compute_bytes(load_plan.initial_n_ctx)
    assert smallest - without.growth.compute_bytes(without.initial_n_ctx) == load_plan.drafter.total


def test_the_drafter_is_the_first_concession() -> None:
    target = llama()
    best = plan(target, machine(64 * GIB)).options
    for spare, is_required, is_added in (
        (0, False, False), (0, True, False), (2 * DRAFT_BYTES, False, False), (2 * DRAFT_BYTES, True, True),
        (4 * DRAFT_BYTES, False, True),
    ):  # fmt: skip
        load_plan = plan(
            target, machine(total_without_drafter(target) + spare), drafter=draft_model(is_required=is_required)
        )
        assert load_plan.options == best, "neither the context nor the KV cache pays for the drafter"
        assert (load_plan.drafter is not None) == is_added, (spare, is_required)
        expected = ("small is not loaded for drafts",) if is_required and not is_added else ()
        assert load_plan.concessions == expected
        if not is_added:
            assert "small needs" in load_plan.reasons["draft_model" if is_required else "drafter"]
            assert ("draft_model" in load_plan.reasons) == is_required


def test_heads_of_the_model_itself_replace_a_named_drafter_without_room() -> None:
    target = with_heads(llama())
    heads = DrafterChoice(kind="mtp", name="the MTP heads", profile=target, reason="in the file of the model")
    choice = msgspec.structs.replace(
        draft_model(is_required=True), profile=llama(64 * GIB, path="small.gguf"), fallback=heads
    )
    load_plan = plan(target, machine(8 * GIB), drafter=choice)
    assert load_plan.drafter is not None
    assert (load_plan.drafter.kind, load_plan.drafter.name, load_plan.drafter.is_named) == ("mtp", heads.name, False)
    assert load_plan.drafter == plan(target, machine(8 * GIB), drafter=heads).drafter
    assert load_plan.reasons["draft_model"].startswith("small needs")
    assert load_plan.reasons["drafter"].startswith("the MTP heads, in the file of the model; needs")


def test_no_drafter_beside_other_concessions() -> None:
    target = llama()
    load_plan = plan(target, machine(total_without_drafter(target) - 64 * MIB), drafter=draft_model(is_required=True))
    assert load_plan.drafter is None
    assert load_plan.concessions[0] == "small is not loaded for drafts"
    assert len(load_plan.concessions) > 1
    assert "the model itself does not have enough memory" in load_plan.reasons["draft_model"]


def test_the_memory_of_other_programs_is_left_to_them() -> None:
    target = llama()
    total = total_without_drafter(target)
    reserving = msgspec.structs.replace(machine(total + 3 * DRAFT_BYTES), reserved_bytes=2 * DRAFT_BYTES)
    assert plan(target, reserving, drafter=draft_model(is_required=True)).drafter is None


@pytest.mark.parametrize("is_unified", [False, True])
def test_the_memory_of_a_gpu_must_have_room_too(*, is_unified: bool) -> None:
    target = with_layers(llama(), 64 * MIB)
    gpu_machine = machine(64 * GIB, gpu_name="GPU", gpu_free_bytes=64 * GIB, gpu_is_unified=is_unified)
    full = plan(target, gpu_machine).estimate.gpu
    for gpu_bytes, is_added in ((64 * GIB, True), (0, False)):
        gpu_machine = msgspec.structs.replace(gpu_machine, gpu_free_bytes=full + gpu_bytes + MIB)
        load_plan = plan(target, gpu_machine, drafter=draft_model(is_required=True))
        assert (load_plan.drafter is not None) == is_added


def test_a_drafter_on_a_gpu_is_counted_in_the_memory_of_the_gpu() -> None:
    target = with_layers(llama(), 64 * MIB)
    gpu_machine = machine(64 * GIB, gpu_name="GPU", gpu_free_bytes=64 * GIB)
    alone, load_plan = plan(target, gpu_machine), plan(target, gpu_machine, drafter=large_draft_model())
    drafter = load_plan.drafter
    assert drafter is not None
    assert drafter.gpu > GIB
    assert drafter.cpu == load_plan.estimate.drafter < 64 * MIB
    assert load_plan.estimate.gpu == alone.estimate.gpu + drafter.gpu
    assert load_plan.estimate.total == alone.estimate.total + drafter.cpu
    unified = plan(target, msgspec.structs.replace(gpu_machine, gpu_is_unified=True), drafter=large_draft_model())
    assert unified.drafter == drafter
    assert unified.growth is not None
    assert unified.growth.sizes[-1].total_bytes >= unified.estimate.total >= unified.estimate.gpu + drafter.cpu


def test_prediction_heads_are_on_the_gpu_with_the_last_layers() -> None:
    target = with_heads(llama())
    for n_gpu_layers, is_on_gpu in ((0, False), (1, False), (2, True), (99, True)):
        options = msgspec.structs.replace(OPTIONS, n_gpu_layers=n_gpu_layers)
        drafter = estimate_drafter("mtp", target, target, options)
        assert (drafter.gpu > 64 * MIB) == is_on_gpu
        assert (drafter.weights == 64 * MIB) == (not is_on_gpu)


@pytest.mark.parametrize(("cpu", "gpu", "name"), [(64 * MIB, 64 * GIB, "CPU"), (64 * GIB, 64 * MIB, "GPU")])
def test_either_memory_can_be_too_small_for_a_drafter(cpu: int, gpu: int, name: str) -> None:
    drafter = DrafterPlan(kind="draft-model", weights=128 * MIB, gpu=128 * MIB)
    assert RemainingMemory(cpu, gpu).find_shortage(drafter) == (128 * MIB, 64 * MIB), name
    assert RemainingMemory(64 * GIB, 64 * GIB).find_shortage(drafter) is None
    assert RemainingMemory(128 * MIB, None).find_shortage(drafter) == (256 * MIB, 128 * MIB)
    shared = RemainingMemory(128 * MIB, 64 * GIB, is_unified=True)
    assert shared.find_shortage(drafter) == (256 * MIB, 128 * MIB)
    assert shared.divide(2) == RemainingMemory(64 * MIB, 32 * GIB, is_unified=True)


def test_a_drafter_whose_weights_the_gpu_must_not_compute_drafts_only_on_the_cpu() -> None:
    choice = DrafterChoice(
        kind="draft-model", name="small", profile=llama(GIB // 8), reason="chosen by the user", is_required=True,
        gpu_problem="GPU is not used for a model with Q4_1 weights",
    )  # fmt: skip
    on_gpu = plan(llama(), machine(64 * GIB, gpu_name="GPU", gpu_free_bytes=64 * GIB), drafter=choice)
    assert on_gpu.options.n_gpu_layers
    assert on_gpu.drafter is None
    assert on_gpu.reasons["draft_model"] == "small is left out: GPU is not used for a model with Q4_1 weights"
    assert on_gpu.concessions == ()  # more memory would not help
    assert plan(llama(), machine(64 * GIB), drafter=choice).drafter is not None


def test_plans_after_memory_ran_out_start_without_the_drafter() -> None:
    first = plan(llama(), machine(64 * GIB), drafter=large_draft_model())
    assert first.drafter is not None
    second = make_smaller_plan(llama(), machine(64 * GIB), first)
    assert second is not None
    assert second.drafter is None
    assert second.options.n_ctx == first.options.n_ctx
    assert second.options.kv_type == "f16"
    assert "memory ran out" in second.reasons["drafter"]
    named = msgspec.structs.replace(large_draft_model(), is_required=True)
    third = make_smaller_plan(llama(), machine(64 * GIB), plan(llama(), machine(64 * GIB), drafter=named))
    assert third is not None
    assert third.reasons["draft_model"] == "memory ran out with the drafter"


def test_the_reason_for_no_drafter_remains_in_a_smaller_plan() -> None:
    choice = DrafterChoice(
        reason="the MTP heads need 9 GB, and only 1 GB are left for them", refusal="No model with the name 'small'"
    )
    small_machine = machine(GIB * 3 // 2)
    smaller_plan = make_smaller_plan(llama(), small_machine, plan(llama(), small_machine, drafter=choice))
    assert smaller_plan is not None
    assert smaller_plan.reasons["drafter"] == choice.reason
    assert smaller_plan.reasons["draft_model"] == choice.refusal


def large_draft_model() -> DrafterChoice:
    return msgspec.structs.replace(draft_model(), profile=llama(GIB, path="small.gguf"))


@pytest.mark.parametrize("choice", [DrafterChoice(reason="turned off by the user"), DrafterChoice(reason="")])
def test_a_plan_without_a_drafter_says_why(choice: DrafterChoice) -> None:
    load_plan = plan(llama(), machine(64 * GIB), drafter=choice)
    assert load_plan.drafter is None
    assert load_plan.reasons.get("drafter", "") == choice.reason
    off: LoadPlan = plan(llama(), machine(64 * GIB), speculation=False, drafter=draft_model())
    assert (off.drafter, off.speculation) == (None, False)


def test_layers_of_an_assistant_need_no_cache() -> None:
    shared = Layer(cache_kind="none", n_head=8, n_head_kv=8, key_length=64, value_length=64, n_ff=8192)
    assistant = msgspec.structs.replace(llama(DRAFT_BYTES, type_id=I8), layers=(shared,) * 4)
    drafter = estimate_drafter("assistant", assistant, llama(), OPTIONS)
    assert drafter.kv_cache == 0
    assert drafter.weights >= DRAFT_BYTES


def test_mask_of_an_assistant_grows_with_the_context_of_its_target() -> None:
    shared = Layer(cache_kind="none", n_head=8, n_head_kv=8, key_length=64, value_length=64, n_ff=8192)
    assistant = msgspec.structs.replace(llama(DRAFT_BYTES, type_id=I8), layers=(shared,) * 4)
    short, long = (
        estimate_drafter("assistant", assistant, llama(), msgspec.structs.replace(OPTIONS, n_ctx=n_ctx))
        for n_ctx in (2048, 1 << 17)
    )
    assert long.compute - short.compute == ((1 << 17) - 2048) * short.bytes_per_cell > 3 * MIB
    assert short.resize_target((1 << 17) - 2048) == long
    choice = DrafterChoice(kind="assistant", name="assistant", profile=assistant, reason="installed")
    load_plan = plan(llama(), machine(64 * GIB), drafter=choice)
    assert load_plan.growth is not None
    sizes = load_plan.growth.sizes
    other = plan(llama(), machine(64 * GIB))
    assert other.growth is not None
    added = [a.total_bytes - b.total_bytes for a, b in zip(sizes, other.growth.sizes, strict=True)]
    assert added[-1] - added[0] == (sizes[-1].n_ctx - sizes[0].n_ctx) * short.bytes_per_cell
