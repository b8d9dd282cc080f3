"""Quality scores of models and quants."""

from __future__ import annotations

import math

import pytest

from edgechat.planner.kv_types import DIVERGENCE_BY_KV_TYPE, KV_TYPES
from edgechat.planner.quality import compute_next_quant_divergence, divergence, kv_loss, loss, quality


def test_loss_follows_the_order_of_divergence_and_shrinks_with_size() -> None:
    order = ["F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q4_0", "Q3_K_M", "Q3_K_S", "Q2_K"]
    losses = [loss(quant, 8_000_000_000) for quant in order]
    assert losses == sorted(losses)
    assert loss("Q2_K", 70_000_000_000) < loss("Q2_K", 8_000_000_000) < loss("Q2_K", 1_000_000_000)


def test_unknown_quant_has_infinite_loss() -> None:
    assert divergence("Q9_Z") is None
    assert math.isinf(loss("Q9_Z", 1))


def test_larger_model_wins_down_to_about_four_bits() -> None:
    """At equal memory: 8e9 weights in Q4_K_M against 4e9 in Q8_0, and 8e9 in Q2_K against 4e9 in Q5_K_M."""
    assert quality("Q4_K_M", 8_000_000_000).points > quality("Q8_0", 4_000_000_000).points
    assert quality("Q3_K_M", 8_000_000_000).points > quality("Q6_K", 4_000_000_000).points
    assert quality("Q2_K", 8_000_000_000).points < quality("Q5_K_M", 4_000_000_000).points


def test_quant_names_of_other_makers_are_known() -> None:
    for name in (
        "UD-Q2_K_XL", "UD-Q4_K_XL", "UD-Q6_K_XL", "UD-Q8_K_XL", "Q4_K_L", "Q6_K_L", "Q3_K_XL", "MXFP4_MOE", "Q4_K",
    ):  # fmt: skip
        assert divergence(name) is not None, name
    assert divergence("Q3_K_L") == 0.073077


def test_next_smaller_quant_loses_more() -> None:
    assert compute_next_quant_divergence("Q8_0") == pytest.approx(
        (0.005452 - 0.001355) * loss("Q4_0", 0) / loss("Q4_0", 8_030_000_000)
    )
    assert compute_next_quant_divergence("Q9_Z") == compute_next_quant_divergence("Q4_K_M")
    assert compute_next_quant_divergence("IQ1_S") == compute_next_quant_divergence("Q3_K_M")


def test_loss_of_kv_types_follows_their_divergence() -> None:
    losses = [kv_loss(kv_type) for kv_type in sorted(KV_TYPES, key=DIVERGENCE_BY_KV_TYPE.__getitem__)]
    assert losses[0] == 0.0
    assert losses == sorted(losses)
