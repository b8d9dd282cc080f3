"""Tiny random models with one prediction head (MTP), one of each architecture that llama.cpp can draft with.

The layers are made of parts; their shapes are those for which llama.cpp asks when it loads a file without them.
"""

from __future__ import annotations

from typing import Any, Final

from tests.draft_models import (
    CONV,
    HEAD,
    SSM_GROUPS,
    SSM_HEADS,
    SSM_STATE,
    attention_shapes,
    delta_net_shapes,
    end_shapes,
    feed_forward_shapes,
    gated_attention_shapes,
    make_metadata,
    make_qwen35,
    make_ssm_metadata,
    name_block,
    nextn_shapes,
)
from tests.models import N_EMBD, N_EXPERT, N_FF, N_HEAD, N_WINDOW
from tests.tiny_files import Shapes, TinyFile, Vocabulary, draw_tensors

N_EXPERT_FF: Final = 64
LORA: Final = 32
LATENT_HEAD: Final = 24
ROPE: Final = 8
# llama.cpp rotates the keys of the indexer by Hadamard matrices of 64 rows or more.
N_INDEXER: Final = 64
MAMBA_INNER: Final = 2 * N_EMBD

_E = (N_EMBD,)
_PARTS: dict[str, Shapes] = {
    "attention": attention_shapes(N_EMBD),
    "joint attention": {
        "attn_norm.weight": _E, "attn_qkv.weight": (2 * N_EMBD, N_EMBD), "attn_output.weight": (N_EMBD, N_EMBD)
    },
    "gated attention": gated_attention_shapes(),
    "norms of heads": {"attn_q_norm.weight": (HEAD,), "attn_k_norm.weight": (HEAD,)},
    "latent attention": {
        "attn_norm.weight": _E, "attn_q_a.weight": (LORA, N_EMBD), "attn_q_a_norm.weight": (LORA,),
        "attn_q_b.weight": (N_HEAD * LATENT_HEAD, LORA), "attn_kv_a_mqa.weight": (LORA + ROPE, N_EMBD),
        "attn_kv_a_norm.weight": (LORA,), "attn_k_b.weight": (N_HEAD, LORA, LATENT_HEAD - ROPE),
        "attn_v_b.weight": (N_HEAD, HEAD, LORA), "attn_output.weight": (N_EMBD, N_HEAD * HEAD),
    },
    "gate of heads": {"attn_gate.weight": (N_HEAD, N_EMBD)},
    "indexer": {
        "indexer.attn_k.weight": (N_INDEXER, N_EMBD), "indexer.attn_q_b.weight": (N_HEAD * N_INDEXER, LORA),
        "indexer.k_norm.weight": (N_INDEXER,), "indexer.k_norm.bias": (N_INDEXER,),
        "indexer.proj.weight": (N_HEAD, N_EMBD),
    },
    "delta net": delta_net_shapes(),
    "delta net with joint gates": {
        "ssm_ba.weight": (2 * SSM_HEADS, N_EMBD),
        **{n: shape for n, shape in delta_net_shapes().items() if n not in ("ssm_beta.weight", "ssm_alpha.weight")},
    },
    "Kimi delta net": {
        **attention_shapes(N_EMBD, N_EMBD), "ssm_a": (N_HEAD, 1), "ssm_beta.weight": (N_HEAD, N_EMBD),
        **{f"ssm_conv1d_{name}.weight": (N_EMBD, 1, CONV) for name in "qkv"}, "ssm_dt.bias": _E,
        "ssm_f_a.weight": (N_EMBD, N_EMBD), "ssm_g_a.weight": (N_EMBD, N_EMBD), "ssm_norm.weight": (HEAD,),
    },
    "Mamba 2": {
        "attn_norm.weight": _E, "ssm_in.weight": (2 * MAMBA_INNER + 2 * SSM_GROUPS * SSM_STATE + SSM_HEADS, N_EMBD),
        "ssm_conv1d.weight": (MAMBA_INNER + 2 * SSM_GROUPS * SSM_STATE, CONV),
        "ssm_conv1d.bias": (MAMBA_INNER + 2 * SSM_GROUPS * SSM_STATE,), "ssm_a": (SSM_HEADS, 1),
        "ssm_d": (SSM_HEADS, 1), "ssm_dt.bias": (SSM_HEADS,),
        "ssm_norm.weight": (SSM_GROUPS, MAMBA_INNER // SSM_GROUPS),
        "ssm_out.weight": (N_EMBD, MAMBA_INNER),
    },
    "norm of the layer": {"attn_norm.weight": _E},
    "norm": {"ffn_norm.weight": _E},
    "norm behind": {"post_attention_norm.weight": _E},
    "dense": feed_forward_shapes(),
    "experts": {
        "ffn_gate_inp.weight": (N_EXPERT, N_EMBD), "ffn_gate_exps.weight": (N_EXPERT, N_EXPERT_FF, N_EMBD),
        "ffn_up_exps.weight": (N_EXPERT, N_EXPERT_FF, N_EMBD), "ffn_down_exps.weight": (N_EXPERT, N_EMBD, N_EXPERT_FF),
    },
    "experts without gates": {
        "ffn_gate_inp.weight": (N_EXPERT, N_EMBD), "ffn_up_exps.weight": (N_EXPERT, N_EXPERT_FF, N_EMBD),
        "ffn_down_exps.weight": (N_EXPERT, N_EMBD, N_EXPERT_FF), "ffn_up_shexp.weight": (N_EXPERT_FF, N_EMBD),
        "ffn_down_shexp.weight": (N_EMBD, N_EXPERT_FF),
    },
    "shared expert": {
        "ffn_gate_shexp.weight": (N_EXPERT_FF, N_EMBD), "ffn_up_shexp.weight": (N_EXPERT_FF, N_EMBD),
        "ffn_down_shexp.weight": (N_EMBD, N_EXPERT_FF),
    },
    "gate of the shared expert": {"ffn_gate_inp_shexp.weight": _E},
    "bias of experts with a short name": {"exp_probs_b": (N_EXPERT,)},
    "bias of experts": {"exp_probs_b.bias": (N_EXPERT,)},
    "last norm of the head": {"layer_output_norm.weight": _E},
}  # fmt: skip

_EXPERTS: dict[str, Any] = {
    # All experts are used: otherwise rounding could decide between two experts with almost the same score.
    "expert_count": N_EXPERT, "expert_used_count": N_EXPERT, "expert_feed_forward_length": N_EXPERT_FF,
    "expert_shared_feed_forward_length": N_EXPERT_FF, "expert_shared_count": 1, "expert_gating_func": 2,
    "expert_weights_scale": 1.0, "expert_weights_norm": True,
}  # fmt: skip
_DENSE_FIRST: dict[str, Any] = _EXPERTS | {"leading_dense_block_count": 1}
_WINDOW: dict[str, Any] = _DENSE_FIRST | {"attention.sliding_window": N_WINDOW, "rope.freq_base_swa": 10_000.0}
_LATENT: dict[str, Any] = _DENSE_FIRST | {
    "attention.q_lora_rank": LORA, "attention.kv_lora_rank": LORA, "attention.key_length": LORA + ROPE,
    "attention.value_length": LORA, "rope.dimension_count": ROPE, "attention.key_length_mla": LATENT_HEAD,
    "attention.value_length_mla": HEAD, "attention.head_count_kv": 1,
}  # fmt: skip
_INDEXER: dict[str, Any] = _LATENT | {
    "attention.indexer.head_count": N_HEAD, "attention.indexer.key_length": N_INDEXER,
    "attention.indexer.top_k": 1 << 17,
}  # fmt: skip

_QWEN_FFN = "norm behind, experts, shared expert, gate of the shared expert"
_QWEN = f"gated attention, {_QWEN_FFN}"
_SHARED = "experts, shared expert"
_BIASED = "experts, bias of experts"
_SHORT_BIAS = "experts, bias of experts with a short name"
_LING = f"latent attention, gate of heads, norm, {_SHARED}, bias of experts"
# Metadata, and the parts of each layer. The prediction head is the last layer.
_RECIPES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "qwen3next": (
        _EXPERTS | make_ssm_metadata(),
        (f"delta net with joint gates, {_QWEN_FFN}", _QWEN, f"delta net with joint gates, {_QWEN_FFN}", _QWEN, _QWEN),
    ),
    "qwen35moe": (
        _EXPERTS | make_ssm_metadata(), (f"delta net, {_QWEN_FFN}", _QWEN, f"delta net, {_QWEN_FFN}", _QWEN, _QWEN)
    ),
    "glm4moe": (
        _DENSE_FIRST,
        ("attention, norm behind, dense", *3 * (f"attention, norm behind, {_SHARED}, bias of experts",)),
    ),
    "mimo2": (
        _WINDOW | {"attention.sliding_window_pattern": [False, True, False, False]},
        ("attention, norm, dense", *2 * (f"attention, norm, {_BIASED}",), "joint attention, norm, dense"),
    ),
    "step35": (
        _WINDOW | {"attention.sliding_window_pattern": [False, True, False, False]},
        ("attention, norm, dense", *2 * (f"attention, norm, {_BIASED}",), "attention, norm, dense"),
    ),
    "deepseek2": (_LATENT, ("latent attention, norm, dense", *3 * (f"latent attention, norm, {_SHARED}",))),
    "deepseek32": (
        _INDEXER,
        ("latent attention, indexer, norm, dense", *3 * (f"latent attention, indexer, norm, {_SHARED}",)),
    ),
    "glm-dsa": (
        _INDEXER,
        ("latent attention, indexer, norm, dense", *3 * (f"latent attention, indexer, norm, {_SHARED}",)),
    ),
    "bailingmoe3": (
        _LATENT | {
            "attention.head_count_kv": [1, 0, 1, 1], "rope.dimension_sections": [1, 1, 1, 1], "ssm.conv_kernel": CONV,
            "kda.head_dim": HEAD, "kda.safe_gate": True, "kda.gate_lower_bound": -5.0,
        },
        (
            "latent attention, gate of heads, norm, dense", f"Kimi delta net, norm, {_SHARED}, bias of experts", _LING,
            f"{_LING}, last norm of the head",
        ),
    ),
    "cohere2moe": (
        _WINDOW | {"attention.sliding_window_pattern": [True, False, True, False], "logit_scale": 1.0},
        ("attention, dense", *3 * (f"attention, {_SHARED}",)),
    ),
    "hy_v3": (
        _DENSE_FIRST,
        ("attention, norms of heads, norm, dense", *3 * (f"attention, norms of heads, norm, {_SHORT_BIAS}",)),
    ),
    "nemotron_h_moe": (
        _EXPERTS | {
            "attention.layer_norm_epsilon": 1e-5, "feed_forward_length": [0, 0, N_FF, N_FF],
            "attention.head_count": [N_HEAD, 0, 0, N_HEAD], "attention.head_count_kv": [N_HEAD // 2, 0, 0, N_HEAD // 2],
            "ssm.conv_kernel": CONV, "ssm.inner_size": MAMBA_INNER, "ssm.state_size": SSM_STATE,
            "ssm.time_step_rank": SSM_HEADS, "ssm.group_count": SSM_GROUPS,
        },
        (
            "attention", "Mamba 2", "norm of the layer, experts without gates, bias of experts",
            "attention, norm behind, experts without gates, bias of experts",
        ),
    ),
}  # fmt: skip
NEXTN_ARCHITECTURES: Final = ("qwen35", *_RECIPES)
CHAINED_ARCHITECTURES: Final = ("hy_v3", "mimo2", "step35")
# llama.cpp cannot remove draft tokens from the recurrent state of these, so nothing can be drafted for them.
FIXED_STATE_ARCHITECTURES: Final = ("qwen3next",)


def make_nextn(architecture: str, seed: int = 0, *, n_heads: int = 1) -> TinyFile:
    """Return a model of `architecture` with `n_heads` prediction heads. All other weights are the same for any number.

    llama.cpp accepts more than one head of some architectures only (`CHAINED_ARCHITECTURES`).
    """
    if architecture == "qwen35":
        return make_qwen35(seed, n_heads=n_heads)
    extra, layers = _RECIPES[architecture]
    first_head = len(layers) - 1
    parts = list(layers[:-1]) + [layers[-1]] * n_heads
    metadata = make_metadata(len(parts)) | {"attention.key_length": HEAD, "attention.value_length": HEAD} | extra
    for key, value in metadata.items():
        if isinstance(value, list) and key != "rope.dimension_sections":  # one value for each layer
            metadata[key] = value[:-1] + value[-1:] * n_heads
    if n_heads:
        metadata["nextn_predict_layers"] = n_heads
    shapes = end_shapes(len(Vocabulary().tokens))
    for block, names in enumerate(parts):
        layer: Shapes = nextn_shapes() if block >= first_head else {}
        for name in names.split(", "):
            layer |= _PARTS[name]
        if "layer_output_norm.weight" in layer:
            del layer["nextn.shared_head_norm.weight"]
        shapes |= name_block(block, layer)
    return TinyFile(architecture, metadata, draw_tensors(shapes, seed))
