"""Layers of a model: kinds of memory and dimensions, by architecture."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import gguf
import pytest

from edgechat.errors import ModelFileError
from edgechat.modelfile.header import ModelHeader
from edgechat.modelfile.layers import read_layers
from edgechat.modelfile.split import read_header
from tests.models import write_tiny


def header(architecture: str, **values: Any) -> ModelHeader:
    keys = {f"{architecture}.{key.replace('__', '.')}": value for key, value in values.items()}
    return ModelHeader(
        path="x", file_bytes=0, version=3, metadata={"general.architecture": architecture} | keys, array_lengths={},
        tensors=(), data_offset=0,
    )  # fmt: skip


def memory_kinds(model_header: ModelHeader) -> Counter[str]:
    return Counter(layer.cache_kind for layer in read_layers(model_header).layers)


ATTENTION: dict[str, Any] = {"embedding_length": 64, "attention__head_count": 4, "attention__head_count_kv": 2}


@pytest.mark.parametrize(
    ("model_header", "expected"),
    [
        (header("llama", block_count=4, **ATTENTION), {"full": 4}),
        (header("gemma3", block_count=26, attention__sliding_window=512, **ATTENTION), {"window": 22, "full": 4}),
        (header("gpt-oss", block_count=24, attention__sliding_window=128, **ATTENTION), {"window": 12, "full": 12}),
        (
            header("gemma3n", block_count=30, attention__sliding_window=512, **ATTENTION),
            {"window": 16, "full": 4, "none": 10},
        ),
        (
            header("gemma4", block_count=6, attention__sliding_window=512, attention__shared_kv_layers=2,
                   attention__sliding_window_pattern=[True, True, False] * 2, **ATTENTION),
            {"window": 3, "full": 1, "none": 2},
        ),
        (header("qwen35", block_count=32, ssm__inner_size=4, **ATTENTION), {"state": 24, "full": 8}),
        (header("phi3", block_count=3, attention__sliding_window=2047, **ATTENTION), {"full": 3}),
        (header("llama4", block_count=8, **ATTENTION), {"window": 6, "full": 2}),
        (header("llama4", block_count=8, attention__sliding_window=0, **ATTENTION), {"full": 8}),
        (
            header("qwen35", block_count=5, nextn_predict_layers=1, ssm__inner_size=4, **ATTENTION),
            {"state": 3, "full": 1, "none": 1},
        ),
        (header("mamba", block_count=3, ssm__inner_size=4), {"state": 3}),
        (
            header("lfm2", block_count=4, shortconv__l_cache=3, embedding_length=64, attention__head_count=4,
                   attention__head_count_kv=[0, 2, 0, 0]),
            {"state": 3, "full": 1},
        ),
        (
            header("nemotron_h", block_count=3, ssm__inner_size=4, embedding_length=64, attention__head_count=4,
                   attention__head_count_kv=[0, 2, 0], feed_forward_length=[0, 0, 9]),
            {"state": 1, "full": 1, "none": 1},
        ),
    ],
)  # fmt: skip
def test_memory_kinds_by_architecture(model_header: ModelHeader, expected: dict[str, int]) -> None:
    assert memory_kinds(model_header) == expected


def test_kv_width_of_windows_and_compressed_attention() -> None:
    windowed = header(
        "gemma4", block_count=2, attention__sliding_window=8, attention__sliding_window_pattern=[1, 0],
        attention__key_length=512, attention__value_length=512, attention__key_length_swa=256,
        attention__value_length_swa=256, **ATTENTION,
    )  # fmt: skip
    assert [layer.kv_width for layer in read_layers(windowed).layers] == [2 * 512, 2 * 1024]
    compressed = header(
        "deepseek2", block_count=1, attention__kv_lora_rank=512, attention__key_length=576, attention__value_length=512,
        attention__key_length_mla=192, embedding_length=64, attention__head_count=16, attention__head_count_kv=1,
    )  # fmt: skip
    assert read_layers(compressed).layers[0].kv_width == 576
    with pytest.raises(ModelFileError, match="100000 layers"):
        read_layers(header("llama", block_count=100_000))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("llama", {"full": 2}), ("moe", {"full": 2}), ("sliding", {"window": 1, "full": 1}), ("mamba", {"state": 2}),
        ("hybrid", {"state": 1, "full": 1}),
    ],
)  # fmt: skip
def test_files_of_every_architecture_family(tmp_path: Path, kind: Any, expected: dict[str, int]) -> None:
    model_header = read_header(write_tiny(tmp_path / "m.gguf", kind))
    assert memory_kinds(model_header) == expected
    assert (model_header.kind, model_header.n_parts) == ("model", 1)
    assert model_header.n_params == sum(int(t.n_elements) for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors)


def test_prediction_layers_are_skipped_unless_llama_cpp_loads_them() -> None:
    assert read_layers(header("qwen35", block_count=5, nextn_predict_layers=1)).n_skipped_layers == 1
    assert read_layers(header("qwen35", block_count=5)).n_skipped_layers == 0
    assert read_layers(header("granite-switch", block_count=5, nextn_predict_layers=1)).n_skipped_layers == 0
