"""Tiny models with prediction heads, and pairs of target and draft model; random, or with drafts that are always right.

Targets of chains generate the tokens of a cycle, so the next token is a function of the current one. Token `k` of the
cycle has the embedding of a point on 31 circles, which a fixed rotation moves to the embedding of token `k + 1`. So a
head can compute the next token from a hidden row of the target by a matrix, and it is wrong if it gets another row.
"""

from __future__ import annotations

import functools
from typing import Any, Final

import numpy as np

from tests.models import N_EMBD, N_FF, N_HEAD, N_LAYER
from tests.tiny_files import Shapes, TinyFile, Vocabulary, draw_tensors

HEAD: Final = N_EMBD // N_HEAD
SSM_STATE: Final = 16
SSM_GROUPS: Final = 2
SSM_HEADS: Final = 4
SSM_INNER: Final = SSM_STATE * SSM_HEADS
CONV: Final = 4
# Length of the inputs of the causal convolution: keys, queries and values of all heads.
CONV_WIDTH: Final = 2 * SSM_GROUPS * SSM_STATE + SSM_INNER
N_CTX: Final = 2048
# Tokens of a cycle: bytes of printable characters and words.
CYCLE: Final = [*range(3 + 32, 3 + 127), *range(3 + 256, 3 + 256 + 102)]
# Logit of the next token of a chain: far above the others, so that rounding cannot change it.
CHAIN_LOGIT: Final = 16.0


# Random models


def make_llama(seed: int = 0, *, n_layer: int = N_LAYER, vocabulary: Vocabulary | None = None) -> TinyFile:
    """Return a llama model, as a target or as a draft model."""
    vocabulary = vocabulary or Vocabulary()
    shapes = end_shapes(len(vocabulary.tokens))
    for block in range(n_layer):
        shapes |= name_block(block, attention_shapes(HEAD * N_HEAD) | feed_forward_shapes("ffn_norm"))
    return TinyFile("llama", make_metadata(n_layer), draw_tensors(shapes, seed), vocabulary)


def make_qwen35(seed: int = 0, *, n_layer: int = 4, n_heads: int = 1) -> TinyFile:
    """Return a hybrid model (every second layer is recurrent) with `n_heads` prediction heads; 0 or 1 are valid."""
    metadata = make_metadata(n_layer + n_heads) | make_ssm_metadata()
    if n_heads:
        metadata["nextn_predict_layers"] = n_heads
    shapes = end_shapes(len(Vocabulary().tokens))
    for block in range(n_layer):
        attention = gated_attention_shapes() if block % 2 else delta_net_shapes()
        shapes |= name_block(block, attention | feed_forward_shapes("post_attention_norm"))
    for block in range(n_layer, n_layer + n_heads):
        head = gated_attention_shapes() | feed_forward_shapes("post_attention_norm") | nextn_shapes()
        shapes |= name_block(block, head)
    return TinyFile("qwen35", metadata, draw_tensors(shapes, seed))


