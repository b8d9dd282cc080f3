"""Use of a GPU by measured speeds: for all layers, some layers, only prefill, or nothing."""

from __future__ import annotations

import itertools
from pathlib import Path

import msgspec
import pytest

from edgechat.hardware.gpu import PREFILL_COLUMNS, Gpu, GpuSpeeds, TypeRates
from edgechat.hardware.profile import HardwareProfile, read_profile
from edgechat.modelfile.header import Tensor
from edgechat.planner.gpu_use import predict_measured_speed, put_prefill_on_gpu
from edgechat.planner.load_variants import list_load_variants, list_offered_kv_types
from edgechat.planner.machine import machine_from_profile
from edgechat.planner.memory import estimate
from edgechat.planner.plan import make_smaller_plan, plan
from edgechat.planner.quality import quality
from edgechat.planner.ranking import Candidate, evaluate
from tests.unit.planner.profiles import GIB, I8, Q4_0, llama, machine, options, with_layers

MIB = 1 << 20
PROFILE = with_layers(llama(), 128 * MIB)
N_WEIGHTS = 16 * 128 * MIB
CPU_DECODE, CPU_PREFILL = 10e9, 0.2e9


def make_speeds(decode: float, prefill: float, *, copied: float = 10e9, plain: float = CPU_DECODE) -> GpuSpeeds:
    """Return speeds of a GPU that decodes and prefills `decode` and `prefill` times as fast as the CPU."""
    rates = TypeRates(
        type_id=I8, decode=decode * CPU_DECODE, prefill=prefill * CPU_PREFILL, cpu_decode=CPU_DECODE,
        cpu_prefill=CPU_PREFILL, cpu_plain_decode=plain,
    )  # fmt: skip
    return GpuSpeeds(rates=(rates,), copied_bytes_per_s=copied)


def choose(speeds: GpuSpeeds, *, available_bytes: int = 64 * GIB, **more: object) -> tuple[int, bool]:
    """Return the number of layers on the GPU, and whether it computes the prefill of the others."""
    resources = machine(available_bytes, gpu_name="a GPU", gpu_speeds=speeds, **({"gpu_free_bytes": 24 * GIB} | more))
    chosen = plan(PROFILE, resources).options
    return chosen.n_gpu_layers, chosen.prefill_on_gpu


@pytest.mark.parametrize("is_unified", [False, True])
@pytest.mark.parametrize(
    ("decode", "prefill", "use"),
    [
        (2.0, 20.0, (17, False)),
        (0.5, 20.0, (0, True)),  # decodes more slowly
        (2.0, 0.5, (17, False)),  # prefills more slowly, but the turn is faster
        (1.2, 0.2, (0, False)),  # decodes a little faster, but the turn is slower
        (0.5, 0.5, (0, False)),
    ],
)
def test_fastest_use_of_the_gpu_is_chosen(
    decode: float, prefill: float, use: tuple[int, bool], is_unified: bool
) -> None:
    assert choose(make_speeds(decode, prefill), gpu_is_unified=is_unified) == use


def test_layers_are_divided_only_if_the_gpu_decodes_faster() -> None:
    n_gpu_layers, _ = choose(make_speeds(2.0, 20.0), gpu_free_bytes=GIB)
    assert 1 < n_gpu_layers < 17
    assert choose(make_speeds(0.5, 20.0), gpu_free_bytes=GIB) == (0, True)
    assert choose(make_speeds(0.5, 0.5), gpu_free_bytes=GIB) == (0, False)
    # Each batch of the prefill copies the weights of the layers in CPU memory, which takes longer than few layers gain.
    assert choose(make_speeds(2.0, 20.0, copied=0.02e9), gpu_free_bytes=GIB) == (0, False)
    assert choose(make_speeds(2.0, 20.0), gpu_free_bytes=64 * MIB) == (0, False)


def test_prefill_on_the_gpu_must_pay_for_its_copies_and_for_the_layout_of_the_weights() -> None:
    assert choose(make_speeds(0.5, 20.0, copied=0.1e9)) == (0, False)
    assert choose(make_speeds(0.5, 20.0, copied=0.0)) == (0, False)  # unknown
    assert choose(make_speeds(0.5, 20.0, plain=CPU_DECODE / 2)) == (0, False)


