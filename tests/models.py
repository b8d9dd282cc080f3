"""Tiny random models, written with the gguf package: small enough to make for one test."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

N_EMBD = 64
N_HEAD = 4
N_FF = 128
N_LAYER = 2
N_CTX = 256
TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}<|assistant|>"
CONTROL = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")


def write_tiny_llama(
    path: Path, *, template: str | None = TEMPLATE, seed: int = 0, architecture: str = "llama"
) -> Path:
    """A llama with random weights, a byte-level vocabulary, and control tokens."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(N_CTX)
    writer.add_embedding_length(N_EMBD)
    writer.add_block_count(N_LAYER)
    writer.add_feed_forward_length(N_FF)
    writer.add_head_count(N_HEAD)
    writer.add_head_count_kv(N_HEAD // 2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(N_EMBD // N_HEAD)
    n_vocab = _add_vocabulary(writer)
    if template is not None:
        writer.add_chat_template(template)
    _add_tensors(writer, n_vocab, np.random.default_rng(seed))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_vocabulary(writer: gguf.GGUFWriter) -> int:
    """SentencePiece style: unknown, bos, eos, one token per byte, some words, the control tokens."""
    kinds = gguf.TokenType
    tokens = [("<unk>", kinds.UNKNOWN), ("<s>", kinds.CONTROL), ("</s>", kinds.CONTROL)]
    tokens += [(f"<0x{byte:02X}>", kinds.BYTE) for byte in range(256)]
    words = [chr(c) for c in range(33, 127)] + ["▁", "▁a", "▁the", "he", "th", "in", "er", "an"]
    tokens += [(word, kinds.NORMAL) for word in words]
    tokens += [(text, kinds.CONTROL) for text in CONTROL]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([text for text, _ in tokens])
    writer.add_token_scores([-float(i) for i in range(len(tokens))])
    writer.add_token_types([kind for _, kind in tokens])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    return len(tokens)


def _add_tensors(writer: gguf.GGUFWriter, n_vocab: int, random: np.random.Generator) -> None:
    def matrix(name: str, n_out: int, n_in: int) -> None:
        writer.add_tensor(name, random.normal(0, n_in**-0.5, (n_out, n_in)).astype(np.float32))

    def ones(name: str) -> None:
        writer.add_tensor(name, np.ones(N_EMBD, dtype=np.float32))

    matrix("token_embd.weight", n_vocab, N_EMBD)
    matrix("output.weight", n_vocab, N_EMBD)
    ones("output_norm.weight")
    for block in range(N_LAYER):
        start = f"blk.{block}."
        ones(start + "attn_norm.weight")
        ones(start + "ffn_norm.weight")
        matrix(start + "attn_q.weight", N_EMBD, N_EMBD)
        matrix(start + "attn_k.weight", N_EMBD // 2, N_EMBD)
        matrix(start + "attn_v.weight", N_EMBD // 2, N_EMBD)
        matrix(start + "attn_output.weight", N_EMBD, N_EMBD)
        matrix(start + "ffn_gate.weight", N_FF, N_EMBD)
        matrix(start + "ffn_up.weight", N_FF, N_EMBD)
        matrix(start + "ffn_down.weight", N_EMBD, N_FF)