def make_eagle3(seed: int = 0, *, layers: tuple[int, ...] = (1, 2, 3), n_embd_target: int = N_EMBD) -> TinyFile:
    """Return an EAGLE-3 head that reads the inputs of `layers` of a target with `n_embd_target` activations."""
    shapes: Shapes = {"fc.weight": (N_EMBD, len(layers) * n_embd_target), "output_norm.weight": (N_EMBD,)}
    attention = {
        "attn_norm.weight": (N_EMBD,), "attn_norm_2.weight": (N_EMBD,), "attn_q.weight": (N_EMBD, 2 * N_EMBD),
        "attn_k.weight": (N_EMBD // 2, 2 * N_EMBD), "attn_v.weight": (N_EMBD // 2, 2 * N_EMBD),
        "attn_output.weight": (N_EMBD, N_EMBD),
    }  # fmt: skip
    shapes |= name_block(0, attention | feed_forward_shapes("ffn_norm"))
    metadata = make_metadata(1) | {"target_layers": list(layers), "target_hidden_size": n_embd_target}
    return TinyFile("eagle3", metadata, draw_tensors(shapes, seed))


def nextn_shapes() -> Shapes:
    """Return the shapes of the tensors that join the token's embedding and the hidden row in a prediction head."""
    return {
        "nextn.eh_proj.weight": (N_EMBD, 2 * N_EMBD), "nextn.enorm.weight": (N_EMBD,), "nextn.hnorm.weight": (N_EMBD,),
        "nextn.shared_head_norm.weight": (N_EMBD,),
    }  # fmt: skip


def make_metadata(n_layer: int) -> dict[str, Any]:
    """Return the metadata that all of these models have, by key without the architecture."""
    return {
        "context_length": N_CTX, "embedding_length": N_EMBD, "block_count": n_layer, "feed_forward_length": N_FF,
        "attention.head_count": N_HEAD, "attention.head_count_kv": N_HEAD // 2,
        "attention.layer_norm_rms_epsilon": 1e-5, "rope.dimension_count": HEAD,
    }  # fmt: skip


def make_ssm_metadata() -> dict[str, Any]:
    """Return the metadata of a model whose every second layer is a gated delta net."""
    return {
        "attention.key_length": HEAD, "attention.value_length": HEAD, "full_attention_interval": 2,
        "rope.dimension_sections": [HEAD // 8] * 4, "ssm.conv_kernel": CONV, "ssm.inner_size": SSM_INNER,
        "ssm.state_size": SSM_STATE, "ssm.time_step_rank": SSM_HEADS, "ssm.group_count": SSM_GROUPS,
    }  # fmt: skip


def end_shapes(n_vocab: int) -> Shapes:
    """Return the shapes of the embeddings, the last norm and the output matrix."""
    return {
        "token_embd.weight": (n_vocab, N_EMBD), "output.weight": (n_vocab, N_EMBD), "output_norm.weight": (N_EMBD,)
    }  # fmt: skip


def name_block(block: int, shapes: Shapes) -> Shapes:
    """Return the shapes of the layer `block`."""
    return {f"blk.{block}.{name}": shape for name, shape in shapes.items()}


def attention_shapes(query_width: int, kv_width: int = N_EMBD // 2) -> Shapes:
    """Return the shapes of an attention layer and the norm before it."""
    return {
        "attn_norm.weight": (N_EMBD,), "attn_q.weight": (query_width, N_EMBD), "attn_k.weight": (kv_width, N_EMBD),
        "attn_v.weight": (kv_width, N_EMBD), "attn_output.weight": (N_EMBD, N_EMBD),
    }  # fmt: skip


def gated_attention_shapes() -> Shapes:
    """Return the shapes of an attention layer whose output a part of the query gates."""
    return attention_shapes(2 * N_EMBD) | {"attn_q_norm.weight": (HEAD,), "attn_k_norm.weight": (HEAD,)}


def delta_net_shapes() -> Shapes:
    """Return the shapes of a gated delta net, which is a recurrent layer."""
    return {
        "attn_norm.weight": (N_EMBD,), "attn_qkv.weight": (CONV_WIDTH, N_EMBD), "attn_gate.weight": (SSM_INNER, N_EMBD),
        "ssm_conv1d.weight": (CONV_WIDTH, CONV), "ssm_dt.bias": (SSM_HEADS,), "ssm_a": (SSM_HEADS,),
        "ssm_beta.weight": (SSM_HEADS, N_EMBD), "ssm_alpha.weight": (SSM_HEADS, N_EMBD),
        "ssm_norm.weight": (SSM_STATE,), "ssm_out.weight": (N_EMBD, SSM_INNER),
    }  # fmt: skip


def feed_forward_shapes(norm: str = "") -> Shapes:
    """Return the shapes of a feed-forward layer, with the norm before it if it has a name."""
    shapes: Shapes = {f"{norm}.weight": (N_EMBD,)} if norm else {}
    return shapes | {
        "ffn_gate.weight": (N_FF, N_EMBD), "ffn_up.weight": (N_FF, N_EMBD), "ffn_down.weight": (N_EMBD, N_FF)
    }  # fmt: skip


# Chains


def follow_chain(token: int, n_tokens: int) -> list[int]:
    """Return the `n_tokens` tokens that a chain generates after `token` of the cycle."""
    start = CYCLE.index(token) + 1
    return [CYCLE[(start + i) % len(CYCLE)] for i in range(n_tokens)]


def turn_into_chain(file: TinyFile, logit: float = CHAIN_LOGIT, *, noise: float = 0.0) -> TinyFile:
    """Change a target or a draft model so that it generates the tokens of the cycle; return it.

    `logit` is the logit of the next token; most others are near 0, and the largest is half as high. The text starts at
    any place of the cycle if the prompt ends with a token outside the cycle. With `noise`, the factor of what the
    random layers add, the model often leaves the cycle, and each token depends on all tokens before it.
    """
    embeddings = _embed_cycle()
    places = {token: i for i, token in enumerate(CYCLE)}
    table = np.stack([embeddings[places.get(token, token % len(CYCLE))] for token in range(file.n_vocab)])
    silence_layers(file, noise)
    file.tensors |= {"token_embd.weight": table, "output.weight": embed_chain_output(file.n_vocab, logit)}
    return file


def embed_chain_output(n_vocab: int, logit: float = CHAIN_LOGIT) -> np.ndarray[Any, Any]:
    """Return the output matrix of a chain: it maps the row of a token to a large `logit` of the next token."""
    output = np.zeros((n_vocab, N_EMBD), dtype=np.float32)
    # The last norm makes a row of length 8 from an embedding, whose length is 1.
    output[CYCLE] = np.roll(_embed_cycle(), 1, axis=0) * (logit / N_EMBD**0.5)
    return output


def copy_truth_to_heads(file: TinyFile) -> TinyFile:
    """Change the prediction heads of a chain so that their drafts are always right; return it.

    A head ignores the token and rotates the hidden row of the token before it, so drafts are right only after the rows
    of the target.
    """
    joint = np.concatenate([np.zeros((N_EMBD, N_EMBD)), rotate_cycle()], axis=1).astype(np.float32)
    for name in file.tensors:
        if name.endswith("nextn.eh_proj.weight"):
            file.tensors[name] = joint
    return file


def copy_truth_to_eagle3(file: TinyFile) -> TinyFile:
    """Change an EAGLE-3 head so that its drafts are right for a chain; return it.

    It reads only the second of the three layers. The feed-forward layer computes the difference between the next row
    and this row: the embeddings of a chain have a constant component, which switches its gate to a linear function.
    """
    silence_layers(file)
    n_inputs = file.tensors["fc.weight"].shape[1] // 3
    select = np.zeros((N_EMBD, 3 * n_inputs))
    select[:, n_inputs : n_inputs + N_EMBD] = np.eye(N_EMBD)
    gate = np.concatenate([np.eye(N_EMBD), -np.eye(N_EMBD)])
    up = np.zeros((2 * N_EMBD, N_EMBD))
    up[:, N_EMBD - 1] = 1.0
    # silu(x) - silu(-x) = x, for a row that the norm has scaled by 8, times the constant component of that row.
    length = N_EMBD**0.5
    constant = length * float(_embed_cycle()[0, -1])
    difference = (rotate_cycle() - np.eye(N_EMBD)) / (length * constant)
    down = np.concatenate([difference, -difference], axis=1)
    values = {"fc": select, "blk.0.ffn_gate": gate, "blk.0.ffn_up": up, "blk.0.ffn_down": down}
    file.tensors |= {f"{name}.weight": value.astype(np.float32) for name, value in values.items()}
    return file


def silence_layers(file: TinyFile, noise: float = 0.0) -> None:
    """Multiply what the layers add by `noise`; if it is 0, the row of a token stays its embedding."""
    last = ("attn_output.weight", "ffn_down.weight", "ssm_out.weight", "ffn_down_exps.weight", "ffn_down_shexp.weight")
    for name, values in file.tensors.items():
        if name.endswith(last):
            file.tensors[name] = values * np.float32(noise)


@functools.cache
def _frequencies() -> np.ndarray[Any, Any]:
    """Return the whole numbers of turns that the circles make in one cycle."""
    n = len(CYCLE)
    distances = np.arange(1, n)
    turns = np.arange(1, n // 2)
    candidates = [np.random.default_rng(seed).permutation(turns)[: N_EMBD // 2 - 1] for seed in range(50)]
    overlaps = [np.cos(2 * np.pi * np.outer(distances, turns) / n).sum(axis=1).max() for turns in candidates]
    return candidates[int(np.argmin(overlaps))]


@functools.cache
def _embed_cycle() -> np.ndarray[Any, Any]:
    """Return the embeddings of the tokens of the cycle, of length 1, whose last component is constant."""
    angles = 2 * np.pi * np.outer(np.arange(len(CYCLE)), _frequencies()) / len(CYCLE)
    rows = np.zeros((len(CYCLE), N_EMBD))
    rows[:, 0 : N_EMBD - 2 : 2], rows[:, 1 : N_EMBD - 2 : 2] = np.cos(angles), np.sin(angles)
    rows[:, N_EMBD - 1] = 1.0
    embeddings: np.ndarray[Any, Any] = (rows / (N_EMBD // 2) ** 0.5).astype(np.float32)
    return embeddings


def rotate_cycle() -> np.ndarray[Any, Any]:
    """Return the matrix that turns the embedding of a token of the cycle into that of the next token."""
    rotation = np.eye(N_EMBD)
    for i, turns in enumerate(_frequencies()):
        angle = 2 * np.pi * turns / len(CYCLE)
        rotation[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = [
            [np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]
        ]  # fmt: skip
    return rotation
