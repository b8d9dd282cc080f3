"""Types of the keys and values in the KV cache: their size, and the models that llama.cpp can use them with."""

from __future__ import annotations

from typing import Final, Literal

from edgechat.modelfile.layers import Layer
from edgechat.modelfile.profile import ModelProfile

KvType = Literal["f16", "q8_0", "q8_0/q4_0", "q5_1", "q4_0"]
"""Type of keys and values: one name for both, or the type of the keys, a slash, and the type of the values."""
KV_TYPES: Final[tuple[KvType, ...]] = ("f16", "q8_0", "q8_0/q4_0", "q5_1", "q4_0")
"""All types, largest first."""
# Number of elements and bytes in one block, by type (ggml-common.h).
_BLOCKS: Final = {"f16": (1, 2), "q8_0": (32, 34), "q5_1": (32, 24), "q4_0": (32, 18)}
_BLOCK_SIZE: Final = 32
# llama.cpp rotates quantised keys and values (llama-kv-cache.cpp, `attn_rot_k`) if all heads of a cache have the same
# size, a multiple of this number. Without the rotation, types below Q8_0 lose much more precision.
_ROTATION_SIZE: Final = 64
# Architectures for which llama.cpp refuses flash attention, and therefore quantised values.
_ARCHITECTURES_WITHOUT_FLASH_ATTENTION: Final = ("grok",)
# Architectures with compressed keys and values whose header does not say so in `attention.kv_lora_rank`.
_COMPRESSED_KV_ARCHITECTURES: Final = ("deepseek4",)
# Types with kernels for flash attention on GPUs. CUDA's default build converts other types in each step, which is slow,
# and Metal leaves keys and values of different types to the CPU.
_GPU_KV_TYPES: Final[tuple[KvType, ...]] = ("f16", "q8_0", "q4_0")


# Measured by `edgechat bench kv` (docs/benchmarks.md) on a CPU with AMX: the largest value of two models, SmolLM2 135M
# and Qwen2.5 0.5B. Rounding differences are a part of these numbers.
DIVERGENCE_BY_KV_TYPE: Final[dict[KvType, float]] = {
    "f16": 0.0, "q8_0": 0.009, "q8_0/q4_0": 0.0138, "q5_1": 1.02, "q4_0": 0.81,
}  # fmt: skip
"""Mean Kullback-Leibler divergence of the next-token distribution from that with F16, in nats."""


def split_kv_type(kv_type: KvType) -> tuple[str, str]:
    """Return the type of the keys and the type of the values."""
    key_type, _, value_type = kv_type.partition("/")
    return key_type, value_type or key_type


def size_share(kv_type: KvType) -> float:
    """Return the size of keys and values in `kv_type` relative to F16, for keys and values of equal size."""
    return sum(_row_bytes(_BLOCK_SIZE, name) for name in split_kv_type(kv_type)) / (2 * _row_bytes(_BLOCK_SIZE, "f16"))


def token_bytes(layer: Layer, kv_type: KvType) -> int:
    """Return the bytes of the keys and values of one token in one layer; 0 for a layer without a KV cache."""
    if not layer.kv_width:
        return 0
    key_type, value_type = split_kv_type(kv_type)
    return _row_bytes(layer.n_head_kv * layer.key_length, key_type) + _row_bytes(
        layer.n_head_kv * layer.value_length, value_type
    )


def _row_bytes(n_elements: int, type_name: str) -> int:
    block_size, block_bytes = _BLOCKS[type_name]
    return n_elements * block_bytes // block_size


def list_kv_types(profile: ModelProfile, *, on_gpu: bool = False) -> tuple[KvType, ...]:
    """Return the types that llama.cpp can use with a model and that hardly change its predictions, largest first.

    With `on_gpu`, only the types for which GPUs have fast kernels.
    """
    layers = [layer for layer in profile.layers if layer.kv_width]
    has_whole_blocks = all(layer.key_length % _BLOCK_SIZE == layer.value_length % _BLOCK_SIZE == 0 for layer in layers)
    if not has_whole_blocks or profile.architecture in _ARCHITECTURES_WITHOUT_FLASH_ATTENTION:
        return KV_TYPES[:1]
    kv_types = KV_TYPES if _rotates(profile, layers) else KV_TYPES[:2]
    return tuple(kv_type for kv_type in kv_types if not on_gpu or kv_type in _GPU_KV_TYPES)


def _rotates(profile: ModelProfile, layers: list[Layer]) -> bool:
    """Return whether llama.cpp rotates the keys and values of `layers`.

    Layers with a sliding window have a cache of their own. Compressed keys and values (MLA) are not rotated as values,
    and must have the same type.
    """
    if profile.kv_lora_rank or profile.architecture in _COMPRESSED_KV_ARCHITECTURES:
        return False
    for has_window in (False, True):
        cache_layers = [layer for layer in layers if (layer.cache_kind == "window") == has_window]
        head_sizes = {(layer.key_length, layer.value_length) for layer in cache_layers}
        if len(head_sizes) > 1 or any(size % _ROTATION_SIZE for sizes in head_sizes for size in sizes):
            return False
    return True
