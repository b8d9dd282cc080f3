"""What a context of llama.cpp takes for what was said: keys and values of full layers and of windows, and states.

The same arithmetic as in the pinned version's llama-kv-cache-iswa.cpp, llama-memory-recurrent.cpp and llama-hparams.cpp,
with `swa_full` off and one cache for all sequences; a test compares it with what llama.cpp allocates.
"""

from __future__ import annotations

from typing import Final

from edgechat.modelfile.header import ModelHeader
from edgechat.modelfile.shape import shape

CELLS: Final = 256
"""Contexts and windows are rounded up to so many tokens."""
_F16_BYTES: Final = 2
_F32_BYTES: Final = 4


def context_bytes(header: ModelHeader, n_ctx: int, *, n_seqs: int, n_ubatch: int, n_rs_seq: int = 0) -> int:
    """Bytes of memory for `n_ctx` tokens in at most `n_seqs` sequences, keys and values in F16, states in F32.

    Of each state, `n_rs_seq` more are kept. Raises ModelFileError for a number of layers that cannot be.
    """
    parts = shape(header)
    n_cells = _padded(n_ctx)
    window_cells = _padded(min(n_cells, parts.window * n_seqs + n_ubatch))
    kv = sum(
        layer.kv_width * (window_cells if layer.memory == "window" else n_cells) for layer in parts.layers
    )  # fmt: skip
    return kv * _F16_BYTES + states_bytes(header, n_seqs) * (1 + n_rs_seq)


def states_bytes(header: ModelHeader, n_seqs: int) -> int:
    """Bytes of the states of all layers that have one, for so many sequences."""
    parts = shape(header)
    return (parts.count("state") + parts.count("full and state")) * _state_bytes(header) * n_seqs


def _state_bytes(header: ModelHeader) -> int:
    """Of one layer and one sequence: the last inputs of its convolution, and the state itself."""
    conv = max(0, header.number("ssm.conv_kernel") - 1)
    inner, size = header.number("ssm.inner_size"), header.number("ssm.state_size")
    n_embd, n_head = header.n_embd, header.number("attention.head_count")
    if head := header.number("wkv.head_size"):
        numbers = header.number("token_shift_count", 2) * n_embd + n_embd * head
    elif cache := header.number("shortconv.l_cache"):
        numbers = n_embd * (cache - 1) + size * inner
    elif head := header.number("kda.head_dim"):
        numbers = 3 * (conv or 3) * n_head * head + head * head * n_head
    else:
        numbers = conv * (inner + 2 * header.number("ssm.group_count") * size) + size * inner
    return numbers * _F32_BYTES


def _padded(tokens: int) -> int:
    return -(-tokens // CELLS) * CELLS
