"""Memory estimates from formulas and from llama.cpp's report."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat.modelfile.header import Tensor
from edgechat.modelfile.profile import ModelProfile
from edgechat.planner.memory import MemoryEstimate, convert_reported_buffers, estimate
from tests.unit.planner.profiles import GIB, I8, Q4_0, llama, options


def test_kv_cache_is_counted_by_layer_and_head() -> None:
    # 16 layers, 8 heads of 64 for K and for V, two bytes each: 32 KiB a token, as published for Llama-3.2-1B.
    profile = llama()
    f16, q8 = (estimate(profile, options(profile, 1000, kv_type=kind)).kv_cache for kind in ("f16", "q8_0"))
    assert f16 == 1024 * 32 * 1024  # llama.cpp allocates multiples of 256 tokens
    assert q8 == f16 * 34 // 64


def test_reported_buffer_sizes_replace_the_formulas() -> None:
    profile = llama(type_id=Q4_0)
    report = {
        "CPU": {"model_bytes": 100, "context_bytes": 20, "compute_bytes": 3, "is_host": 1},
        "CPU_REPACK": {"model_bytes": 900, "context_bytes": 0, "compute_bytes": 0, "is_host": 0},
        "CUDA0": {"model_bytes": 7000, "context_bytes": 800, "compute_bytes": 90, "is_host": 0},
    }
    load_options = options(profile, 512, use_mmap=False)
    read = estimate(profile, load_options, convert_reported_buffers(profile, load_options, report))
    assert (read.weights, read.repacked_weights, read.kv_cache, read.compute, read.gpu) == (1000, 0, 20, 3, 7890)
    load_options = options(profile, 512)
    mapped = estimate(profile, load_options, convert_reported_buffers(profile, load_options, report), extra_bytes=5)
    assert (mapped.weights, mapped.repacked_weights, mapped.observed_excess) == (100, 900, 5)
    assert mapped.is_exact
    # The mapped file is complete when the load starts, and nothing else is larger in this example.
    assert mapped.file_cache == profile.tensor_bytes - 100
    assert mapped.total == read.total + 5 + mapped.loading


def test_each_of_four_texts_has_a_suffix_index() -> None:
    profile = llama()
    sizes = [
        estimate(profile, msgspec.structs.replace(options(profile, 8192), n_seqs=n)).speculation for n in (1, 2, 4, 8)
    ]
    assert sizes == [n * 8192 * 64 for n in (1, 2, 4, 4)]


# Breakdown of the starter with the module cpu-sapphirerapids, whose AMX buffer llama.cpp does not call host memory. The
# size of that buffer was measured; the other sizes are examples.
AMX_REPORT = {
    "CPU": {"model_bytes": 0, "context_bytes": 0, "compute_bytes": 104_857_600, "is_host": 1, "is_gpu": 0},
    "CPU_Mapped": {
        "model_bytes": 31_850_496, "context_bytes": 188_743_680, "compute_bytes": 0, "is_host": 1, "is_gpu": 0,
    },
    "AMX": {"model_bytes": 99_975_168, "context_bytes": 0, "compute_bytes": 0, "is_host": 0, "is_gpu": 0},
}  # fmt: skip


def sum_report(report: dict[str, dict[str, int]]) -> int:
    return sum(n for sizes in report.values() for name, n in sizes.items() if name.endswith("_bytes"))


@pytest.mark.parametrize("has_flag", [True, False])
def test_amx_buffer_is_counted_as_repacked_weights_in_cpu_memory(has_flag: bool) -> None:
    profile = llama(type_id=Q4_0)
    report = {n: {k: v for k, v in s.items() if has_flag or k != "is_gpu"} for n, s in AMX_REPORT.items()}
    mapped = convert_reported_buffers(profile, options(profile, 512), report)
    assert (mapped.weights, mapped.repacked_weights, mapped.gpu) == (31_850_496, 99_975_168, 0)
    assert mapped.file_cache == profile.tensor_bytes - 31_850_496
    read = convert_reported_buffers(profile, options(profile, 512, use_mmap=False), report)
    assert (read.weights, read.repacked_weights) == (31_850_496 + 99_975_168, 0)


BUFFER_NAMES = st.sampled_from(
    ["CPU", "CPU_Mapped", "CPU_REPACK", "CPU_KLEIDIAI", "CPU_HBM", "AMX", "ZenDNN", "NPU0", "CUDA0", "CUDA_Host", "X"]
)
SIZES = st.fixed_dictionaries(
    {n: st.integers(0, 1 << 40) for n in ("model_bytes", "context_bytes", "compute_bytes")}
    | {n: st.integers(0, 1) for n in ("is_host", "is_gpu")}
)


@given(st.dictionaries(BUFFER_NAMES, SIZES, max_size=8))
def test_every_byte_of_a_report_is_counted_once(report: dict[str, dict[str, int]]) -> None:
    profile = llama(type_id=Q4_0)
    sizes = convert_reported_buffers(profile, options(profile, 512, use_mmap=False, n_gpu_layers=9), report)
    parts = (sizes.weights, sizes.repacked_weights, sizes.kv_cache, sizes.compute, sizes.gpu)
    assert sum(parts) == sum_report(report)
    gpu_report = {name: s for name, s in report.items() if s["is_gpu"] and not s["is_host"]}
    assert sizes.gpu == sum_report(gpu_report)


@pytest.mark.parametrize("name", ["AMX", "NPU0", "a new name", "CPU_REPACK", ""])
def test_unknown_buffer_type_is_cpu_memory(name: str) -> None:
    profile = llama()
    report = {name: {"model_bytes": 7, "context_bytes": 5, "compute_bytes": 3, "is_host": 0}}
    sizes = convert_reported_buffers(profile, options(profile, 512, use_mmap=False), report)
    assert (sizes.weights, sizes.kv_cache, sizes.compute, sizes.gpu) == (7, 5, 3, 0)


def test_total_is_the_sum_of_all_parts() -> None:
    profile = llama()
    memory = estimate(profile, options(profile, 8192), extra_bytes=7)
    parts = set(MemoryEstimate.__struct_fields__) - {"gpu", "is_exact", "is_unified", "file_cache"}
    assert memory.total == sum(getattr(memory, name) for name in parts)
    unified = msgspec.structs.replace(memory, gpu=GIB, is_unified=True)
    assert unified.total == memory.total + GIB


def with_embedding(*names: str, type_id: int = Q4_0) -> ModelProfile:
    """Return the profile of a model with a tensor of 1 MiB for each name."""
    tensors = tuple(Tensor(name, (2048, 512), type_id, 0, 1 << 20) for name in names)
    return llama().with_tensors("m.gguf", tensors)


def test_weights_with_a_copy_count_once() -> None:
    profile = with_embedding("token_embd.weight", "blk.0.w", "output.weight")
    memory = estimate(profile, options(profile, 512))
    # Only single rows of the token embedding are read.
    assert (memory.weights, memory.repacked_weights, memory.file_cache) == (0, 2 << 20, 3 << 20)
    plain = estimate(profile, options(profile, 512, use_extra_bufts=False))
    assert (plain.weights, plain.repacked_weights, plain.file_cache, plain.loading) == (3 << 20, 0, 0, 0)


def test_token_embedding_that_is_the_output_matrix_counts_once() -> None:
    profile = with_embedding("token_embd.weight", "blk.0.w")
    copied = estimate(profile, options(profile, 512))
    assert (copied.weights, copied.repacked_weights, copied.file_cache) == (0, 2 << 20, 2 << 20)
    read = estimate(profile, options(profile, 512, use_mmap=False))
    assert (read.weights, read.repacked_weights, read.file_cache) == (2 << 20, 1 << 20, 0)
    report = {
        "CPU": {"model_bytes": 1 << 20, "context_bytes": 0, "compute_bytes": 0, "is_host": 1},
        "AMX": {"model_bytes": 2 << 20, "context_bytes": 0, "compute_bytes": 0, "is_host": 0},
    }
    exact = convert_reported_buffers(profile, options(profile, 512), report)
    assert (exact.weights, exact.repacked_weights, exact.file_cache) == (0, 2 << 20, 2 << 20)
    report["AMX"]["model_bytes"] = 1 << 20  # the token embedding has no copy, so all of it is read for each token
    exact = convert_reported_buffers(profile, options(profile, 512), report)
    assert (exact.weights, exact.repacked_weights, exact.file_cache) == (1 << 20, 1 << 20, 1 << 20)


def test_mapped_file_counts_while_it_is_larger_than_the_loaded_model() -> None:
    profile = with_embedding("token_embd.weight", *(f"blk.{i}.w" for i in range(1000)), "output.weight")
    memory = estimate(profile, options(profile, 512, n_gpu_layers=17))
    later_bytes = memory.repacked_weights + memory.kv_cache + memory.compute + memory.output
    assert memory.loading > memory.file_cache - later_bytes > 0
    assert memory.total >= profile.tensor_bytes


def test_observed_extra_memory_keeps_its_name_in_json() -> None:
    memory = estimate(llama(), options(llama(), 512), extra_bytes=7)
    assert msgspec.json.decode(msgspec.json.encode(memory))["learned"] == 7


@given(
    st.lists(st.sampled_from(["token_embd.weight", "output.weight", "blk.0.a", "blk.9.b", "x"]), max_size=5),
    st.integers(0, 20),
)
def test_every_weight_is_in_cpu_or_gpu_memory(names: list[str], n_gpu_layers: int) -> None:
    profile = llama().with_tensors("m.gguf", tuple(Tensor(name, (2048, 512), I8, 0, 1 << 20) for name in names))
    on_gpu = estimate(profile, options(profile, 512, n_gpu_layers=n_gpu_layers, use_mmap=False))
    on_cpu = estimate(profile, options(profile, 512, use_mmap=False))
    assert 0 <= on_gpu.weights <= on_cpu.weights
    assert on_cpu.gpu == 0
    assert on_gpu.weights + on_gpu.gpu >= on_cpu.weights
