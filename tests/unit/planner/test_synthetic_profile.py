"""Profiles of catalogue models without a file header."""

from __future__ import annotations

import pytest

from edgechat.catalogue import curated
from edgechat.planner.memory import estimate
from edgechat.planner.synthetic_profile import compute_file_sizes, make_synthetic_profiles
from tests.unit.planner.profiles import options


@pytest.mark.parametrize(("model_id", "fraction"), [("gemma-4-e2b", 0.46), ("gemma-4-e4b", 0.35), ("qwen3.5-4b", 0.0)])
def test_embeddings_for_each_layer_are_in_the_file_but_not_in_memory(model_id: str, fraction: float) -> None:
    model = curated.load_catalogue()[model_id]
    profiles = make_synthetic_profiles(model)
    assert profiles
    for quant, profile in profiles.items():
        file_bytes = compute_file_sizes(model)[quant][0]
        assert abs(profile.tensor_bytes - file_bytes) < 1000
        memory = estimate(profile, options(profile, 512))
        weight_bytes = memory.weights + memory.repacked_weights
        assert weight_bytes == pytest.approx((1 - fraction) * file_bytes, rel=0.02)
        assert memory.total < file_bytes or not fraction
