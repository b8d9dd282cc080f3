"""Small random models: with tensors that llama.cpp does not load or reads row by row, and with rows for K-quants."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from tests.models import N_EMBD, N_FF, N_HEAD, N_LAYER, N_WINDOW, TEMPLATE, TinyTensors, add_vocabulary, open_writer

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


def write_wide_llama(path: Path, *, n_embd: int = 256, n_layer: int = 8, has_output: bool = True) -> Path:
    """Write a llama model in F16 whose rows have `n_embd` values; K-quants need a multiple of 256.

    The heads have `n_embd / 4` values, so that the KV cache can be quantised. Without `has_output`, the token embedding
    is also the output matrix. The logits have a standard deviation of about 4, as those of trained models.
    """
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("wide")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(2048)
    writer.add_embedding_length(n_embd)
    writer.add_block_count(n_layer)
    writer.add_feed_forward_length(2 * n_embd)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(n_embd // 4)
    n_vocab = add_vocabulary(writer)
    writer.add_chat_template(TEMPLATE)
    generator = np.random.default_rng(0)

    def add_matrix(name: str, n_rows: int, n_columns: int, scale: float = 1.0) -> None:
        values = generator.standard_normal((n_rows, n_columns), dtype=np.float32) * np.float32(scale * n_columns**-0.5)
        writer.add_tensor(name, values.astype(np.float16))

    def add_norm(name: str) -> None:
        writer.add_tensor(name, np.ones(n_embd, dtype=np.float32))

    add_matrix("token_embd.weight", n_vocab, n_embd, 1.0 if has_output else 4.0)
    add_norm("output_norm.weight")
    if has_output:
        add_matrix("output.weight", n_vocab, n_embd, 4.0)
    for block in range(n_layer):
        start = f"blk.{block}."
        add_norm(start + "attn_norm.weight")
        add_norm(start + "ffn_norm.weight")
        add_matrix(start + "attn_q.weight", n_embd, n_embd)
        add_matrix(start + "attn_k.weight", n_embd // 2, n_embd)
        add_matrix(start + "attn_v.weight", n_embd // 2, n_embd)
        add_matrix(start + "attn_output.weight", n_embd, n_embd)
        add_matrix(start + "ffn_gate.weight", 2 * n_embd, n_embd)
        add_matrix(start + "ffn_up.weight", 2 * n_embd, n_embd)
        add_matrix(start + "ffn_down.weight", n_embd, 2 * n_embd)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
