"""Decode and prefill speeds predicted from a kernel benchmark."""

from __future__ import annotations

import msgspec
import pytest

from edgechat.modelfile.header import Tensor
from edgechat.planner.memory import LoadOptions
from edgechat.planner.throughput import DeviceRates, predict_speed, predict_speed_by_bandwidth
from tests.unit.planner.profiles import GIB, Q8_0, WITHOUT_AMX, llama, two_quants, with_layers

EXPERTS = Tensor("blk.0.ffn_up_exps.weight", (2048, 1024, 64), Q8_0, 0, 1 << 27)


def test_speed_is_the_sum_of_products_and_small_operations() -> None:
    [_, q8] = two_quants()
    speed = predict_speed(q8.profile, WITHOUT_AMX, n_past=0)
    assert speed is not None
    n_operations = 260 + 16 * 20
    assert speed.decode_tps == pytest.approx(1 / (1.024e9 / 17e9 + n_operations / 1e7))
    assert speed.prefill_tps == pytest.approx(32 / (1.024e9 / 2.2e9))
    assert speed.ttft_s(1000) == pytest.approx(1000 / speed.prefill_tps + 1 / speed.decode_tps)


def test_speed_of_an_unmeasured_tensor_type_is_unknown() -> None:
    profile = llama().with_tensors("m.gguf", (Tensor("w", (2048, 8), 35, 0, 4000),))
    assert predict_speed(profile, WITHOUT_AMX) is None


def test_file_without_matrix_products_has_no_speed() -> None:
    no_operations = msgspec.structs.replace(WITHOUT_AMX, operations_per_s=0.0)
    assert predict_speed(llama().with_tensors("m.gguf", ()), no_operations) is None


def test_only_the_experts_that_a_token_uses_count() -> None:
    dense = llama().with_tensors("m.gguf", (EXPERTS,))
    mixture = llama(expert_count=64, expert_used_count=8).with_tensors("m.gguf", (EXPERTS,))
    speeds = msgspec.structs.replace(WITHOUT_AMX, operations_per_s=0.0)
    of_dense, of_mixture = predict_speed(dense, speeds, n_past=0), predict_speed(mixture, speeds, n_past=0)
    assert of_dense is not None
    assert of_mixture is not None
    assert of_mixture.decode_tps == pytest.approx(8 * of_dense.decode_tps)
    assert of_dense.prefill_tps < of_mixture.prefill_tps < 8 * of_dense.prefill_tps


@pytest.mark.parametrize(("n_used", "n_experts"), [(8, 160), (8, 384), (4, 72), (6, 66), (1, 1 << 60), (1 << 32, 8)])
def test_any_number_of_experts_has_a_speed(n_used: int, n_experts: int) -> None:
    profile = llama(expert_count=n_experts, expert_used_count=n_used).with_tensors("m.gguf", (EXPERTS,))
    speed = predict_speed(profile, WITHOUT_AMX)
    assert speed is not None
    assert speed.decode_tps > 0
    assert speed.prefill_tps > 0


def test_bandwidth_limits_decoding_and_computation_limits_prefill() -> None:
    profile = llama(weights=GIB)  # 2 ** 30 weights of one byte
    speed = predict_speed_by_bandwidth(profile, DeviceRates(read_bytes_per_s=10 * GIB, prefill_weights_per_s=50 * GIB))
    assert speed is not None
    assert speed.decode_tps == pytest.approx(10)
    assert speed.prefill_tps == pytest.approx(50)
    without_rate = predict_speed_by_bandwidth(profile, DeviceRates(read_bytes_per_s=10 * GIB))
    assert without_rate is not None
    assert without_rate.prefill_tps == pytest.approx(26)
    slow_processor = DeviceRates(read_bytes_per_s=10 * GIB, prefill_weights_per_s=4 * GIB)
    limited = predict_speed_by_bandwidth(profile, slow_processor)
    assert limited is not None
    assert limited.decode_tps == pytest.approx(4)
    assert limited.prefill_tps == pytest.approx(4)
    assert predict_speed_by_bandwidth(profile, DeviceRates()) is None


def test_layers_on_the_gpu_have_its_speed() -> None:
    profile = with_layers(llama(), GIB // 16)
    cpu, gpu = DeviceRates(read_bytes_per_s=10 * GIB), DeviceRates(read_bytes_per_s=100 * GIB)
    half = LoadOptions(n_ctx=512, n_seqs=1, n_gpu_layers=9)  # 8 layers and the output
    speed = predict_speed_by_bandwidth(profile, cpu, gpu, half)
    assert speed is not None
    assert 1 / speed.decode_tps == pytest.approx(0.5 / 10 + 0.5 / 100)
    assert predict_speed_by_bandwidth(profile, cpu, DeviceRates(), half) is None


def test_layers_in_cpu_memory_have_the_measured_speed_of_their_kernels() -> None:
    [_, q8] = two_quants()
    layers = tuple(Tensor(f"blk.{i}.w", (2048, 500_000), Q8_0, 0, 1_088_000_000) for i in range(16))
    profile = q8.profile.with_tensors("m.gguf", layers)
    speeds = msgspec.structs.replace(WITHOUT_AMX, operations_per_s=0.0, attention_rates={"f16": {1: 1e9, 32: 1e9}})
    quarter = LoadOptions(n_ctx=512, n_seqs=1, n_gpu_layers=5)  # 4 layers and the output
    gpu = DeviceRates(read_bytes_per_s=68e9, prefill_weights_per_s=2048e9)
    speed = predict_speed(profile, speeds, n_past=100, options=quarter, gpu_rates=gpu)
    assert speed is not None
    cpu_attention_s = 12 * 100 * 1024 * 4 / 1e9  # 8 heads with keys and values of 64 elements, for groups of 4
    assert 1 / speed.decode_tps == pytest.approx(12 * 1.024e9 / 17e9 + 4 * 1.088 / 68 + cpu_attention_s)
    assert 1 / speed.prefill_tps == pytest.approx(12 * 1.024e9 / 2.2e9 / 32 + 4 * 1.024 / 2048 + cpu_attention_s)
    assert predict_speed(profile, speeds, options=quarter) is None  # the GPU has no known speed
