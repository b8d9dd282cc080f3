"""Memory of a llama.cpp context: KV cache of full-attention and sliding-window layers, and recurrent states.

Follows llama-kv-cache-iswa.cpp, llama-memory-recurrent.cpp and llama-hparams.cpp of the pinned llama.cpp version, with
`swa_full` off and one unified cache for all sequences. A test compares the results with llama.cpp's allocations.
"""

from __future__ import annotations

from typing import Final

from edgechat.modelfile.profile import ModelProfile
from edgechat.planner.kv_types import KvType, token_bytes

CELL_MULTIPLE: Final = 256
"""llama.cpp rounds the number of cells of contexts and windows up to a multiple of this number."""
_F32_BYTES: Final = 4


def layer_bytes(profile: ModelProfile, n_ctx: int, *, n_seqs: int, n_ubatch: int, kv_type: KvType = "f16") -> list[int]:
    """Return the bytes that each layer needs in a context of `n_ctx` tokens with at most `n_seqs` sequences.

    Keys and values are stored in `kv_type`, recurrent states in F32.
    """
    n_cells = round_up_to_cells(n_ctx)
    window_cells = round_up_to_cells(min(n_cells, profile.window * n_seqs + n_ubatch))
    layer_state_bytes = _state_bytes(profile) * n_seqs
    return [
        token_bytes(layer, kv_type) * (window_cells if layer.cache_kind == "window" else n_cells)
        + (layer_state_bytes if layer.cache_kind in {"state", "full and state"} else 0)
        for layer in profile.layers
    ]


def compute_states_bytes(profile: ModelProfile, n_seqs: int) -> int:
    """Return the bytes of the recurrent states of all layers for `n_seqs` sequences."""
    return profile.n_state_layers * _state_bytes(profile) * n_seqs


def _state_bytes(profile: ModelProfile) -> int:
    return profile.state_width * _F32_BYTES


def round_up_to_cells(n_tokens: int) -> int:
    """Return the number of cells that llama.cpp allocates for `n_tokens` tokens."""
    return -(-n_tokens // CELL_MULTIPLE) * CELL_MULTIPLE
