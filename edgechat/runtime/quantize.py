"""Which type each tensor of a model gets under a preset, by llama.cpp's own rules: so the exact size of every quant."""

from __future__ import annotations

import ctypes
import os

from edgechat.planner.requantize import QuantModel
from edgechat.runtime import bindings
from edgechat.runtime.backends import probe
from edgechat.runtime.backends.bundle import find_bundle

_NUMBERS = ("n_embd", "n_ff", "n_layer", "n_head", "n_head_kv", "n_expert", "key_length", "value_length")
_MAX_LAYERS, _MAX_DIMS, _MAX_NAME = 512, 4, 63


class _Model(ctypes.Structure):
    """edgechat_quant_model of native/src/edgechat.h."""

    _fields_ = (
        ("architecture", ctypes.c_char_p),
        *((name, ctypes.c_uint32) for name in _NUMBERS),
    )


class _Tensor(ctypes.Structure):
    """edgechat_quant_tensor of native/src/edgechat.h."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("shape", ctypes.c_int64 * _MAX_DIMS),
        ("n_dims", ctypes.c_int32),
        ("type", ctypes.c_int32),
    )


def main(arguments: list[str]) -> int:
    """Write a model in another quant: `edgechat _quantise SOURCE TARGET PRESET`, llama_ftype's number. Needs no statistics."""
    source, target, preset = arguments
    bundle = find_bundle()
    module, _ = probe.choose_module(bundle)
    llama = bindings.load(bundle, module).llama
    params = llama.llama_model_quantize_default_params()
    params.ftype = int(preset)
    params.allow_requantize = True
    return int(llama.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params)))


def quantized_types(library: ctypes.CDLL, model: QuantModel, preset: int) -> list[int]:
    """Ggml's numbers of types, in the order of the tensors; empty if llama.cpp has no rules for such a model.

    `preset` is a llama_ftype.
    """
    sound = 0 < model.n_layer <= _MAX_LAYERS and all(
        0 < len(shape) <= _MAX_DIMS and min(shape) > 0 and len(name.encode()) <= _MAX_NAME
        for name, shape, _ in model.tensors
    )  # fmt: skip
    if not sound:
        return []
    count = len(model.tensors)
    numbers = {name: getattr(model, name) for name in _NUMBERS}
    described = _Model(architecture=model.architecture.encode(), **numbers)
    tensors = (_Tensor * count)(*(
        _Tensor(name.encode(), (ctypes.c_int64 * _MAX_DIMS)(*shape, *[1] * (_MAX_DIMS - len(shape))), len(shape), kind)
        for name, shape, kind in model.tensors
    ))  # fmt: skip
    found = (ctypes.c_int32 * count)()
    function = library.edgechat_quant_types
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_void_p]
    if function(ctypes.byref(described), tensors, count, preset, found) != 0:
        return []
    return list(found)