def test_slower_gpu_is_used_if_the_cpu_lacks_memory() -> None:
    n_gpu_layers, _ = choose(make_speeds(0.5, 0.5), available_bytes=GIB)
    assert 1 < n_gpu_layers < 17  # as few as possible


def test_faster_gpu_is_not_used_at_the_price_of_a_shorter_context() -> None:
    """The CPU has memory for the whole context, and the GPU only for a short one, or for layers that are no gain."""
    smallest_type = list_offered_kv_types(PROFILE, on_gpu=True)[-1]
    on_gpu = [options(PROFILE, n_ctx, n_gpu_layers=17, kv_type=smallest_type, use_mmap=False) for n_ctx in (4096, 8192)]
    short_bytes, full_bytes = (estimate(PROFILE, o, is_unified=True).gpu for o in on_gpu)
    for is_unified in (False, True):
        for gpu_free_bytes, n_gpu_layers in ((full_bytes - 1, 0), (full_bytes, 17)):
            assert gpu_free_bytes > short_bytes
            resources = machine(
                64 * GIB, gpu_name="a GPU", gpu_speeds=make_speeds(2.0, 20.0, copied=0.001e9),
                gpu_free_bytes=gpu_free_bytes, gpu_is_unified=is_unified,
            )  # fmt: skip
            chosen = plan(PROFILE, resources).options
            assert (chosen.n_gpu_layers, chosen.n_ctx) == (n_gpu_layers, 8192)
            assert chosen.uses_gpu == bool(n_gpu_layers)


def test_order_of_the_uses_of_a_gpu_and_of_shorter_contexts() -> None:
    faster = machine(64 * GIB, gpu_free_bytes=24 * GIB, gpu_name="a GPU", gpu_speeds=make_speeds(0.5, 20.0))
    variants = [variant.options for variant in list_load_variants(PROFILE, faster, None)]
    order = [(o.n_ctx < 8192, o.uses_gpu) for o in variants]
    assert [kind for kind, _ in itertools.groupby(order)][:5] == [
        (False, True), (False, False), (True, True), (True, False),
        (False, True),  # slower than the CPU
    ]  # fmt: skip
    assert min(o.n_ctx for o in variants) == 512
    given = [variant.options.n_ctx for variant in list_load_variants(PROFILE, faster, 6000)]
    assert set(given) == {6000}


def test_gpu_without_measured_speeds_gets_as_many_layers_as_fit() -> None:
    rates = msgspec.structs.replace(make_speeds(0.5, 0.5).rates[0], type_id=Q4_0)
    for speeds in (GpuSpeeds(), GpuSpeeds(rates=(rates,), copied_bytes_per_s=1e9)):
        assert choose(speeds) == (17, False)


def test_memory_that_a_gpu_shares_is_counted_once_and_limited() -> None:
    speeds = make_speeds(2.0, 20.0)
    unified = machine(3 * GIB, gpu_is_unified=True, gpu_free_bytes=3 * GIB, gpu_name="a GPU", gpu_speeds=speeds)
    everything = plan(PROFILE, unified)
    assert everything.options.n_gpu_layers == 17
    assert everything.estimate.gpu > 2 * GIB
    assert everything.estimate.total <= 3 * GIB
    part = plan(PROFILE, msgspec.structs.replace(unified, available_bytes=8 * GIB, gpu_free_bytes=GIB))
    assert 1 < part.options.n_gpu_layers < 17
    assert part.estimate.gpu <= GIB
    assert part.estimate.total > 2 * GIB


def test_prefill_on_the_gpu_needs_memory_for_copies_there_and_no_second_layout() -> None:
    profile = with_layers(llama(type_id=Q4_0), 128 * MIB)
    on_cpu = options(profile, 8192)
    memory, cpu_memory = estimate(profile, put_prefill_on_gpu(on_cpu)), estimate(profile, on_cpu)
    assert 128 * MIB < memory.gpu < GIB
    assert memory.repacked_weights == cpu_memory.gpu == 0
    assert memory.weights == profile.tensor_bytes


