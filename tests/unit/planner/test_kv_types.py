"""Types of keys and values: sizes, models that support them, and the order of the plans that use them."""

from __future__ import annotations

from typing import Any

import pytest

from edgechat.modelfile.layers import Layer
from edgechat.planner.kv_types import DIVERGENCE_BY_KV_TYPE, KV_TYPES, KvType, list_kv_types, split_kv_type, token_bytes
from edgechat.planner.load_variants import list_load_variants, list_offered_kv_types
from edgechat.planner.quality import compute_next_quant_divergence
from tests.unit.planner.profiles import GIB, llama, machine


@pytest.mark.parametrize(
    ("kv_type", "types", "n_bytes"),
    [
        ("f16", ("f16", "f16"), 2 * 512 + 2 * 256),
        ("q8_0", ("q8_0", "q8_0"), 544 + 272),
        ("q8_0/q4_0", ("q8_0", "q4_0"), 544 + 144),
        ("q5_1", ("q5_1", "q5_1"), 384 + 192),
        ("q4_0", ("q4_0", "q4_0"), 288 + 144),
    ],
)
def test_bytes_of_a_token_are_counted_by_key_and_value(kv_type: KvType, types: tuple[str, str], n_bytes: int) -> None:
    layer = Layer(cache_kind="full", n_head=8, n_head_kv=4, key_length=128, value_length=64, n_ff=1)
    assert split_kv_type(kv_type) == types
    assert token_bytes(layer, kv_type) == n_bytes
    without_cache = Layer(cache_kind="state", n_head=8, n_head_kv=4, key_length=128, value_length=64, n_ff=1)
    assert token_bytes(without_cache, kv_type) == 0


def test_types_are_listed_by_decreasing_size() -> None:
    layer = llama().layers[0]
    sizes = [token_bytes(layer, kv_type) for kv_type in KV_TYPES]
    assert sizes == sorted(sizes, reverse=True)
    assert list_kv_types(llama()) == KV_TYPES


@pytest.mark.parametrize(
    ("metadata", "kv_types"),
    [
        ({"attention__key_length": 80, "attention__value_length": 80}, ("f16",)),  # no whole blocks
        ({"attention__key_length": 128, "attention__value_length": 40}, ("f16",)),
        ({"attention__key_length": 96, "attention__value_length": 96}, ("f16", "q8_0")),  # not rotated
        ({"attention__key_length": 128, "attention__value_length": 96}, ("f16", "q8_0")),
        ({"attention__key_length": [64] * 8 + [128] * 8}, ("f16", "q8_0")),  # heads of two sizes
        ({"attention__kv_lora_rank": 512, "attention__key_length_mla": 64}, ("f16", "q8_0")),
        ({"attention__key_length": 128, "attention__value_length": 192}, KV_TYPES),
    ],
)
def test_types_below_q8_0_need_heads_that_llama_cpp_rotates(
    metadata: dict[str, Any], kv_types: tuple[KvType, ...]
) -> None:
    assert list_kv_types(llama(**metadata)) == kv_types


def test_layers_without_a_cache_do_not_count() -> None:
    profile = llama(ssm__inner_size=4096, attention__head_count_kv=[0] * 8 + [8] * 8)
    assert list_kv_types(profile) == KV_TYPES
    assert list_kv_types(llama(ssm__inner_size=4096, attention__head_count_kv=[0] * 16)) == KV_TYPES


def test_gpu_uses_types_with_fast_kernels() -> None:
    assert list_kv_types(llama(), on_gpu=True) == ("f16", "q8_0", "q4_0")


def test_type_is_offered_if_it_loses_less_than_the_next_smaller_quant() -> None:
    for type_id in (1, 8, 12, 2):  # F16, Q8_0, Q4_K, Q4_0
        profile = llama(type_id=type_id)
        offered = list_offered_kv_types(profile)
        assert offered[:2] == ("f16", "q8_0")
        limit = compute_next_quant_divergence(profile.quant)
        assert set(offered[2:]) == {t for t in KV_TYPES[2:] if DIVERGENCE_BY_KV_TYPE[t] < limit}


def test_gpu_never_has_keys_and_values_of_different_types() -> None:
    profile = llama(type_id=12)  # Q4_K, for which q8_0/q4_0 is offered on a CPU
    for gpu in ({"gpu_free_bytes": 8 * GIB}, {"gpu_is_unified": True}):
        variants = list(list_load_variants(profile, machine(8 * GIB, **gpu), None))
        assert {options.kv_type for options, _ in variants if options.n_gpu_layers} == {"f16", "q8_0"}
    assert "q8_0/q4_0" in {options.kv_type for options, _ in list_load_variants(profile, machine(8 * GIB), None)}


def test_context_is_shortened_only_in_the_smallest_type() -> None:
    for on_gpu in (False, True):
        profile = llama()
        described = machine(8 * GIB, gpu_free_bytes=8 * GIB if on_gpu else 0)
        smallest = list_offered_kv_types(profile, on_gpu=on_gpu)[-1]
        for options, _ in list_load_variants(profile, described, None):
            if options.n_ctx < 8192 and bool(options.n_gpu_layers) == on_gpu:
                assert options.kv_type == smallest
