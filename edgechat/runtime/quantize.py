"""Quantisation with llama.cpp: requantise a model file, and list a preset's tensor types to compute file sizes."""

from __future__ import annotations

import ctypes
import os

from edgechat import process
from edgechat.planner.requantize import QuantModel
from edgechat.runtime import bindings
from edgechat.runtime.backends import probe
from edgechat.runtime.backends.bundle import find_bundle

_MODEL_FIELDS = ("n_embd", "n_ff", "n_layer", "n_head", "n_head_kv", "n_expert", "key_length", "value_length")
_MAX_LAYERS, _MAX_DIMS, _MAX_NAME_BYTES = 512, 4, 63


class _NativeModel(ctypes.Structure):
    """Structure edgechat_quant_model of native/src/edgechat.h: model properties that determine the tensor types."""

    _fields_ = (
        ("architecture", ctypes.c_char_p),
        *((name, ctypes.c_uint32) for name in _MODEL_FIELDS),
    )


class _NativeTensor(ctypes.Structure):
    """Structure edgechat_quant_tensor of native/src/edgechat.h: name, shape and type of a tensor."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("shape", ctypes.c_int64 * _MAX_DIMS),
        ("n_dims", ctypes.c_int32),
        ("type", ctypes.c_int32),
    )


def main(arguments: list[str]) -> int:
    """Run the child process `edgechat _quantise SOURCE TARGET PRESET MAX_BUFFER_BYTES`, which writes a model file.

    PRESET is the llama_ftype number of a preset that needs no importance matrix. llama.cpp's log, with one line for
    each tensor, goes to standard error. The process ends when its standard input is closed. Returns llama.cpp's exit
    code.
    """
    source, target, preset, max_buffer_bytes = arguments
    process.end_with_parent()
    bundle = find_bundle()
    module, _ = probe.choose_module(bundle)
    llama = bindings.load(bundle, module).llama
    params = llama.llama_model_quantize_default_params()
    params.ftype = int(preset)
    params.allow_requantize = True
    params.max_buf_size = int(max_buffer_bytes)
    return int(llama.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params)))


def choose_quant_types(library: ctypes.CDLL, model: QuantModel, preset: int) -> list[int]:
    """Return the ggml_type of each tensor after quantisation to `preset` (a llama_ftype), by llama.cpp's rules.

    `library` is libedgechat. Returns an empty list if llama.cpp has no rules for the model.
    """
    is_valid = 0 < model.n_layer <= _MAX_LAYERS and all(
        0 < len(shape) <= _MAX_DIMS and min(shape) > 0 and len(name.encode()) <= _MAX_NAME_BYTES
        for name, shape, _ in model.tensors
    )  # fmt: skip
    if not is_valid:
        return []
    count = len(model.tensors)
    native_model = _NativeModel(
        architecture=model.architecture.encode(), **{name: getattr(model, name) for name in _MODEL_FIELDS}
    )
    tensors = (_NativeTensor * count)(*(
        _NativeTensor(
            name.encode(), (ctypes.c_int64 * _MAX_DIMS)(*shape, *[1] * (_MAX_DIMS - len(shape))), len(shape), ggml_type
        )
        for name, shape, ggml_type in model.tensors
    ))  # fmt: skip
    types = (ctypes.c_int32 * count)()
    function = library.edgechat_quant_types
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_void_p]
    if function(ctypes.byref(native_model), tensors, count, preset, types) != 0:
        return []
    return list(types)
