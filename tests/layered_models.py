"""Tiny random models with tensors that llama.cpp does not load, or reads row by row."""

from __future__ import annotations

from pathlib import Path

from tests.models import N_EMBD, N_FF, N_HEAD, N_LAYER, N_WINDOW, TinyTensors, add_vocabulary, open_writer

N_LAYER_EMBD = 8192
"""Width of the embedding of a token for one layer: the table of `write_tiny_gemma4` takes 24 MB."""
_HEAD_SIZE = N_EMBD // N_HEAD


def write_tiny_glm4(path: Path, *, n_predict_layers: int = 1) -> Path:
    """Write a model of two layers, the last `n_predict_layers` of which only predict further tokens (MTP)."""
    with open_writer(path, "glm4", 2048) as writer:
        writer.add_head_count(N_HEAD)
        writer.add_head_count_kv(N_HEAD // 2)
        writer.add_rope_dimension_count(_HEAD_SIZE)
        writer.add_nextn_predict_layers(n_predict_layers)
        n_vocab = add_vocabulary(writer)
        tensors = TinyTensors(writer, 0)
        tensors.ends(n_vocab)
        for block in range(N_LAYER):
            start = f"blk.{block}."
            for norm in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
                tensors.ones(f"{start}{norm}.weight")
            tensors.attention(start)
            tensors.matrix(start + "ffn_up.weight", 2 * N_FF, N_EMBD)
            tensors.matrix(start + "ffn_down.weight", N_EMBD, N_FF)
            if block >= N_LAYER - n_predict_layers:
                tensors.matrix(start + "nextn.eh_proj.weight", N_EMBD, 2 * N_EMBD)
                tensors.ones(start + "nextn.enorm.weight")
                tensors.ones(start + "nextn.hnorm.weight")
    return path


def write_tiny_gemma4(path: Path) -> Path:
    """Write a model whose embeddings of tokens for each layer are most of the file."""
    with open_writer(path, "gemma4", 2048) as writer:
        writer.add_head_count(N_HEAD)
        writer.add_head_count_kv(N_HEAD // 2)
        for add_length in (
            writer.add_key_length, writer.add_value_length, writer.add_key_length_swa, writer.add_value_length_swa,
            writer.add_rope_dimension_count, writer.add_rope_dimension_count_swa,
        ):  # fmt: skip
            add_length(_HEAD_SIZE)
        writer.add_sliding_window(N_WINDOW)
        writer.add_sliding_window_pattern([True, False])
        writer.add_embedding_length_per_layer_input(N_LAYER_EMBD)
        writer.add_shared_kv_layers(0)
        n_vocab = add_vocabulary(writer)
        tensors = TinyTensors(writer, 0)
        tensors.ends(n_vocab, output=False)
        tensors.matrix("per_layer_token_embd.weight", n_vocab, N_LAYER * N_LAYER_EMBD)
        tensors.matrix("per_layer_model_proj.weight", N_LAYER * N_LAYER_EMBD, N_EMBD)
        tensors.ones("per_layer_proj_norm.weight", N_LAYER_EMBD)
        tensors.ones("rope_freqs.weight", _HEAD_SIZE // 2)
        for block in range(N_LAYER):
            start = f"blk.{block}."
            for norm in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm", "post_norm"):
                tensors.ones(f"{start}{norm}.weight")
            for norm in ("attn_q_norm", "attn_k_norm"):
                tensors.ones(f"{start}{norm}.weight", _HEAD_SIZE)
            tensors.attention(start)
            tensors.feed_forward(start)
            tensors.matrix(start + "inp_gate.weight", N_LAYER_EMBD, N_EMBD)
            tensors.matrix(start + "proj.weight", N_EMBD, N_LAYER_EMBD)
    return path
