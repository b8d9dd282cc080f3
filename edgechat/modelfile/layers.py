"""Layers of a model: cache kind (full KV cache, sliding window, recurrent state) and dimensions of each layer.

The metadata is interpreted as in llama.cpp (src/llama-hparams.cpp and src/models/*.cpp of the pinned version).
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from edgechat.errors import ModelFileError
from edgechat.modelfile.header import ModelHeader

MAX_LAYERS: Final = 512
"""Maximum number of layers of a model: LLAMA_MAX_LAYERS of llama.cpp."""

# Sliding-window period n by architecture, for files that contain only the window size: every n-th layer has full
# attention.
_WINDOW_PERIODS: Final = {
    "afmoe": 4, "cohere2": 4, "exaone-moe": 4, "exaone4": 4, "gemma-embedding": 6, "gemma2": 2, "gemma3": 6,
    "gemma3n": 5, "gpt-oss": 2, "llama4": 4, "mellum": 4, "muse-glimmer": 4, "olmo2": 4, "plamo3": 8,
}  # fmt: skip
# Sliding-window period of architectures in which the first layer of each period has full attention.
_DENSE_FIRST_WINDOW_PERIODS: Final = {"cohere2moe": 4, "laguna": 4, "modern-bert": 3, "smallthinker": 4}
# Architectures whose window size llama.cpp reads but ignores: every layer has full attention.
_ARCHITECTURES_WITHOUT_WINDOW: Final = ("phi3",)
# Architectures in which every attention layer has the sliding window.
_WINDOW_ONLY_ARCHITECTURES: Final = ("lfm2", "lfm2moe")
# Index of the first layer that shares the KV cache of earlier layers, by architecture.
_FIRST_SHARED_KV_LAYER: Final = {"gemma3n": 20}
# Attention interval n by architecture: every n-th layer has attention, and the others have a recurrent state.
_ATTENTION_INTERVALS: Final = {"minimax-01": 8, "qwen35": 4, "qwen35moe": 4, "qwen3next": 4}
# Window size in tokens by architecture, for files that do not contain a window size.
_DEFAULT_WINDOWS: Final = {"gemma2": 4096, "llama4": 8192}
# Architectures whose prediction layers llama.cpp loads: they route between adapters, or are the whole (draft) model.
_LOADED_PREDICTION_LAYERS: Final = ("gemma4-assistant", "granite-switch")
# Architectures in which every layer has a recurrent state and no layer has attention.
_STATE_ONLY_ARCHITECTURES: Final = ("mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7")


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """Cache kind and dimensions of one model layer."""

    cache_kind: Literal["full", "window", "state", "full and state", "none"]
    """Cache kind: keys and values of all tokens (`full`) or of the sliding `window`, a recurrent `state`, or none."""
    n_head: int
    n_head_kv: int
    key_length: int
    """Number of elements in a key of one head."""
    value_length: int
    n_ff: int

    @property
    def kv_width(self) -> int:
        """Number of elements that one token adds to the KV cache of this layer."""
        return 0 if self.cache_kind in {"state", "none"} else self.n_head_kv * (self.key_length + self.value_length)


class ModelLayers(msgspec.Struct, frozen=True, kw_only=True):
    """Layers and global dimensions of a model. Values that the model file does not contain are 0 or ""."""

    architecture: str
    layers: tuple[Layer, ...]
    n_embd: int
    n_vocab: int
    n_ctx_train: int
    window: int
    """Sliding window size in tokens."""
    n_experts: int
    n_experts_used: int
    """Number of experts active for each token."""
    kv_lora_rank: int
    """Rank of the compressed keys and values (MLA); 0 without compression."""
    n_skipped_layers: int
    """Number of layers at the end that are not loaded, because they predict further tokens (MTP)."""
    rope_freq_base: float
    rope_scaling: str
    tokenizer: str

    def count_layers(self, cache_kind: str) -> int:
        """Return the number of layers with the cache kind `cache_kind`."""
        return sum(layer.cache_kind == cache_kind for layer in self.layers)


def read_layers(header: ModelHeader) -> ModelLayers:
    """Compute the layers of a model from its header. Raises ModelFileError for more than MAX_LAYERS layers."""
    n_layers = header.n_layers
    if not 0 <= n_layers <= MAX_LAYERS:
        raise ModelFileError(f"{header.path} claims {n_layers} layers; llama.cpp reads at most {MAX_LAYERS}")
    return ModelLayers(
        architecture=header.architecture, layers=tuple(_read_layer(header, index) for index in range(n_layers)),
        n_embd=header.n_embd, n_vocab=header.n_vocab, n_ctx_train=header.n_ctx_train,
        window=_read_window_size(header), n_experts=header.hparam("expert_count"),
        n_experts_used=header.hparam("expert_used_count"), kv_lora_rank=header.hparam("attention.kv_lora_rank"),
        n_skipped_layers=_count_skipped_layers(header),
        rope_freq_base=_read_float(header, "rope.freq_base"), rope_scaling=_read_text(header, "rope.scaling.type"),
        tokenizer=str(header.metadata.get("tokenizer.ggml.model", "")),
    )  # fmt: skip


def _count_skipped_layers(header: ModelHeader) -> int:
    is_loaded = header.architecture in _LOADED_PREDICTION_LAYERS
    return 0 if is_loaded else min(header.hparam("nextn_predict_layers"), header.n_layers)


def _read_layer(header: ModelHeader, index: int) -> Layer:
    n_head = _read_layer_integer(header, "attention.head_count", index, 0)
    n_head_kv = _read_layer_integer(header, "attention.head_count_kv", index, n_head)
    has_window = _has_window(header, index)
    has_mla = bool(header.hparam("attention.kv_lora_rank") and header.hparam("attention.key_length_mla"))
    head_length = header.n_embd // n_head if n_head else 0
    key_length, value_length = (
        _read_layer_integer(header, f"attention.{name}_length", index, head_length) for name in ("key", "value")
    )  # fmt: skip
    if has_window:
        key_length, value_length = (
            _read_layer_integer(header, f"attention.{name}_length_swa", index, default)
            for name, default in (("key", key_length), ("value", value_length))
        )  # fmt: skip
    return Layer(
        cache_kind=_find_cache_kind(header, index, n_head_kv, has_window=has_window),
        n_head=n_head, n_head_kv=n_head_kv,
        # With compressed keys and values (MLA), only the keys are cached.
        key_length=key_length, value_length=0 if has_mla else value_length,
        n_ff=_read_layer_integer(header, "feed_forward_length", index, 0),
    )  # fmt: skip


def _find_cache_kind(
    header: ModelHeader, index: int, n_head_kv: int, *, has_window: bool
) -> Literal["full", "window", "state", "full and state", "none"]:
    architecture = header.architecture
    if index >= header.n_layers - header.hparam("nextn_predict_layers"):
        return "none"  # edgechat does not use multi-token prediction layers
    if architecture in _STATE_ONLY_ARCHITECTURES:
        return "state"
    if architecture == "falcon-h1":
        return "full and state"
    if header.has_recurrent_state and _has_state(header, index, n_head_kv):
        # Some layers of nemotron_h models are feed-forward only.
        return (
            "none"
            if architecture.startswith("nemotron_h") and _read_layer_integer(header, "feed_forward_length", index, 0)
            else "state"
        )
    if index >= _FIRST_SHARED_KV_LAYER.get(architecture, header.n_layers - header.hparam("attention.shared_kv_layers")):
        return "none"
    return "window" if has_window else "full"


def _has_state(header: ModelHeader, index: int, n_head_kv: int) -> bool:
    recurrent_flags = header.metadata.get(f"{header.architecture}.attention.recurrent_layers")
    if isinstance(recurrent_flags, list) and index < len(recurrent_flags):
        return bool(recurrent_flags[index])
    interval = header.hparam("full_attention_interval", _ATTENTION_INTERVALS.get(header.architecture, 0))
    return bool((index + 1) % interval) if interval else n_head_kv == 0


def _has_window(header: ModelHeader, index: int) -> bool:
    architecture = header.architecture
    if not _read_window_size(header) or architecture in _ARCHITECTURES_WITHOUT_WINDOW:
        return False
    if architecture in _WINDOW_ONLY_ARCHITECTURES:
        return True
    pattern = header.metadata.get(f"{architecture}.attention.sliding_window_pattern")
    if isinstance(pattern, list):
        return index < len(pattern) and bool(pattern[index])
    dense_first_period = _DENSE_FIRST_WINDOW_PERIODS.get(architecture)
    period = dense_first_period or _WINDOW_PERIODS.get(architecture, 0)
    if not period:
        return False
    if isinstance(pattern, int) and pattern > 0:
        period = pattern
    return index % period != 0 if dense_first_period else index % period < period - 1


def _read_window_size(header: ModelHeader) -> int:
    if f"{header.architecture}.attention.sliding_window" not in header.metadata:
        return _DEFAULT_WINDOWS.get(header.architecture, 0)
    return header.hparam("attention.sliding_window")


def _read_layer_integer(header: ModelHeader, key: str, index: int, default: int) -> int:
    value: Any = header.metadata.get(f"{header.architecture}.{key}")
    if isinstance(value, list):
        value = value[index] if index < len(value) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else default


def _read_float(header: ModelHeader, key: str) -> float:
    value = header.metadata.get(f"{header.architecture}.{key}")
    return float(value) if isinstance(value, (int, float)) else 0.0


def _read_text(header: ModelHeader, key: str) -> str:
    value = header.metadata.get(f"{header.architecture}.{key}")
    return value if isinstance(value, str) else ""
