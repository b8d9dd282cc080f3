"""Headers on which llama.cpp would stop its process are refused with one sentence."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from edgechat.errors import ModelFileError
from edgechat.modelfile.checks import check_header
from edgechat.modelfile.gguf import read_gguf_header
from edgechat.modelfile.tensor_types import TENSOR_TYPES
from tests.gguf_file import ARRAY, F32, I32, STRING, U32, RawGguf, RawTensor
from tests.models import KINDS, Kind, write_tiny, write_tiny_bert

TYPE_IDS = {kind.name: type_id for type_id, kind in TENSOR_TYPES.items()}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RawGguf]:
    folder = tmp_path_factory.mktemp("models")
    contents: dict[str, RawGguf] = {kind: RawGguf.read(write_tiny(folder / f"{kind}.gguf", kind)) for kind in KINDS}
    contents["bert"] = RawGguf.read(write_tiny_bert(folder / "bert.gguf"))
    return contents


def check(model: RawGguf, folder: Path) -> str:
    """Check a model file; return the error message, or "" if the model is not refused."""
    path, message = model.write(folder / "model.gguf"), ""
    try:
        check_header(read_gguf_header(path))
    except ModelFileError as error:
        message = str(error)
    assert "\n" not in message
    assert message == "" or message.startswith(str(path))
    return message


@pytest.mark.parametrize("kind", [*KINDS, "bert"])
def test_valid_models_pass(models: dict[str, RawGguf], kind: Kind, tmp_path: Path) -> None:
    assert check(models[kind], tmp_path) == ""


@pytest.mark.parametrize(
    ("kind", "key", "type_id", "value", "message"),
    [
        ("llama", "ARCH.block_count", U32, 0, "claims 0 layers; llama.cpp reads 1 to 512"),
        ("llama", "ARCH.block_count", U32, 513, "claims 513 layers"),
        ("mamba", "ARCH.block_count", U32, 2**32 - 1, "claims 4294967295 layers"),
        ("llama", "ARCH.nextn_predict_layers", U32, 3, "claims 3 prediction layers among its 2 layers"),
        ("llama", "ARCH.expert_count", U32, 4, "claims to use 0 of 4 experts"),
        ("llama", "ARCH.expert_used_count", U32, 1, "claims to use 1 of 0 experts"),
        ("moe", "ARCH.expert_used_count", U32, 0, "claims to use 0 of 4 experts"),
        ("moe", "ARCH.expert_used_count", U32, 5, "claims to use 5 of 4 experts"),
        ("moe", "ARCH.expert_used_count", ARRAY, (U32, [2, 5]), "claims to use 5 of 4 experts"),
        ("moe", "ARCH.expert_count", U32, 1025, "claims 1025 experts"),
        ("moe", "ARCH.expert_count", U32, 3, "claims to use 4 of 3 experts"),
        ("moe", "ARCH.expert_group_count", U32, 4, "claims 4 groups of experts, but only 4 experts"),
        ("moe", "ARCH.expert_group_count", U32, 3, "claims to use 0 of 3 groups of its 4 experts"),
        ("moe", "ARCH.expert_group_count", U32, 2, "claims to use 0 of 2 groups of its 4 experts"),
        ("llama", "ARCH.expert_group_count", U32, 1, "claims 1 groups of experts, but only 0 experts"),
        ("llama", "ARCH.rope.scaling.type", STRING, b"evil", "has the RoPE scaling 'evil'"),
        ("llama", "ARCH.rope.scaling.type", STRING, b"", "has the RoPE scaling ''"),
        ("mamba", "ARCH.rope.scaling.type", STRING, b"dynamic", "has the RoPE scaling 'dynamic'"),
        ("llama", "ARCH.attention.layer_norm_rms_epsilon", F32, math.nan, "has the value nan for attention.layer_norm"),
        ("llama", "ARCH.attention.layer_norm_rms_epsilon", F32, -1e-5, "which must be a number of at least 0"),
        ("llama", "ARCH.attention.layer_norm_rms_epsilon", F32, math.inf, "has the value inf"),
        ("bert", "ARCH.attention.layer_norm_epsilon", F32, -math.inf, "has the value -inf"),
        ("llama", "ARCH.attention.group_norm_epsilon", F32, -1.0, "has the value -1.0"),
        ("llama", "general.alignment", U32, 1, "has an alignment of 1 bytes"),
        ("llama", "general.alignment", U32, 16, "has an alignment of 16 bytes"),
        ("sliding", "ARCH.rope.dimension_count", U32, 0, "has the value 0 for rope.dimension_count"),
        ("sliding", "ARCH.rope.dimension_count", U32, 7, "must be an even number up to 16"),
        ("sliding", "ARCH.rope.dimension_count", U32, 64, "must be an even number up to 16"),
        ("sliding", "ARCH.rope.dimension_count_swa", U32, 2**31, "for rope.dimension_count_swa"),
        ("sliding", "ARCH.attention.sliding_window", U32, 2**31, "claims a sliding window of 2147483648 tokens"),
        ("bert", "tokenizer.ggml.seperator_token_id", U32, 4000, "has no seperator token among its 60 tokens"),
    ],
)
def test_value_that_stops_llama_cpp_is_refused(
    models: dict[str, RawGguf], kind: str, key: str, type_id: int, value: Any, message: str, tmp_path: Path
) -> None:
    assert message in check(models[kind].with_value(key, type_id, value), tmp_path)


@pytest.mark.parametrize(
    ("kind", "key", "type_id", "value"),
    [
        ("moe", "ARCH.expert_used_count", ARRAY, (U32, [4, 4])),
        ("moe", "ARCH.expert_group_count", U32, 1),
        ("llama", "ARCH.expert_count", U32, 0),
        ("llama", "ARCH.nextn_predict_layers", U32, 1),
        ("llama", "ARCH.rope.scaling.type", STRING, b"yarn"),
        ("llama", "ARCH.attention.layer_norm_rms_epsilon", F32, 0.0),
        ("llama", "general.alignment", U32, 64),
        ("sliding", "ARCH.rope.dimension_count", U32, 8),
        ("mamba", "ARCH.rope.dimension_count", U32, 0),
        ("sliding", "ARCH.attention.sliding_window", U32, 131072),
        ("llama", "ARCH.unknown", I32, -1),
    ],
)
def test_other_values_are_left_to_llama_cpp(
    models: dict[str, RawGguf], kind: str, key: str, type_id: int, value: Any, tmp_path: Path
) -> None:
    assert check(models[kind].with_value(key, type_id, value), tmp_path) == ""


@pytest.mark.parametrize("type_name", ["I8", "I16", "I32", "I64", "F64", "Q8_1"])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("llama", "token_embd.weight"), ("llama", "output.weight"), ("llama", "blk.0.attn_k.weight"),
        ("llama", "blk.1.ffn_down.weight"), ("moe", "blk.0.ffn_up_exps.weight"), ("moe", "blk.1.ffn_gate_inp.weight"),
        ("mamba", "blk.0.ssm_in.weight"), ("hybrid", "blk.0.shortconv.in_proj.weight"),
        ("bert", "position_embd.weight"),
    ],
)  # fmt: skip
def test_weights_of_a_type_without_a_matrix_product_are_refused(
    models: dict[str, RawGguf], kind: str, name: str, type_name: str, tmp_path: Path
) -> None:
    if TENSOR_TYPES[TYPE_IDS[type_name]].block_size > 1 and "ssm" in name:
        return
    error = check(models[kind].with_type(name, TYPE_IDS[type_name]), tmp_path)
    assert f"has the weights {name!r} of type {type_name}" in error


@pytest.mark.parametrize("type_name", ["F16", "BF16", "Q8_0", "Q4_0", "I32", "F64"])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("llama", "output_norm.weight"), ("llama", "blk.0.attn_norm.weight"), ("bert", "blk.0.attn_q.bias"),
        ("bert", "blk.1.layer_output_norm.bias"), ("mamba", "blk.0.ssm_d"),
    ],
)  # fmt: skip
def test_vectors_of_another_type_than_f32_are_refused(
    models: dict[str, RawGguf], kind: str, name: str, type_name: str, tmp_path: Path
) -> None:
    error = check(models[kind].with_type(name, TYPE_IDS[type_name]), tmp_path)
    assert f"has the tensor {name!r} of type {type_name}; llama.cpp computes with it only in F32" in error


@pytest.mark.parametrize(
    ("kind", "name"), [("mamba", "blk.0.ssm_conv1d.weight"), ("mamba", "blk.1.ssm_a"),
                       ("hybrid", "blk.0.shortconv.conv.weight")],
)  # fmt: skip
def test_matrices_of_element_wise_operations_must_be_f32(
    models: dict[str, RawGguf], kind: str, name: str, tmp_path: Path
) -> None:
    assert "only in F32" in check(models[kind].with_type(name, TYPE_IDS["F16"]), tmp_path)


@pytest.mark.parametrize("type_name", ["F16", "BF16", "Q8_0", "Q4_0", "Q5_1", "IQ4_NL", "MXFP4"])
def test_weights_of_all_quantised_types_pass(models: dict[str, RawGguf], type_name: str, tmp_path: Path) -> None:
    for name in ("token_embd.weight", "blk.0.attn_q.weight", "blk.0.ffn_down.weight"):
        assert check(models["llama"].with_type(name, TYPE_IDS[type_name]), tmp_path) == ""


def test_weights_of_one_row_can_have_any_matrix_type(models: dict[str, RawGguf], tmp_path: Path) -> None:
    changed = models["moe"].copy()
    changed.tensors.append(RawTensor("blk.0.ffn_gate_inp_shexp.weight", (64,), TYPE_IDS["F16"], bytes(128)))
    assert check(changed, tmp_path) == ""


def test_projectors_and_adapters_are_not_checked(models: dict[str, RawGguf], tmp_path: Path) -> None:
    model = models["llama"].with_value("ARCH.block_count", U32, 0)
    assert check(model.with_value("general.type", STRING, b"adapter"), tmp_path) == ""
