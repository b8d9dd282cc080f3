"""What is given up so that a model fits, in which order, and which model is chosen: pure functions on numbers."""

from __future__ import annotations

import itertools
import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgechat import humanize
from edgechat.errors import ModelFileError, PlanError
from edgechat.modelfile.header import ModelHeader, Tensor
from edgechat.planner.machine import Machine
from edgechat.planner.memory import LoadOptions, MemoryEstimate, estimate, exact
from edgechat.planner.plan import MIN_N_CTX, LoadPlan, default_n_seqs, plan, smaller_plan
from edgechat.planner.quality import divergence, loss, quality
from edgechat.planner.ranking import Candidate, choose, evaluate
from edgechat.planner.throughput import KernelSpeeds, predict_speed

GIB = 1 << 30
MAX = 1 << 45


def a_model(
    weights: int = GIB, n_ctx_train: int = 32768, kind: int = 24, path: str = "m.gguf", **more: object
) -> ModelHeader:
    """A llama of 16 layers, whose weights are one tensor of so many bytes (24: I8, which nothing repacks)."""
    metadata = {
        "general.architecture": "llama", "llama.block_count": 16, "llama.embedding_length": 2048,
        "llama.attention.head_count": 32, "llama.attention.head_count_kv": 8, "llama.feed_forward_length": 8192,
        "llama.context_length": n_ctx_train, "llama.vocab_size": 32000,
    } | {f"llama.{key.replace('__', '.')}": value for key, value in more.items()}  # fmt: skip
    tensor = Tensor("blk.0.w", (2048, weights // 2048), kind, 0, weights)
    return ModelHeader(path, weights, 3, metadata, {}, (tensor,), 0)


def options(header: ModelHeader, n_ctx: int, **changes: object) -> LoadOptions:
    return LoadOptions(n_ctx=n_ctx, n_seqs=default_n_seqs(header), **changes)  # type: ignore[arg-type]


def here(available_bytes: int, **more: object) -> Machine:
    return Machine(available_bytes=available_bytes, n_threads=2, **more)  # type: ignore[arg-type]


def test_the_kv_cache_is_counted_by_layer_and_head() -> None:
    # 16 layers, 8 heads of 64 for K and for V, two bytes each: 32 KiB a token, as published for Llama-3.2-1B.
    header = a_model()
    f16, q8 = (estimate(header, options(header, 1000, kv_type=kind)).kv_cache for kind in ("f16", "q8_0"))
    assert f16 == 1024 * 32 * 1024  # in steps of 256 tokens
    assert q8 == f16 * 34 // 64


def test_what_is_given_up_comes_in_this_order() -> None:
    header = a_model(kind=2, weights=GIB)  # Q4_0, which is repacked
    full = options(header, 8192)
    read = msgspec.structs.replace(full, use_mmap=False)
    steps = [
        full,
        read,
        *(msgspec.structs.replace(read, n_ctx=n) for n in (4096, 2048)),
        msgspec.structs.replace(read, n_ctx=2048, kv_type="q8_0"),
        *(msgspec.structs.replace(read, n_ctx=n, kv_type="q8_0", n_ubatch=128) for n in (2048, 1024, 512)),
    ]
    sizes = [estimate(header, step).total for step in steps]
    assert sizes == sorted(sizes, reverse=True)
    for step, size in zip(steps, sizes, strict=True):
        made = plan(header, here(size))
        assert made.options == step
        assert made.estimate.total <= size
        assert bool(made.concessions) == (step is not full)
    with pytest.raises(PlanError, match=r"needs about [\d.]+ [MG]B .* but [\d.]+ [MG]B are available"):
        plan(header, here(sizes[-1] - 1))


def test_a_context_that_was_asked_for_is_kept_or_refused() -> None:
    header = a_model()
    at_most = estimate(header, options(header, 8192)).total
    with pytest.raises(PlanError, match=r"context of 32768.*--ctx"):
        plan(header, here(at_most), n_ctx=32768)
    tight = plan(header, here(at_most - (64 << 20)), n_ctx=8192)
    assert (tight.options.n_ctx, tight.options.kv_type) == (8192, "q8_0")


def test_every_trade_and_every_field_is_named() -> None:
    header = a_model(kind=2)
    least = estimate(header, options(header, 512, use_mmap=False, kv_type="q8_0", n_ubatch=128)).total
    made = plan(header, here(least, disk_free_bytes=GIB))
    assert [words.split()[0] for words in made.concessions] == ["the", "context", "keys", "micro"]
    fields = {*LoadOptions.__struct_fields__, *LoadPlan.__struct_fields__}
    assert set(made.reasons) <= fields
    assert all(made.reasons.values())


def test_after_memory_ran_out_the_next_plan_is_smaller() -> None:
    header = a_model(kind=2)
    made = plan(header, here(64 * GIB))
    sizes = [made.estimate.total]
    while (made := smaller_plan(header, here(64 * GIB), made)) is not None:  # type: ignore[assignment]
        sizes.append(made.estimate.total)
    assert len(sizes) > 2
    assert all(after <= 0.8 * before for before, after in itertools.pairwise(sizes))


def test_states_to_go_back_to_are_kept_where_there_is_room() -> None:
    assert plan(a_model(), here(16 * GIB)).options.n_rs_seq == 0
    with_state = a_model(ssm__inner_size=4096, ssm__state_size=128, attention__head_count_kv=[0] * 16)
    roomy = plan(with_state, here(64 * GIB))
    tight = plan(with_state, here(estimate(with_state, options(with_state, 8192)).total + 8 * GIB))
    assert roomy.options.n_rs_seq == 7
    assert tight.options.n_rs_seq in (1, 3)
    assert roomy.estimate.speculation > tight.estimate.speculation > 0
    off = plan(with_state, here(64 * GIB), speculation=False)
    assert (off.speculation, off.options.n_rs_seq, off.draft_tokens) == (False, 0, 0)


@given(st.integers(0, 1 << 35), st.integers(0, 1 << 34), st.sampled_from([2, 24]), st.integers(1, 128))
def test_more_memory_never_means_less(available: int, more: int, kind: int, n_threads: int) -> None:
    def made(memory: int) -> LoadPlan | None:
        try:
            return plan(a_model(kind=kind), Machine(available_bytes=memory, n_threads=n_threads))
        except PlanError:
            return None

    less, enough = made(available), made(available + more)
    if less is not None:
        assert less.estimate.total <= available
        assert min(less.prefix_ram_bytes, less.draft_tokens) >= 0
        assert less.options.n_ctx >= MIN_N_CTX
        assert enough is not None
        assert enough.options.n_ctx >= less.options.n_ctx
        assert len(enough.concessions) <= len(less.concessions)


@given(st.lists(st.integers(-(1 << 63), 1 << 63), min_size=4, max_size=4))
def test_impossible_shapes_are_one_error(numbers: list[int]) -> None:
    layers, heads, embedding, context = numbers
    header = a_model(
        block_count=layers, attention__head_count=heads, embedding_length=embedding, context_length=context
    )
    try:
        made = plan(header, here(16 * GIB))
    except (PlanError, ModelFileError):
        return
    assert made.options.n_ctx > 0


def test_sizes_that_llama_cpp_reports_replace_the_formulas() -> None:
    header = a_model(kind=2)
    breakdown = {
        "CPU": {"model_bytes": 100, "context_bytes": 20, "compute_bytes": 3, "is_host": 1},
        "CPU_REPACK": {"model_bytes": 900, "context_bytes": 0, "compute_bytes": 0, "is_host": 0},
        "CUDA0": {"model_bytes": 7000, "context_bytes": 800, "compute_bytes": 90, "is_host": 0},
    }
    read = exact(header, options(header, 512, use_mmap=False), breakdown)
    assert (read.weights, read.repacked, read.kv_cache, read.compute, read.gpu) == (1000, 0, 20, 3, 7890)
    mapped = exact(header, options(header, 512), breakdown, learned=5)
    assert (mapped.weights, mapped.repacked, mapped.observed_extra) == (header.tensor_bytes, 900, 5)
    assert mapped.is_exact
    assert mapped.total > read.total


# GPUs


def test_layers_go_to_a_gpu_as_far_as_it_has_room() -> None:
    layers = tuple(Tensor(f"blk.{i}.w", (2048, 65536), 24, 0, 128 << 20) for i in range(16))
    header = msgspec.structs.replace(a_model(), tensors=layers)
    everything = plan(header, here(64 * GIB, gpu_free_bytes=24 * GIB, gpu_name="a card"))
    assert everything.options.n_gpu_layers == 17
    assert "16 of 16" in everything.reasons["n_gpu_layers"]
    part = plan(header, here(64 * GIB, gpu_free_bytes=GIB, gpu_name="a card"))
    assert 0 < part.options.n_gpu_layers < 16
    assert part.estimate.gpu <= GIB
    assert "for more it has no room" in part.concessions[0]
    none = plan(header, here(64 * GIB, gpu_free_bytes=1 << 20))
    assert none.options.n_gpu_layers == 0


def test_experts_stay_with_the_cpu_before_layers_do() -> None:
    tensors = tuple(
        Tensor(f"blk.{i}.{name}", (2048, size >> 11), 24, 0, size)
        for i in range(16) for name, size in (("attn.w", 16 << 20), ("ffn_up_exps.w", 512 << 20))
    )  # fmt: skip
    header = msgspec.structs.replace(a_model(expert_count=8, expert_used_count=2), tensors=tensors)
    made = plan(header, here(64 * GIB, gpu_free_bytes=2 * GIB))
    assert (made.options.n_gpu_layers, made.options.experts_on_cpu) == (17, True)


def test_memory_that_gpu_and_cpu_share_is_counted_once() -> None:
    header = a_model(weights=4 * GIB)
    made = plan(header, here(8 * GIB, gpu_is_unified=True))
    assert made.options.n_gpu_layers == 17
    assert made.estimate.total <= 8 * GIB
    assert made.estimate.total > made.estimate.gpu > 4 * GIB
    with pytest.raises(PlanError):
        plan(header, here(4 * GIB, gpu_is_unified=True))


# Quality and choice


def test_quants_are_in_the_order_of_their_divergence() -> None:
    order = ["F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q4_0", "Q3_K_M", "Q3_K_S", "Q2_K"]
    losses = [loss(quant, 8_000_000_000) for quant in order]
    assert losses == sorted(losses)
    assert loss("Q2_K", 70_000_000_000) < loss("Q2_K", 8_000_000_000) < loss("Q2_K", 1_000_000_000)
    assert divergence("Q9_Z") is None
    assert math.isinf(loss("Q9_Z", 1))


def test_the_larger_model_wins_down_to_about_four_bits() -> None:
    """The same memory: 8e9 weights in Q4_K_M and 4e9 in Q8_0; 8e9 in Q2_K and 4e9 in Q5_K_M."""
    assert quality("Q4_K_M", 8_000_000_000).points > quality("Q8_0", 4_000_000_000).points
    assert quality("Q3_K_M", 8_000_000_000).points > quality("Q6_K", 4_000_000_000).points
    assert quality("Q2_K", 8_000_000_000).points < quality("Q5_K_M", 4_000_000_000).points


SIZES = {"Q2_K": 3.16, "Q4_K_M": 4.89, "Q8_0": 8.5, "F16": 16.0}


def candidates() -> list[Candidate]:
    found = []
    for billions in (1, 3, 8, 30):
        for quant, bits in SIZES.items():
            header = a_model(weights=int(billions * 1e9 * bits / 8) // 2048 * 2048, path=f"{billions}-{quant}")
            found.append(
                Candidate(name=header.path, quant=quant, header=header, quality=quality(quant, billions * 10**9))
            )
    return found


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 80 * GIB), st.integers(0, 40 * GIB))
def test_a_larger_budget_never_picks_worse_quality(budget: int, more: int) -> None:
    less, enough = (choose([evaluate(c, here(b)) for c in candidates()]) for b in (budget, budget + more))
    if less is not None:
        assert enough is not None
        # What is even is chosen by context and speed: a quarter of a point.
        assert enough.points >= less.points - 0.25


def test_what_fits_nowhere_says_how_much_it_would_need() -> None:
    [big] = [evaluate(c, here(GIB)) for c in candidates() if c.name == "30-F16"]
    assert big.plan is None
    assert big.verdict == f"needs at least {humanize.size(big.memory.total)}"
    assert choose([big]) is None
    least = big.memory.total
    assert evaluate(big.candidate, here(least)).plan is not None
    assert evaluate(big.candidate, here(least - 1)).plan is None


def test_what_a_licence_forbids_is_never_chosen_unasked() -> None:
    one, other = (evaluate(c, here(64 * GIB)) for c in candidates()[:2])
    closed = msgspec.structs.replace(other, candidate=msgspec.structs.replace(other.candidate, is_default=False))
    assert choose([one, closed], unasked=True) is one
    assert choose([one, closed]) is closed


# Speed

# From measurements of one 2-core machine (design notes): Q8_0's kernels beat Q4_K's where the CPU has AMX.
WITH_AMX = KernelSpeeds(
    backend="cpu-sapphirerapids", n_threads=2, operations_per_s=1e7,
    products={"Q4_K": {1: 11e9, 4: 8e9, 32: 3.1e9}, "Q8_0": {1: 17e9, 4: 14e9, 32: 11e9}},
)  # fmt: skip
WITHOUT = KernelSpeeds(
    backend="cpu-haswell", n_threads=2, operations_per_s=1e7,
    products={"Q4_K": {1: 27e9, 4: 11e9, 32: 1.9e9}, "Q8_0": {1: 17e9, 4: 16e9, 32: 2.2e9}},
)  # fmt: skip


def two_quants() -> list[Candidate]:
    return [
        Candidate(
            name=quant, quant=quant, quality=quality(quant, 10**9),
            header=msgspec.structs.replace(
                a_model(), tensors=(Tensor("blk.0.w", (2048, 500_000), kind, 0, int(1.024e9 * bits / 8)),)
            ),
        )
        for quant, kind, bits in (("Q4_K_M", 12, 4.5), ("Q8_0", 8, 8.5))
    ]  # fmt: skip


def test_the_kernels_of_this_machine_decide_which_quant_is_fast() -> None:
    for speeds, faster in ((WITH_AMX, "Q8_0"), (WITHOUT, "Q4_K_M")):
        rated = [evaluate(c, here(64 * GIB), speeds=speeds) for c in two_quants()]
        best = max(rated, key=lambda r: r.speed.decode_tps if r.speed else 0)
        assert best.candidate.name == faster
    # Who wishes for more than Q8_0 does without AMX takes the other one there, and only there.
    wish = 20.0
    chosen = [
        choose([evaluate(c, here(64 * GIB), speeds=speeds, min_tps=wish) for c in two_quants()])
        for speeds in (WITH_AMX, WITHOUT)
    ]
    assert [c.candidate.name if c else "" for c in chosen] == ["Q8_0", "Q4_K_M"]


def test_a_speed_is_the_sum_of_its_products() -> None:
    [_, q8] = two_quants()
    speed = predict_speed(q8.header, WITHOUT, n_past=0)
    assert speed is not None
    operations = 260 + 16 * 20
    assert speed.decode_tps == pytest.approx(1 / (1.024e9 / 17e9 + operations / 1e7))
    assert speed.prefill_tps == pytest.approx(32 / (1.024e9 / 2.2e9))
    assert speed.ttft_s(1000) == pytest.approx(1000 / speed.prefill_tps + 1 / speed.decode_tps)
    odd = msgspec.structs.replace(q8.header, tensors=(Tensor("w", (2048, 8), 35, 0, 4000),))
    assert predict_speed(odd, WITHOUT) is None


def test_of_experts_only_those_count_that_a_token_uses() -> None:
    experts = Tensor("blk.0.ffn_up_exps.weight", (2048, 1024, 64), 8, 0, 1 << 27)
    dense = msgspec.structs.replace(a_model(), tensors=(experts,))
    mixed = msgspec.structs.replace(a_model(expert_count=64, expert_used_count=8), tensors=(experts,))
    quick = msgspec.structs.replace(WITHOUT, operations_per_s=0.0)
    of_dense, of_mixed = predict_speed(dense, quick, n_past=0), predict_speed(mixed, quick, n_past=0)
    assert of_dense is not None
    assert of_mixed is not None
    assert of_mixed.decode_tps == pytest.approx(8 * of_dense.decode_tps)
    assert of_dense.prefill_tps < of_mixed.prefill_tps < 8 * of_dense.prefill_tps


def test_nobody_picks_what_is_too_slow_if_anything_is_fast_enough() -> None:
    rated = [evaluate(c, here(64 * GIB), speeds=WITHOUT, min_tps=1e6) for c in two_quants()]
    assert not any(r.is_fast_enough for r in rated)
    assert all("too slow" in r.verdict for r in rated)
    fastest = choose(rated)
    assert fastest is not None
    assert fastest.candidate.name == "Q4_K_M"


def test_an_estimate_adds_up() -> None:
    header = a_model()
    found = estimate(header, options(header, 8192), learned=7)
    parts = set(MemoryEstimate.__struct_fields__) - {"gpu", "is_exact", "is_unified"}
    assert found.total == sum(getattr(found, name) for name in parts)
    shared = msgspec.structs.replace(found, gpu=GIB, is_unified=True)
    assert shared.total == found.total + GIB


@pytest.mark.parametrize(("used", "count"), [(8, 160), (8, 384), (4, 72), (6, 66), (1, 1 << 60), (1 << 32, 8)])
def test_any_number_of_experts_has_a_speed(used: int, count: int) -> None:
    experts = Tensor("blk.0.ffn_up_exps.weight", (2048, 1024, 64), 8, 0, 1 << 27)
    header = msgspec.structs.replace(a_model(expert_count=count, expert_used_count=used), tensors=(experts,))
    speed = predict_speed(header, WITHOUT)
    assert speed is not None
    assert speed.decode_tps > 0
    assert speed.prefill_tps > 0


def test_a_file_without_products_has_no_speed() -> None:
    nothing = msgspec.structs.replace(WITHOUT, operations_per_s=0.0)
    assert predict_speed(msgspec.structs.replace(a_model(), tensors=()), nothing) is None


@given(
    st.lists(st.sampled_from(["token_embd.weight", "output.weight", "blk.0.a", "blk.9.b", "x"]), max_size=5),
    st.integers(0, 20),
)
def test_weights_are_on_one_side_or_the_other(names: list[str], n_gpu_layers: int) -> None:
    tensors = tuple(Tensor(name, (2048, 512), 24, 0, 1 << 20) for name in names)
    header = msgspec.structs.replace(a_model(), tensors=tensors)
    read = estimate(header, options(header, 512, n_gpu_layers=n_gpu_layers, use_mmap=False))
    none = estimate(header, options(header, 512, use_mmap=False))
    assert 0 <= read.weights <= none.weights
    assert none.gpu == 0
    assert read.weights + read.gpu >= none.weights


def test_heads_that_are_no_whole_blocks_keep_full_precision() -> None:
    odd = a_model(attention__key_length=80, attention__value_length=80)
    least = estimate(odd, options(odd, 512, use_mmap=False, n_ubatch=128)).total
    assert plan(odd, here(least)).options.kv_type == "f16"
    with pytest.raises(PlanError):
        plan(odd, here(least - 1))


def test_quants_by_other_names_are_known() -> None:
    for name in (
        "UD-Q2_K_XL",
        "UD-Q4_K_XL",
        "UD-Q6_K_XL",
        "UD-Q8_K_XL",
        "Q4_K_L",
        "Q6_K_L",
        "Q3_K_XL",
        "MXFP4_MOE",
        "Q4_K",
    ):
        assert divergence(name) is not None, name
    assert divergence("Q3_K_L") == 0.073077


def test_a_gpu_gets_less_context_before_fewer_layers_and_what_it_has_is_nowhere_else() -> None:
    layers = tuple(Tensor(f"blk.{i}.w", (2048, 65536), 24, 0, 512 << 20) for i in range(16))
    header = msgspec.structs.replace(a_model(), tensors=layers)
    made = plan(header, here(2 * GIB, gpu_free_bytes=24 * GIB, gpu_name="a card"))
    assert (made.options.n_gpu_layers, made.options.use_mmap) == (17, False)
    assert made.estimate.weights == 0
    everything = estimate(header, options(header, 8192, n_gpu_layers=17)).gpu
    shorter = plan(header, here(64 * GIB, gpu_free_bytes=everything - 1))
    assert (shorter.options.n_gpu_layers, shorter.options.n_ctx) == (17, 4096)