def test_plan_after_memory_of_the_gpu_ran_out_uses_less_of_it() -> None:
    resources = machine(64 * GIB, gpu_free_bytes=24 * GIB, gpu_name="a GPU", gpu_speeds=make_speeds(0.5, 20.0))
    failed_plan = plan(PROFILE, resources)
    assert failed_plan.options.prefill_on_gpu
    smaller_plan = make_smaller_plan(PROFILE, resources, failed_plan)
    assert smaller_plan is not None
    assert smaller_plan.estimate.gpu <= 0.8 * failed_plan.estimate.gpu
    # The CPU remains if nothing else takes less memory of the GPU.
    only_cpu = make_smaller_plan(PROFILE, msgspec.structs.replace(resources, gpu_free_bytes=MIB), failed_plan)
    assert only_cpu is not None
    assert not only_cpu.options.uses_gpu
    assert only_cpu.options.n_ctx == 8192


def test_plan_after_memory_ran_out_does_not_need_more_of_the_gpu() -> None:
    """More layers on the GPU take less CPU memory, which does not help if the memory of the GPU ran out."""
    resources = machine(64 * GIB, gpu_free_bytes=24 * GIB, gpu_name="a GPU", gpu_speeds=make_speeds(2.0, 20.0))
    failed_plan = plan(PROFILE, msgspec.structs.replace(resources, gpu_free_bytes=GIB))
    assert 1 < failed_plan.options.n_gpu_layers < 17
    smaller_plan = make_smaller_plan(PROFILE, resources, failed_plan)
    assert smaller_plan is not None
    assert smaller_plan.estimate.gpu <= 0.8 * failed_plan.estimate.gpu


def test_plan_after_memory_of_the_cpu_ran_out_keeps_what_the_gpu_has() -> None:
    resources = machine(64 * GIB, gpu_free_bytes=24 * GIB, gpu_name="a GPU")
    failed_plan = plan(PROFILE, resources)
    smaller_plan = make_smaller_plan(PROFILE, msgspec.structs.replace(resources, available_bytes=GIB), failed_plan)
    assert smaller_plan is not None
    assert smaller_plan.estimate.total <= 0.8 * failed_plan.estimate.total
    assert smaller_plan.estimate.gpu <= failed_plan.estimate.gpu


def test_speeds_count_products_and_copies() -> None:
    speeds = make_speeds(0.5, 20.0, copied=1e9)
    on_cpu = options(PROFILE, 8192)
    cpu, prefill = (predict_measured_speed(PROFILE, o, speeds) for o in (on_cpu, put_prefill_on_gpu(on_cpu)))
    assert cpu is not None
    assert prefill is not None
    assert cpu.decode_tps == prefill.decode_tps == pytest.approx(CPU_DECODE / N_WEIGHTS)
    assert cpu.prefill_tps == pytest.approx(PREFILL_COLUMNS * CPU_PREFILL / N_WEIGHTS)
    copies_s = 2 * N_WEIGHTS / 1e9 / 600  # a typical prompt has 600 tokens, and a batch 512
    assert 1 / prefill.prefill_tps == pytest.approx(N_WEIGHTS / (PREFILL_COLUMNS * 20 * CPU_PREFILL) + copies_s)


def test_types_that_were_not_measured_count_like_the_others() -> None:
    other = Tensor("blk.0.v", (2048, 65536), Q4_0, 0, 72 * MIB)
    profile = PROFILE.with_tensors("m.gguf", (*PROFILE.tensors, other))
    speed = predict_measured_speed(profile, options(profile, 8192), make_speeds(1.0, 1.0))
    assert speed is not None
    assert speed.decode_tps == pytest.approx(CPU_DECODE / (N_WEIGHTS + 128 * MIB))


