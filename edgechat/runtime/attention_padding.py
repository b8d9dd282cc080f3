"""Padding of batches to a full attention tile of ggml's CPU backend."""

from __future__ import annotations

from typing import Final

# Number of queries in an attention tile: GGML_FA_TILE_Q of ggml-cpu.
TILE_TOKENS: Final = 64
# Cost of attention without tiles relative to attention with tiles. It was computed from measurements on two cores
# (Zen 5) with a model of 135M parameters: a batch of 60 tokens took 1.06 times as long as a batch of 64 at depth 256,
# 1.27 times at depth 1,000, 1.45 times at depth 2,000, and 1.64 times at depth 3,700.
_UNTILED_COST_FACTOR: Final = 2.7
# Minimum predicted speed-up that justifies padding a batch.
_MIN_GAIN: Final = 1.05


def count_padding_tokens(count: int, depth: int, *, n_params: int, n_layer: int, n_embd: int) -> int:
    """Return how many padding tokens to add to a batch of `count` tokens at position `depth`; 0 if none would help.

    ggml's CPU attention processes tiles of 64 queries; in a smaller batch, attention is 2.7 times slower. The cost of a
    token is estimated as two operations per weight, plus attention over `depth` cells in each layer.
    """
    if not 1 < count < TILE_TOKENS:
        return 0
    weights_cost, attention_cost = 2 * n_params, 4 * n_layer * n_embd * depth
    untiled_cost = count * (weights_cost + _UNTILED_COST_FACTOR * attention_cost)
    return TILE_TOKENS - count if untiled_cost > _MIN_GAIN * TILE_TOKENS * (weights_cost + attention_cost) else 0
