"""What a context of llama.cpp takes for what was said: keys and values of full layers and of windows, and states.

The same arithmetic as in the pinned version's llama-kv-cache-iswa.cpp, llama-memory-recurrent.cpp and llama-hparams.cpp,
with `swa_full` off and one cache for all sequences; a test compares it with what llama.cpp allocates.
"""

from __future__ import annotations

from typing import Final

from edgechat.modelfile.header import ModelHeader
from edgechat.modelfile.layers import read_layers

CELLS: Final = 256
"""Contexts and windows are rounded up to so many tokens."""
# Numbers of a block and its bytes (ggml-common.h).
_KV_BLOCKS: Final = {"f16": (1, 2), "q8_0": (32, 34)}
_F32_BYTES: Final = 4


def context_bytes(
    header: ModelHeader, n_ctx: int, *, n_seqs: int, n_ubatch: int, n_rs_seq: int = 0, kv_type: str = "f16"
) -> int:
    """Bytes of memory for `n_ctx` tokens in at most `n_seqs` sequences, keys and values in `kv_type`, states in F32.

    Of each state, `n_rs_seq` more are kept. Raises ModelFileError for a number of layers that cannot be.
    """
    return sum(layer_bytes(header, n_ctx, n_seqs=n_seqs, n_ubatch=n_ubatch, n_rs_seq=n_rs_seq, kv_type=kv_type))


def layer_bytes(
    header: ModelHeader, n_ctx: int, *, n_seqs: int, n_ubatch: int, n_rs_seq: int = 0, kv_type: str = "f16"
) -> list[int]:
    """The same for each layer."""
    parts = read_layers(header)
    n_cells = padded(n_ctx)
    window_cells = padded(min(n_cells, parts.window * n_seqs + n_ubatch))
    state = _state_bytes(header) * n_seqs * (1 + n_rs_seq)
    block, block_bytes = _KV_BLOCKS[kv_type]
    return [
        layer.kv_width * (window_cells if layer.memory == "window" else n_cells) * block_bytes // block
        + (state if layer.memory in {"state", "full and state"} else 0)
        for layer in parts.layers
    ]


def states_bytes(header: ModelHeader, n_seqs: int) -> int:
    """Bytes of the states of all layers that have one, for so many sequences."""
    parts = read_layers(header)
    return (parts.count("state") + parts.count("full and state")) * _state_bytes(header) * n_seqs


def _state_bytes(header: ModelHeader) -> int:
    """Of one layer and one sequence: the last inputs of its convolution, and the state itself."""
    conv = max(0, header.hparam("ssm.conv_kernel") - 1)
    inner, size = header.hparam("ssm.inner_size"), header.hparam("ssm.state_size")
    n_embd, n_head = header.n_embd, header.hparam("attention.head_count")
    if head := header.hparam("wkv.head_size"):
        numbers = header.hparam("token_shift_count", 2) * n_embd + n_embd * head
    elif cache := header.hparam("shortconv.l_cache"):
        numbers = n_embd * (cache - 1) + size * inner
    elif head := header.hparam("kda.head_dim"):
        numbers = 3 * (conv or 3) * n_head * head + head * head * n_head
    else:
        numbers = conv * (inner + 2 * header.hparam("ssm.group_count") * size) + size * inner
    return numbers * _F32_BYTES


def padded(tokens: int) -> int:
    """Cells for so many tokens."""
    return -(-tokens // CELLS) * CELLS
