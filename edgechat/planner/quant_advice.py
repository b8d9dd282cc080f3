"""Advice to quantise an installed model on this machine, where another quant would decode much faster."""

from __future__ import annotations

from typing import Final

import msgspec

from edgechat.modelfile.header import Tensor
from edgechat.modelfile.profile import ModelProfile
from edgechat.modelfile.tensor_types import TENSOR_TYPES
from edgechat.planner.memory import LoadOptions
from edgechat.planner.requantize import tensor_bytes
from edgechat.planner.throughput import KernelSpeeds, predict_speed

_TYPE_IDS: Final = {tensor_type.name: type_id for type_id, tensor_type in TENSOR_TYPES.items()}
# Quants with the fastest kernels, by decreasing quality.
_FAST_QUANTS: Final = ("Q8_0", "Q4_0")
# Quants that can be quantised with as good a result as full precision.
_PRECISE_QUANTS: Final = ("F32", "F16", "BF16", "Q8_0")
# Minimum decode speed, relative to the file's speed, of a suggested quant. The second minimum applies if the file is
# not precise, so that a download in the same quant would have better quality.
_MIN_RATIO: Final = 1.3
_MIN_LOSSY_RATIO: Final = 1.5
# Rows of Q6_K consist of blocks of this length; llama.cpp uses Q8_0 for other rows.
_K_BLOCK: Final = 256


class QuantAdvice(msgspec.Struct, frozen=True, kw_only=True):
    """Another quant of a model file, and how much faster it decodes on this machine."""

    quant: str
    ratio: float
    """Predicted decode speed, relative to that of the file."""
    weight_bytes: int


def find_faster_quants(profile: ModelProfile, speeds: KernelSpeeds, options: LoadOptions) -> list[QuantAdvice]:
    """Return smaller quants by decreasing quality; each decodes much faster than the file and the quants before it.

    Empty for models with layers on a GPU, and if `speeds` lacks a tensor type.
    """
    speed = predict_speed(profile, speeds, options=options)
    if speed is None or options.uses_gpu:
        return []
    is_precise = profile.quant in _PRECISE_QUANTS
    advice: list[QuantAdvice] = []
    for quant in _FAST_QUANTS:
        quantized = _quantize(profile, quant)
        if quantized is None or quant == profile.quant or quantized.tensor_bytes >= profile.tensor_bytes:
            continue
        faster = predict_speed(quantized, speeds, options=options)
        ratio = faster.decode_tps / speed.decode_tps if faster is not None else 0.0
        min_ratio = (_MIN_RATIO if is_precise else _MIN_LOSSY_RATIO) * (advice[-1].ratio if advice else 1.0)
        if ratio >= min_ratio:
            advice.append(QuantAdvice(quant=quant, ratio=ratio, weight_bytes=quantized.tensor_bytes))
    return advice


def format_quant_advice(name: str, profile: ModelProfile, advice: list[QuantAdvice]) -> str:
    """Return a sentence about the result of `find_faster_quants`, with the command; "" without advice."""
    if not advice:
        return ""
    first, *others = advice
    texts = [f"{first.quant} of this file would decode {first.ratio:.1f} times as fast here"]
    texts += [f"{other.quant} {other.ratio:.1f} times" for other in others]
    command = f"`edgechat models quantize {name} {first.quant}`"
    if profile.quant in _PRECISE_QUANTS:
        return f"{', '.join(texts)}: {command}"
    return (
        f"{', '.join(texts)}. Best download {first.quant}; {command} works offline, but its result has the losses of "
        "both quants"
    )


def _quantize(profile: ModelProfile, quant: str) -> ModelProfile | None:
    """Return the approximate profile of the file in another quant; None if none of its tensors can be quantised.

    The output matrix is stored in Q6_K, or in Q8_0 if its rows do not consist of whole blocks of Q6_K. Vectors and
    other tensors in F32 keep their type, except in a file of full precision.
    """
    output_name = "output.weight" if profile.has_output_tensor else "token_embd.weight"
    tensors, has_changed = [], False
    for tensor in profile.tensors:
        type_name = quant
        if tensor.name == output_name and quant != "Q8_0":
            type_name = "Q8_0" if tensor.shape[0] % _K_BLOCK else "Q6_K"
        is_matrix = len(tensor.shape) > 1 and min(tensor.shape[:2]) > 1
        block_size = TENSOR_TYPES[_TYPE_IDS[type_name]].block_size
        if not is_matrix or tensor.shape[0] % block_size or (tensor.type == "F32" and profile.quant != "F32"):
            tensors.append(tensor)
            continue
        has_changed = True
        tensors.append(_change_type(tensor, _TYPE_IDS[type_name]))
    return profile.with_tensors(profile.path, tuple(tensors), quant) if has_changed else None


def _change_type(tensor: Tensor, type_id: int) -> Tensor:
    return msgspec.structs.replace(tensor, type_id=type_id, size_bytes=tensor_bytes(tensor, type_id))
