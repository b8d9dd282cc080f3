"""Batches that fill a tile of ggml's attention are faster than those that almost do."""

from __future__ import annotations

from typing import Final

# ggml-cpu's GGML_FA_TILE_Q. Measured on two cores (Zen 5) with a model of 135M: 60 tokens took 1.06 (after 256), 1.27
# (after 1,000), 1.45 (after 2,000) and 1.64 times (after 3,700) as long as 64, which makes the other path 2.7 times slower.
TILE_TOKENS: Final = 64
_UNTILED: Final = 2.7
# What has to be won before tokens are added.
_WORTH: Final = 1.05


def padding_tokens(count: int, depth: int, *, n_params: int, n_layer: int, n_embd: int) -> int:
    """How many tokens that nobody wants make a batch of `count` tokens after `depth` others faster.

    ggml's attention on a CPU works in tiles of queries; a batch that fills no tile takes a path that is slower by
    `_UNTILED`. Costs are counted as multiplications: of the weights for each token, and of the cells before it.
    """
    if not 1 < count < TILE_TOKENS:
        return 0
    weights, attention = 2 * n_params, 4 * n_layer * n_embd * depth
    plain = count * (weights + _UNTILED * attention)
    return TILE_TOKENS - count if plain > _WORTH * TILE_TOKENS * (weights + attention) else 0
