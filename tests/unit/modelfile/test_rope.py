"""Models whose context YaRN can extend."""

from __future__ import annotations

from typing import Any

import pytest

from edgechat.modelfile.header import ModelHeader, Tensor
from edgechat.modelfile.rope import supports_yarn


def header(architecture: str = "qwen2", tensor: str = "blk.0.w", **metadata: object) -> ModelHeader:
    fields = {"general.architecture": architecture, f"{architecture}.context_length": 32768} | {
        f"{architecture}.{key.replace('__', '.')}": value for key, value in metadata.items()
    }
    return ModelHeader("m.gguf", 0, 3, fields, {}, (Tensor(tensor, (64, 64), 0, 0, 1 << 14),), 0)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "qwen3moe"])
def test_plain_rope_can_be_extended(architecture: str) -> None:
    assert supports_yarn(header(architecture))
    assert supports_yarn(header(architecture, rope__scaling__type="none", rope__scaling__factor=1.0))


@pytest.mark.parametrize("architecture", ["mamba", "gpt2", "qwen2vl", "qwen35", "gemma3", "bert", "new"])
def test_other_architectures_are_not_extended(architecture: str) -> None:
    assert not supports_yarn(header(architecture))


@pytest.mark.parametrize(
    "metadata",
    [
        {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0},
        {"rope__scaling__type": "linear", "rope__scaling__factor": 8.0},
        {"rope__scale_linear": 2.0},
        {"rope__scaling__type": "longrope"},
        {"rope__scaling__alpha": 1000.0},
        {"rope__dimension_sections": [16, 24, 24, 0]},
        {"context_length": 0},
        {"pooling_type": 1},
        {"rope__scaling__factor": []},
    ],
)
def test_model_with_its_own_scaling_is_not_extended(metadata: dict[str, Any]) -> None:
    assert not supports_yarn(header(**metadata))


@pytest.mark.parametrize("name", ["rope_freqs.weight", "rope_factors_long.weight", "blk.0.rope_factors_short.weight"])
def test_model_with_frequency_tensors_is_not_extended(name: str) -> None:
    assert not supports_yarn(header("llama", name))
