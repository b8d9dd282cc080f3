"""Tiny Gemma 4 models and their assistants, which draft from the target's own KV cache."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from tests.draft_models import (
    CHAIN_LOGIT,
    HEAD,
    attention_shapes,
    embed_chain_output,
    end_shapes,
    feed_forward_shapes,
    make_metadata,
    name_block,
    rotate_cycle,
    silence_layers,
)
from tests.models import N_EMBD, N_FF, N_HEAD, N_WINDOW
from tests.tiny_files import Shapes, TinyFile, Vocabulary, draw_tensors

N_LAYER: Final = 4
N_ASSISTANT_EMBD: Final = 2 * N_EMBD
_NORMS: Final[Shapes] = {
    "post_attention_norm.weight": (N_EMBD,), "post_ffw_norm.weight": (N_EMBD,), "attn_q_norm.weight": (HEAD,)
}  # fmt: skip


def make_gemma4(seed: int = 0, *, n_window: int = N_WINDOW) -> TinyFile:
    """Return a Gemma 4 model: all layers but the last have a sliding window of `n_window` tokens."""
    shapes = end_shapes(len(Vocabulary().tokens)) | {"rope_freqs.weight": (HEAD // 2,)}
    for block in range(N_LAYER):
        layer = attention_shapes(N_EMBD) | _NORMS | {"attn_k_norm.weight": (HEAD,)} | feed_forward_shapes("ffn_norm")
        shapes |= name_block(block, layer)
    metadata = make_metadata(N_LAYER) | _make_window_metadata(N_LAYER, n_window)
    return _even_frequencies(TinyFile("gemma4", metadata, draw_tensors(shapes, seed)))


def make_assistant(seed: int = 0, *, n_layer: int = 2, n_window: int = N_WINDOW) -> TinyFile:
    """Return an assistant for `make_gemma4`, whose last layer attends to all tokens and the others to the window."""
    n_vocab, width = len(Vocabulary().tokens), N_ASSISTANT_EMBD
    shapes: Shapes = {
        "token_embd.weight": (n_vocab, width), "output_norm.weight": (width,), "rope_freqs.weight": (HEAD // 2,),
        "nextn.pre_projection.weight": (width, 2 * N_EMBD), "nextn.post_projection.weight": (N_EMBD, width),
    }  # fmt: skip
    layer: Shapes = {
        "attn_norm.weight": (width,), "attn_q.weight": (N_EMBD, width), "attn_output.weight": (width, N_EMBD),
        "attn_q_norm.weight": (HEAD,), "post_attention_norm.weight": (width,), "layer_output_scale.weight": (1,),
        "ffn_norm.weight": (width,), "ffn_gate.weight": (N_FF, width), "ffn_up.weight": (N_FF, width),
        "ffn_down.weight": (width, N_FF), "post_ffw_norm.weight": (width,),
    }  # fmt: skip
    for block in range(n_layer):
        shapes |= name_block(block, layer)
    metadata = make_metadata(n_layer) | _make_window_metadata(n_layer, n_window)
    metadata |= {"embedding_length": width, "embedding_length_out": N_EMBD, "nextn_predict_layers": n_layer}
    return _even_frequencies(TinyFile("gemma4-assistant", metadata, draw_tensors(shapes, seed)))


def copy_truth_to_assistant(file: TinyFile) -> TinyFile:
    """Change an assistant so that its drafts are right for a chain; return it.

    It ignores the token and rotates the hidden row of the token before it, as the heads of the other models.
    """
    silence_layers(file)
    width = N_ASSISTANT_EMBD
    before, behind = np.zeros((width, 2 * N_EMBD)), np.zeros((N_EMBD, width))
    before[:N_EMBD, N_EMBD:] = rotate_cycle()
    behind[:, :N_EMBD] = np.eye(N_EMBD)
    table = np.zeros((file.n_vocab, width))
    table[:, :N_EMBD] = embed_chain_output(file.n_vocab, CHAIN_LOGIT * (N_EMBD / width) ** 0.5)
    values = {"nextn.pre_projection": before, "nextn.post_projection": behind, "token_embd": table}
    file.tensors |= {f"{name}.weight": value.astype(np.float32) for name, value in values.items()}
    return file


def _make_window_metadata(n_layer: int, n_window: int) -> dict[str, Any]:
    return {
        "attention.sliding_window": n_window, "attention.sliding_window_pattern": [True] * (n_layer - 1) + [False],
        "attention.key_length": HEAD, "attention.value_length": HEAD, "attention.key_length_swa": HEAD,
        "attention.value_length_swa": HEAD, "embedding_length_per_layer_input": 0, "rope.freq_base_swa": 10_000.0,
        "attention.shared_kv_layers": 0, "attention.head_count": N_HEAD,
    }  # fmt: skip


def _even_frequencies(file: TinyFile) -> TinyFile:
    file.tensors["rope_freqs.weight"] = np.ones(HEAD // 2, dtype=np.float32)
    return file
