"""Header of a model in another quant, with the type and size of each tensor after quantisation to a preset."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Final

import msgspec

from edgechat.modelfile.header import ModelHeader, Tensor
from edgechat.modelfile.layers import read_layers
from edgechat.modelfile.tensor_types import FILE_TYPES, TENSOR_TYPES

PRESETS: Final = ("Q2_K", "Q3_K_M", "IQ4_XS", "Q4_0", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "F16")
"""Quants that `edgechat plan` compares, smallest first. Other quants are similar or need an importance matrix."""
_PRESET_NUMBERS: Final = {name: number for number, name in FILE_TYPES.items()}


class QuantModel(msgspec.Struct, frozen=True, kw_only=True):
    """Model properties that determine llama.cpp's choice of tensor types."""

    architecture: str
    n_embd: int
    n_ff: int
    n_layer: int
    n_head: int
    n_head_kv: int
    n_expert: int
    key_length: int
    value_length: int
    tensors: list[tuple[str, tuple[int, ...], int]]
    """Name, shape and ggml type number of each tensor, in the order in which llama.cpp quantises them."""


def make_quant_model(header: ModelHeader) -> QuantModel:
    """Return the properties of a model that determine its tensor types. Raises ModelFileError for too many layers."""
    layers = read_layers(header).layers
    layer = next((layer for layer in layers if layer.n_head_kv), layers[0] if layers else None)
    return QuantModel(
        architecture=header.architecture, n_embd=header.n_embd, n_ff=header.hparam("feed_forward_length"),
        n_layer=header.n_layers, n_head=header.hparam("attention.head_count"),
        n_head_kv=layer.n_head_kv if layer else 0, n_expert=header.hparam("expert_count"),
        key_length=layer.key_length if layer else 0, value_length=layer.value_length if layer else 0,
        tensors=[(t.name, t.shape, t.type_id) for t in sorted(header.tensors, key=_quantization_order)],
    )  # fmt: skip


def _quantization_order(tensor: Tensor) -> tuple[int, str]:
    """Return a sort key that gives the order of llama.cpp's weight_name_comparer.

    Some of llama.cpp's rules for the type of a tensor depend on the tensors before it.
    """
    match = re.match(r"blk\.(\d{1,9})\.", tensor.name)
    return (int(match[1]) if match else -1, tensor.name)


def find_preset_number(quant: str) -> int:
    """Return the llama_ftype number of a preset. Raises KeyError for an unknown name."""
    return _PRESET_NUMBERS[quant]


def make_requantized_header(header: ModelHeader, quant: str, types: Sequence[int]) -> ModelHeader:
    """Return `header` with the tensor types of another quant.

    `types` has one ggml type number for each tensor in `make_quant_model(header).tensors`, in the same order.
    """
    offset, tensors = 0, []
    for tensor, type_id in zip(sorted(header.tensors, key=_quantization_order), types, strict=True):
        size = tensor_bytes(tensor, type_id)
        tensors.append(Tensor(name=tensor.name, shape=tensor.shape, type_id=type_id, offset=offset, size_bytes=size))
        offset += size
    return msgspec.structs.replace(
        header, tensors=tuple(tensors), file_bytes=header.data_offset + offset,
        metadata=header.metadata | {"general.file_type": find_preset_number(quant)},
    )  # fmt: skip


def tensor_bytes(tensor: Tensor, type_id: int) -> int:
    """Return the size in bytes of a tensor stored in the type `type_id`."""
    tensor_type = TENSOR_TYPES[type_id]
    return math.prod(tensor.shape) // tensor_type.block_size * tensor_type.block_bytes
