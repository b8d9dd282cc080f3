"""Approximate model profiles from the catalogue's dimensions, for plans without a file header."""

from __future__ import annotations

import math
from typing import Any, Final

from edgechat.catalogue.curated import CatalogueModel
from edgechat.modelfile.header import ModelHeader, Tensor
from edgechat.modelfile.profile import ModelProfile
from edgechat.modelfile.tensor_types import TENSOR_TYPES

# Bits per weight of Llama-3.1-8B's files (tools/quantize/README.md of the pinned llama.cpp); those of Q4_0 and Q8_0 are
# computed from block sizes. Small models have more bits per weight, because their vocabulary is a larger part of them.
_BITS_PER_WEIGHT: Final = {
    "F32": 32.0, "F16": 16.0, "BF16": 16.0, "Q8_0": 8.5008, "Q6_K": 6.5633, "Q5_K_M": 5.7036, "Q5_K_S": 5.5704,
    "Q4_K_M": 4.8944, "Q4_K_S": 4.6672, "IQ4_NL": 4.6818, "IQ4_XS": 4.4597, "Q4_0": 4.6, "Q4_1": 5.1,
    "Q3_K_L": 4.2979, "Q3_K_M": 3.996, "IQ3_M": 3.7628, "Q3_K_S": 3.6429, "Q2_K": 3.1593,
}  # fmt: skip
# Tensor type of most weights in a quant, if its name differs from the quant.
_MAIN_TENSOR_TYPES: Final = {
    "Q5_K_M": "Q5_K", "Q5_K_S": "Q5_K", "Q4_K_M": "Q4_K", "Q4_K_S": "Q4_K", "Q3_K_L": "Q3_K", "Q3_K_M": "Q3_K",
    "Q3_K_S": "Q3_K", "IQ3_M": "IQ3_S", "MXFP4_MOE": "MXFP4", "UD-Q4_K_XL": "Q4_K", "UD-Q4_K_M": "Q4_K",
    "UD-Q2_K_XL": "Q2_K", "UD-Q3_K_XL": "Q3_K", "UD-Q5_K_XL": "Q5_K",
}  # fmt: skip
_TYPE_IDS: Final = {tensor_type.name: type_id for type_id, tensor_type in TENSOR_TYPES.items()}
# Typical dimensions of current models, used for catalogue entries that do not state the dimensions.
_DEFAULT_N_EMBD, _DEFAULT_N_VOCAB = 2048, 128_000


def compute_file_sizes(model: CatalogueModel) -> dict[str, tuple[int, bool]]:
    """Return the file size of each quant of a model in bytes, and whether the size is exact.

    An inexact size is computed from the number of weights.
    """
    sizes = {quant: (size_bytes, True) for quant, size_bytes in model.sizes().items()}
    for source in model.sources:
        for quant in (*source.quants, *source.other_quants):
            bits_per_weight = _BITS_PER_WEIGHT.get(quant)
            if quant not in sizes and bits_per_weight is not None and model.dimensions.n_params:
                sizes[quant] = (int(model.dimensions.n_params * bits_per_weight / 8), False)
    return sizes


def make_synthetic_profiles(model: CatalogueModel) -> dict[str, ModelProfile]:
    """Return a profile for each quant. Its placeholder tensors have the same total size as the file of the quant."""
    base_profile = ModelProfile.from_header(_make_header_without_tensors(model))
    return {
        quant: base_profile.with_tensors(
            f"{model.id}:{quant}", _make_placeholder_tensors(model, quant, file_bytes), quant
        )
        for quant, (file_bytes, _) in compute_file_sizes(model).items()
    }


