"""Checks of files of drafting heads for values that make llama.cpp abort its process instead of reporting an error.

llama.cpp checks the shapes of most tensors when it loads a file, but not whether they fit the target. The checks are
those of src/models/eagle3.cpp and src/models/gemma4-assistant.cpp of the pinned version.
"""

from __future__ import annotations

import sys
from array import array
from pathlib import Path
from typing import Final

from edgechat.errors import ModelFileError
from edgechat.files import open_regular
from edgechat.modelfile.header import ModelHeader, Tensor
from edgechat.modelfile.heads import find_misfit, read_heads

# Architectures whose graph names the inputs of its layers (t_layer_inp in src/models), which EAGLE-3 reads.
_EAGLE3_TARGETS: Final = frozenset((
    "bailingmoe3", "gemma4", "gpt-oss", "lfm2", "lfm2moe", "llama", "mimo2", "minimax-m2", "nanbeige", "nemotron_h",
    "nemotron_h_moe", "qwen3", "qwen35", "qwen35moe", "qwen3moe", "qwen3next",
))  # fmt: skip
# Those of them whose graph also names the output of the last layer (t_h_nextn).
_LAST_LAYER_TARGETS: Final = frozenset((
    "bailingmoe3", "gemma4", "gpt-oss", "mimo2", "nemotron_h", "nemotron_h_moe", "qwen35", "qwen35moe", "qwen3next",
))  # fmt: skip
_MAX_MAP_BYTES: Final = 8 << 20


def find_pair_problem(header: ModelHeader, target: ModelHeader) -> str:
    """Return why the heads in a file of their own cannot draft for `target`, as a predicate; "" if they can.

    Plans and loads call this, so that no plan has heads that a load refuses. Raises ModelFileError if the file cannot
    be read.
    """
    heads = read_heads(header)
    if heads is None or not heads.is_separate:
        return "contains no heads for another model"
    return find_misfit(heads, target) or find_heads_problem(header, target)


def find_heads_problem(header: ModelHeader, target: ModelHeader) -> str:
    """Return why llama.cpp would abort with the heads in a file of their own, as a predicate; "" if it would not.

    Raises ModelFileError if the file cannot be read.
    """
    if header.n_vocab != target.n_vocab:
        return f"has a vocabulary of {header.n_vocab:,} tokens, and the model has {target.n_vocab:,}"
    n_out = target.hparam("embedding_length_out")
    if n_out and n_out != target.n_embd:
        return f"needs hidden rows as wide as the model, {target.n_embd}, and those of this model have {n_out}"
    n_heads, n_key_heads = header.hparam("attention.head_count"), header.hparam("attention.head_count_kv")
    if n_key_heads and n_heads % n_key_heads:
        return f"has {n_heads} attention heads for {n_key_heads} heads of keys"
    find_problem = _find_eagle3_problem if header.architecture == "eagle3" else _find_assistant_problem
    return find_problem(header, target)


def _find_eagle3_problem(header: ModelHeader, target: ModelHeader) -> str:
    n_layers = target.n_layers - target.hparam("nextn_predict_layers")
    layers = header.metadata.get("eagle3.target_layers")
    reads_last_layer = isinstance(layers, list) and any(isinstance(n, int) and n >= n_layers for n in layers)
    if target.architecture not in (_LAST_LAYER_TARGETS if reads_last_layer else _EAGLE3_TARGETS):
        return f"reads layers of the model that llama.cpp does not expose for the architecture {target.architecture!r}"
    if header.n_layers != 1:
        return f"has {header.n_layers} layers; EAGLE-3 has one"
    lengths = [header.hparam(f"attention.{name}_length") for name in ("key", "value")]
    if lengths[0] != lengths[1]:
        return f"has keys of {lengths[0]} and values of {lengths[1]} elements in a head; EAGLE-3 needs equal lengths"
    return _find_table_problem(header, target)


def _find_table_problem(header: ModelHeader, target: ModelHeader) -> str:
    """Return a problem of the embedding, the output matrix or the map of tokens of an EAGLE-3 head."""
    tensors = {t.name: t for t in header.tensors}
    embedding, output, token_map = (tensors.get(name) for name in ("token_embd.weight", "output.weight", "d2t"))
    if embedding is not None and embedding.shape[-1] < header.n_vocab:
        return f"has the embeddings of {embedding.shape[-1]:,} tokens for a vocabulary of {header.n_vocab:,}"
    if (embedding is None or output is None) and header.n_embd != target.n_embd:
        return f"uses tensors of the model, but has a width of {header.n_embd} where the model has {target.n_embd}"
    if token_map is None:
        return ""
    if output is None or output.shape[-1] != token_map.shape[0]:
        return "maps its own tokens to those of the model, but its output matrix does not have as many"
    return _find_map_problem(header, token_map)


def _find_map_problem(header: ModelHeader, tensor: Tensor) -> str:
    """Return a problem of the map from the tokens of the head to those of the target."""
    if tensor.type != "I64" or tensor.part_index or tensor.size_bytes > _MAX_MAP_BYTES:
        return f"has a token map of type {tensor.type} with {tensor.size_bytes:,} bytes"
    try:
        with open_regular(Path(header.path)) as file:
            file.seek(header.data_offset + tensor.offset)
            data = file.read(tensor.size_bytes)
    except OSError as error:
        raise ModelFileError(f"{header.path} cannot be read: {error.strerror or error}") from error
    tokens = array("q", data[: len(data) // 8 * 8])
    if sys.byteorder == "big":
        tokens.byteswap()
    if len(tokens) != tensor.shape[0] or not tokens or min(tokens) < 0 or max(tokens) >= header.n_vocab:
        return f"maps a token to a number outside the vocabulary of {header.n_vocab:,} tokens"
    return ""


def _find_assistant_problem(header: ModelHeader, target: ModelHeader) -> str:
    """Compare the shapes of keys and values: layers of the assistant read those of the target's last two layers."""
    for suffix in ("", "_swa"):
        for name in ("key", "value"):
            length, expected = (h.hparam(f"attention.{name}_length{suffix}") for h in (header, target))
            if length != expected:
                return f"reads {name}s of {length} elements, and those of the model have {expected}"
    is_sliding = _read_layers(target, "attention.sliding_window_pattern")
    n_key_heads = _read_layers(target, "attention.head_count_kv")
    if len(is_sliding) < 2 or not is_sliding[-2] or is_sliding[-1]:  # noqa: PLR2004
        return "needs a model whose last layer has full attention, and the layer before it a sliding window"
    own_key_heads = _read_layers(header, "attention.head_count_kv")
    own_is_sliding = _read_layers(header, "attention.sliding_window_pattern")
    if not any(own_is_sliding):
        return "has no layer with a sliding window"
    for i, slides in enumerate(own_is_sliding):
        if own_key_heads[i] != n_key_heads[-2 if slides else -1]:
            return f"reads {own_key_heads[i]} heads of keys, and the model has {n_key_heads[-2 if slides else -1]}"
    return ""


def _read_layers(header: ModelHeader, key: str) -> list[int]:
    """Return the value of `key` for each layer. A single value counts for all layers."""
    value = header.metadata.get(f"{header.architecture}.{key}")
    n_layers = header.n_layers
    if isinstance(value, list):
        return [int(v) if isinstance(v, int) else 0 for v in value[:n_layers]] + [0] * (n_layers - len(value))
    return [int(value) if isinstance(value, int) else 0] * n_layers
