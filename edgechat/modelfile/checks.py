"""Checks of a model header for values that make llama.cpp abort its process instead of reporting an error.

llama.cpp checks many values with GGML_ASSERT (llama_model_base::load_hparams in src/llama-model.cpp, and the operations
in ggml/src/ggml-cpu/ops.cpp), and some types of weights not at all. The limits are those of the pinned version.
"""

from __future__ import annotations

import math
from typing import Final

from edgechat.errors import ModelFileError
from edgechat.modelfile.header import ModelHeader
from edgechat.modelfile.layers import MAX_LAYERS
from edgechat.modelfile.tensor_types import NON_MATRIX_TYPES

_MAX_EXPERTS: Final = 1024
"""LLAMA_MAX_EXPERTS of llama.cpp."""
_MIN_ALIGNMENT: Final = 32
"""TENSOR_ALIGNMENT of ggml, to which the tensors of a mapped file must be aligned."""
_MAX_WINDOW: Final = 1 << 30
_ROPE_SCALING_TYPES: Final = ("none", "linear", "yarn", "longrope")
_EPSILON_KEYS: Final = (
    "attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon", "attention.group_norm_epsilon",
    "hyper_connection.epsilon",
)  # fmt: skip
# Architectures without rotary position embeddings (llama_model_rope_type), which ignore their parameters.
_ARCHITECTURES_WITHOUT_ROPE: Final = frozenset((
    "bloom", "gpt2", "gptj", "jais", "jamba", "jina-bert-v2", "mamba", "mamba2", "mpt", "nemotron_h", "nemotron_h_moe",
    "refact", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7", "t5", "t5encoder", "wavtokenizer-dec",
))  # fmt: skip
# Architectures that count as having no experts if the file claims at most one expert.
_ARCHITECTURES_OF_ONE_EXPERT: Final = ("hunyuan-dense", "hunyuan-vl")

# Default ids of the tokens that llama.cpp adds to a text, by tokenizer.
_DEFAULT_TOKEN_IDS: Final = {
    "bert": {"bos": 101, "seperator": 102}, "gpt2": {"bos": 11, "eos": 11}, "llama": {"bos": 1, "eos": 2},
    "t5": {"eos": 1},
}  # fmt: skip
_TOKENS_ADDED_BY_DEFAULT: Final = {"bert": ("bos", "seperator"), "llama": ("bos",), "t5": ("eos",)}
_ADD_KEYS: Final = {"bos": "add_bos_token", "eos": "add_eos_token", "seperator": "add_sep_token"}

# Names of tensors that contain indices instead of weights.
_INDEX_TABLES: Final = ("ffn_gate_tid2eid.weight", "d2t", "t2d", "masked_embd_ordering")
# Parts of the names of weights that are added, multiplied or convolved element by element; llama.cpp computes with
# these weights only in F32. The same applies to all tensors that are not weights (biases, states). Other weights can
# have any type except `NON_MATRIX_TYPES`, even if they are vectors (the gate of a shared expert).
_ELEMENTWISE_WEIGHTS: Final = (
    "norm", "rope_freqs", "rope_factors", "attn_sinks", "ssm_conv1d", "shortconv.conv.weight", "time_mix_first",
    "time_mix_lerp", "channel_mix_lerp", "altup_correct_scale", "layer_output_scale", "res_score",
)  # fmt: skip


def check_header(header: ModelHeader) -> None:
    """Raise ModelFileError, with the path and the value, if this model would make llama.cpp abort its process.

    Headers of projectors and adapters are not checked, because they are not loaded as models.
    """
    if header.kind in {"model", "heads"}:
        for problem in (
            _check_layers(header), _check_experts(header), _check_numbers(header), _check_rope(header),
            _check_added_tokens(header), _check_tensors(header),
        ):  # fmt: skip
            if problem:
                raise ModelFileError(f"{header.path} {problem}. The file is damaged or was converted incorrectly.")


def _check_layers(header: ModelHeader) -> str:
    n_layers = header.n_layers
    if not 0 < n_layers <= MAX_LAYERS:
        return f"claims {n_layers} layers; llama.cpp reads 1 to {MAX_LAYERS}"
    n_predict_layers = header.hparam("nextn_predict_layers")
    if n_predict_layers > n_layers:
        return f"claims {n_predict_layers} prediction layers among its {n_layers} layers"
    return ""