def test_output_matrix_is_not_part_of_prefill() -> None:
    output = Tensor("output.weight", (2048, 65536), I8, 0, 128 * MIB)
    profile = PROFILE.with_tensors("m.gguf", (*PROFILE.tensors, output))
    speed = predict_measured_speed(profile, options(profile, 8192), make_speeds(1.0, 1.0))
    assert speed is not None
    assert speed.prefill_tps == pytest.approx(PREFILL_COLUMNS * CPU_PREFILL / N_WEIGHTS)
    assert speed.decode_tps == pytest.approx(CPU_DECODE / (N_WEIGHTS + 128 * MIB))


@pytest.mark.parametrize(
    ("decode", "prefill", "words"),
    [
        (2.0, 20.0, "a GPU computes 16 of 16 layers"),
        (0.5, 20.0, "a GPU computes the prefill with copies of the weights, and the CPU decodes"),
    ],
)
def test_reason_shows_what_was_measured(decode: float, prefill: float, words: str) -> None:
    speeds = make_speeds(decode, prefill)
    resources = machine(64 * GIB, gpu_free_bytes=24 * GIB, gpu_name="a GPU", gpu_speeds=speeds)
    reason = plan(PROFILE, resources).reasons["n_gpu_layers"]
    assert reason.startswith(words)
    assert f"decoding {decode * CPU_DECODE / N_WEIGHTS:.3g} tokens/s on the GPU" in reason
    assert "23.8 and 4.66 on the CPU; a typical turn takes" in reason
    assert "89.6 s on the CPU" in reason


def test_reason_says_why_a_measured_gpu_is_not_used() -> None:
    def explain(decode: float, prefill: float, free_bytes: int = 24 * GIB) -> str:
        resources = machine(
            64 * GIB, gpu_free_bytes=free_bytes, gpu_name="a GPU", gpu_speeds=make_speeds(decode, prefill)
        )
        return plan(PROFILE, resources).reasons["n_gpu_layers"]

    assert explain(0.5, 0.5).startswith(
        "a GPU is not used: slower than the CPU in prefill (11.9 against 23.8 tokens/s) and decoding (2.33 against "
        "4.66 tokens/s); a typical turn takes "
    )
    assert explain(1.2, 0.2).startswith("a GPU is not used: no use of it shortens a typical turn; measured: prefill ")
    words = "a GPU is not used: its faster uses need more memory than is free; measured: prefill "
    assert explain(2.0, 20.0, free_bytes=1 << 20).startswith(words)


def test_reason_says_that_no_layer_fits_on_an_unmeasured_gpu() -> None:
    resources = machine(64 * GIB, gpu_free_bytes=1 << 20, gpu_name="a GPU")
    reason = plan(PROFILE, resources).reasons["n_gpu_layers"]
    words = "; its speed with this model was not measured"
    assert (
        plan(PROFILE, machine(64 * GIB, gpu_free_bytes=24 * GIB, gpu_name="a GPU"))
        .reasons["n_gpu_layers"]
        .endswith(words)
    )
    assert reason == "a GPU is not used: no layer of the model fits into the 1 MB of memory that are free for it"


def test_model_on_a_measured_gpu_is_ranked_by_its_speed_there() -> None:
    speeds = make_speeds(2.0, 20.0)
    resources = machine(64 * GIB, gpu_free_bytes=24 * GIB, gpu_name="a GPU", gpu_speeds=speeds)
    candidate = Candidate(name="m", quant="Q8_0", profile=PROFILE, quality=quality("Q8_0", N_WEIGHTS))
    speed = evaluate(candidate, resources).speed
    assert speed is not None
    assert speed.decode_tps == pytest.approx(2 * CPU_DECODE / N_WEIGHTS)


def test_speeds_of_a_described_machine_are_used(tmp_path: Path) -> None:
    """The output of `edgechat doctor --json` has them."""
    gpu = Gpu(name="a GPU", total_bytes=24 * GIB, free_bytes=20 * GIB, speeds=make_speeds(0.5, 20.0))
    profile = msgspec.structs.replace(read_profile(tmp_path), gpus=(gpu,))
    described = machine_from_profile(msgspec.json.decode(msgspec.json.encode(profile), type=HardwareProfile))
    assert described.gpu_speeds == gpu.speeds
    assert (described.gpu_free_bytes, described.gpu_is_unified) == (20 * GIB, False)
