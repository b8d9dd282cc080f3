"""Computes the header of a model in another quant: the type and size of each tensor under a quantisation preset."""

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
"""Quants that `edgechat plan` compares, smallest first. Other quants lie between these or need an importance matrix."""
_PRESET_NUMBERS: Final = {name: number for number, name in FILE_TYPES.items()}


class QuantModel(msgspec.Struct, frozen=True, kw_only=True):
    """Properties of a model on which llama.cpp's choice of tensor types depends."""

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


def quant_model(header: ModelHeader) -> QuantModel:
    """Return the properties that llama.cpp's rules need. Raises ModelFileError for an invalid number of layers."""
    parts = read_layers(header)
    first = next((layer for layer in parts.layers if layer.n_head_kv), parts.layers[0] if parts.layers else None)
    return QuantModel(
        architecture=header.architecture, n_embd=header.n_embd, n_ff=header.hparam("feed_forward_length"),
        n_layer=header.n_layers, n_head=header.hparam("attention.head_count"),
        n_head_kv=first.n_head_kv if first else 0, n_expert=header.hparam("expert_count"),
        key_length=first.key_length if first else 0, value_length=first.value_length if first else 0,
        tensors=[(t.name, t.shape, t.type_id) for t in sorted(header.tensors, key=_order)],
    )  # fmt: skip


def _order(tensor: Tensor) -> tuple[int, str]:
    """Sort key in the order of llama.cpp's weight_name_comparer, because some rules count earlier tensors."""
    match = re.match(r"blk\.(\d{1,9})\.", tensor.name)
    return (int(match[1]) if match else -1, tensor.name)


def preset_number(quant: str) -> int:
    """Return the llama_ftype number of a preset. Raises KeyError for an unknown name."""
    return _PRESET_NUMBERS[quant]


def requantized_header(header: ModelHeader, quant: str, types: Sequence[int]) -> ModelHeader:
    """Return `header` with another quant.

    `types` are the types of `quant_model(header).tensors`, in the same order.
    """
    offset, tensors = 0, []
    for tensor, type_id in zip(sorted(header.tensors, key=_order), types, strict=True):
        size = tensor_bytes(tensor, type_id)
        tensors.append(Tensor(name=tensor.name, shape=tensor.shape, type_id=type_id, offset=offset, size_bytes=size))
        offset += size
    return msgspec.structs.replace(
        header, tensors=tuple(tensors), file_bytes=header.data_offset + offset,
        metadata=header.metadata | {"general.file_type": preset_number(quant)},
    )  # fmt: skip


def tensor_bytes(tensor: Tensor, type_id: int) -> int:
    """Return the size in bytes of a tensor stored in the type `type_id`."""
    kind = TENSOR_TYPES[type_id]
    return math.prod(tensor.shape) // kind.block_size * kind.block_bytes