def _check_experts(header: ModelHeader) -> str:
    n_experts, n_used = header.hparam("expert_count"), header.hparam("expert_used_count")
    n_groups, n_used_groups = header.hparam("expert_group_count"), header.hparam("expert_group_used_count")
    if n_experts <= 1 and header.architecture in _ARCHITECTURES_OF_ONE_EXPERT:
        n_experts = n_used = 0
    if n_experts > _MAX_EXPERTS:
        return f"claims {n_experts} experts; llama.cpp reads at most {_MAX_EXPERTS}"
    if n_used > n_experts or (n_experts and not n_used):
        return f"claims to use {n_used} of {n_experts} experts for each token"
    if n_groups and n_groups >= n_experts:
        return f"claims {n_groups} groups of experts, but only {n_experts} experts"
    if n_groups > 1 and (n_experts % n_groups or not 0 < n_used_groups < n_groups):
        return f"claims to use {n_used_groups} of {n_groups} groups of its {n_experts} experts"
    return ""


def _check_numbers(header: ModelHeader) -> str:
    for key in _EPSILON_KEYS:
        value = header.metadata.get(f"{header.architecture}.{key}")
        if isinstance(value, float) and not 0 <= value < math.inf:
            return f"has the value {value} for {key}, which must be a number of at least 0"
    alignment = header.metadata.get("general.alignment", _MIN_ALIGNMENT)
    if isinstance(alignment, int) and alignment % _MIN_ALIGNMENT:
        return f"has an alignment of {alignment} bytes; llama.cpp needs a multiple of {_MIN_ALIGNMENT}"
    window = header.hparam("attention.sliding_window")
    if window > _MAX_WINDOW:
        return f"claims a sliding window of {window} tokens"
    return ""


def _check_rope(header: ModelHeader) -> str:
    scaling = header.metadata.get(f"{header.architecture}.rope.scaling.type", "none")
    if isinstance(scaling, str) and scaling not in _ROPE_SCALING_TYPES:
        return f"has the RoPE scaling {scaling[:40]!r}; llama.cpp knows {', '.join(_ROPE_SCALING_TYPES)}"
    n_heads = header.hparam("attention.head_count")
    has_key_length = header.hparam("attention.key_length") > 0
    has_uniform_heads = not isinstance(header.metadata.get(f"{header.architecture}.attention.head_count"), list)
    if header.architecture in _ARCHITECTURES_WITHOUT_ROPE or not n_heads or not (has_key_length or has_uniform_heads):
        return ""
    head_length = header.hparam("attention.key_length", header.n_embd // n_heads)
    for suffix in ("", "_swa"):
        key = f"rope.dimension_count{suffix}"
        n_dims = header.metadata.get(f"{header.architecture}.{key}")
        length = header.hparam(f"attention.key_length{suffix}", head_length)
        if isinstance(n_dims, int) and (not 0 < n_dims <= max(length, 1) or n_dims % 2):
            return f"has the value {n_dims} for {key}, which must be an even number up to {length}"
    return ""


def _check_added_tokens(header: ModelHeader) -> str:
    """Describe a problem with the tokens that llama.cpp adds to the start and end of a text; "" if there is none."""
    tokenizer, n_tokens = str(header.metadata.get("tokenizer.ggml.model", "")), header.n_vocab
    for name, default_id in _DEFAULT_TOKEN_IDS.get(tokenizer, {}).items():
        is_added = header.metadata.get(
            f"tokenizer.ggml.{_ADD_KEYS[name]}", name in _TOKENS_ADDED_BY_DEFAULT.get(tokenizer, ())
        )
        token_id = header.metadata.get(f"tokenizer.ggml.{name}_token_id")
        has_id = isinstance(token_id, int) and 0 <= token_id < n_tokens
        if is_added is True and not has_id and default_id >= n_tokens:
            return f"has no {name} token among its {n_tokens} tokens, although it adds one to every text"
    return ""


def _check_tensors(header: ModelHeader) -> str:
    for tensor in header.tensors:
        name, type_name = tensor.name, tensor.type
        if name.endswith(_INDEX_TABLES):
            continue
        if not name.endswith(".weight") or any(part in name for part in _ELEMENTWISE_WEIGHTS):
            if type_name != "F32":
                return f"has the tensor {name!r} of type {type_name}; llama.cpp computes with it only in F32"
        elif type_name in NON_MATRIX_TYPES:
            return f"has the weights {name!r} of type {type_name}, with which llama.cpp cannot compute"
    return ""
