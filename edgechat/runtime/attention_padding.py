"""Padding of batches to a full attention tile of ggml's CPU backend."""

from __future__ import annotations

from typing import Final

# ggml-cpu's GGML_FA_TILE_Q. Measured on two cores (Zen 5) with a model of 135M parameters: a batch of 60 tokens took
# 1.06 times as long as a batch of 64 at depth 256, 1.27 times at depth 1,000, 1.45 times at depth 2,000, and 1.64 times
# at depth 3,700. So the untiled path is 2.7 times slower.
TILE_TOKENS: Final = 64
_UNTILED_COST: Final = 2.7
# Minimum speed-up for which a batch is padded.
_MIN_GAIN: Final = 1.05


def padding_tokens(count: int, depth: int, *, n_params: int, n_layer: int, n_embd: int) -> int:
    """Return the number of extra tokens that make a batch of `count` tokens at position `depth` faster; usually 0.

    ggml's CPU attention processes tiles of 64 queries; a smaller batch takes a path that is 2.7 times slower. The cost
    of a token is counted in multiplications: two per weight, and attention over `depth` cells in each layer.
    """
    if not 1 < count < TILE_TOKENS:
        return 0
    weights, attention = 2 * n_params, 4 * n_layer * n_embd * depth
    untiled_cost = count * (weights + _UNTILED_COST * attention)
    return TILE_TOKENS - count if untiled_cost > _MIN_GAIN * TILE_TOKENS * (weights + attention) else 0