def _make_header_without_tensors(model: CatalogueModel) -> ModelHeader:
    shape = model.dimensions
    n_layers, n_embd = shape.n_layers or 0, shape.n_embd or _DEFAULT_N_EMBD
    n_heads = shape.n_heads or max(1, n_embd // 128)
    n_kv_heads = shape.n_kv_heads or max(1, n_heads // 4)
    # llama.cpp reads embeddings for each layer row by row in the architecture of Gemma 4.
    arch = "gemma4" if shape.n_embd_per_layer else "synthetic"
    metadata: dict[str, Any] = {
        "general.architecture": arch,
        "general.name": model.name,
        f"{arch}.block_count": n_layers,
        f"{arch}.context_length": model.n_ctx_train or 0,
        f"{arch}.embedding_length": n_embd,
        f"{arch}.feed_forward_length": shape.n_ff or 4 * n_embd,
        f"{arch}.attention.head_count": n_heads,
        f"{arch}.attention.head_count_kv": n_kv_heads,
        f"{arch}.attention.shared_kv_layers": shape.n_shared_kv_layers or 0,
        f"{arch}.vocab_size": shape.n_vocab or _DEFAULT_N_VOCAB,
        f"{arch}.expert_count": shape.n_experts or 0,
        f"{arch}.expert_used_count": shape.n_experts_used or 0,
    }
    if shape.head_dim:
        metadata |= {f"{arch}.attention.key_length": shape.head_dim, f"{arch}.attention.value_length": shape.head_dim}
    if shape.window and shape.window_period:
        metadata[f"{arch}.attention.sliding_window"] = shape.window
        metadata[f"{arch}.attention.sliding_window_pattern"] = [
            (i + 1) % shape.window_period != 0 for i in range(n_layers)
        ]
    if shape.n_attention_layers and n_layers:
        interval = max(1, n_layers // shape.n_attention_layers)
        metadata[f"{arch}.ssm.conv_kernel"] = 4
        metadata[f"{arch}.ssm.inner_size"] = 2 * n_embd
        metadata[f"{arch}.ssm.state_size"] = 128
        metadata[f"{arch}.attention.recurrent_layers"] = [(i + 1) % interval != 0 for i in range(n_layers)]
    return ModelHeader(
        path=model.id, file_bytes=0, version=3, metadata=metadata, array_lengths={}, tensors=(), data_offset=0
    )


def _make_placeholder_tensors(model: CatalogueModel, quant: str, file_bytes: int) -> tuple[Tensor, ...]:
    """Return a placeholder tensor for each layer, and another for its experts if a token uses only some of them."""
    shape = model.dimensions
    type_id = _TYPE_IDS.get(_MAIN_TENSOR_TYPES.get(quant, quant), _TYPE_IDS["Q4_K"])
    n_params = shape.n_params or int(file_bytes * 8 / _BITS_PER_WEIGHT.get(quant, _BITS_PER_WEIGHT["Q4_K_M"]))
    expert_fraction = 0.0
    if shape.n_params_active and shape.n_experts and shape.n_experts_used and shape.n_params:
        # Solve this equation for expert_fraction:
        # n_params_active / n_params = 1 - expert_fraction + used_fraction * expert_fraction
        used_fraction = shape.n_experts_used / shape.n_experts
        expert_fraction = min(1.0, max(0.0, (1 - shape.n_params_active / n_params) / max(1e-9, 1 - used_fraction)))
    n_layers = shape.n_layers or 1
    width = shape.n_embd or _DEFAULT_N_EMBD
    tensors = []
    if shape.n_embd_per_layer and shape.n_vocab:
        table_shape = (shape.n_embd_per_layer * n_layers, shape.n_vocab)
        table_bytes = int(file_bytes * min(1.0, math.prod(table_shape) / n_params))
        tensors.append(
            Tensor(
                name="per_layer_token_embd.weight", shape=table_shape, type_id=type_id, offset=0,
                size_bytes=table_bytes,
            )
        )  # fmt: skip
        file_bytes, n_params = file_bytes - table_bytes, n_params - math.prod(table_shape)
    for name, fraction in (("all.weight", 1.0 - expert_fraction), ("ffn_exps.weight", expert_fraction)):
        if fraction:
            n_columns = max(2, int(n_params * fraction / n_layers / width))
            size = int(file_bytes * fraction / n_layers)
            tensors += [
                Tensor(name=f"blk.{i}.{name}", shape=(width, n_columns), type_id=type_id, offset=0, size_bytes=size)
                for i in range(n_layers)
            ]
    return tuple(tensors)
