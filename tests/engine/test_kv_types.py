"""KV cache types and YaRN in llama.cpp: saved and restored memory, identities, and parameters of the context."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgechat.planner.kv_types import KV_TYPES, KvType
from edgechat.runtime.bindings import Bindings
from edgechat.runtime.context import Context
from edgechat.runtime.memory_report import describe_memory_layout
from edgechat.runtime.model import Model
from tests.engine.test_prefix_cache import CachedContext, Logits, distance, random_tokens
from tests.layered_models import write_wide_llama
from tests.models import open_context, write_tiny_llama

N_CTX = 512


@pytest.fixture(scope="module")
def model(native: Bindings, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(native, write_wide_llama(tmp_path_factory.mktemp("wide") / "wide.gguf", n_layer=4))


def decode_rest(context: Context, tokens: list[int]) -> Logits:
    context.decode(tokens)
    return context.logits().copy()


@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_restored_segment_equals_the_computed_one(model: Model, kv_type: KvType) -> None:
    tokens = random_tokens(230)
    computed = open_context(model, n_ctx=N_CTX, n_threads=1, kv_type=kv_type)
    computed.decode(tokens[:200])
    data = computed.save(0, 0, 200)
    expected = decode_rest(computed, tokens[200:])
    restored = open_context(model, n_ctx=N_CTX, n_threads=1, kv_type=kv_type)
    assert restored.restore(0, 0, tokens[:200], data)
    assert bytes(restored.save(0, 0, 200)) == bytes(data)
    assert np.array_equal(decode_rest(restored, tokens[200:]), expected)


def test_quantised_keys_and_values_change_the_logits_little(model: Model) -> None:
    tokens = random_tokens(230)
    logits = []
    for kv_type in KV_TYPES:
        context = open_context(model, n_ctx=N_CTX, n_threads=1, kv_type=kv_type)
        logits.append(decode_rest(context, tokens))
        context.close()
    distances = [distance(other, logits[0]) for other in logits]
    assert distances[0] == 0
    assert 0 < distances[1] < 0.02  # q8_0
    assert max(distances) < 0.3


@pytest.mark.parametrize("kv_type", KV_TYPES[1:])
def test_segment_of_another_type_is_refused(model: Model, kv_type: KvType) -> None:
    tokens = random_tokens(40)
    source = open_context(model, n_ctx=N_CTX, n_threads=1)
    source.decode(tokens)
    target = open_context(model, n_ctx=N_CTX, n_threads=1, kv_type=kv_type)
    assert not target.restore(0, 0, tokens, source.save(0, 0, 40))
    assert list(target.tokens()) == []


@pytest.mark.parametrize("kv_type", ["q8_0/q4_0", "q4_0"])
def test_conversation_on_disk_equals_the_computed_one(model: Model, tmp_path: Path, kv_type: KvType) -> None:
    tokens = random_tokens(500)
    computed = CachedContext(model, kv_type=kv_type)
    _, expected = computed.run_turn(tokens, (400,))
    computed.close()
    first = CachedContext(model, tmp_path / "prefix", kv_type=kv_type)
    first.run_turn(tokens[:400])
    first.save_all()
    first.close()
    second = CachedContext(model, tmp_path / "prefix", kv_type=kv_type)
    cached, logits = second.run_turn(tokens)
    second.close()
    assert cached.disk_tokens == 400
    assert np.array_equal(logits, expected)


def test_identity_contains_both_types_and_the_yarn_factor(model: Model) -> None:
    layouts = [
        describe_memory_layout(open_context(model, n_ctx=N_CTX, n_threads=1, kv_type=kv_type, yarn_factor=factor))
        for kv_type, factor in (*((t, 1.0) for t in KV_TYPES), ("f16", 1.5), ("f16", 2.0))
    ]
    assert len(set(layouts)) == len(layouts)
    # Segments that earlier versions saved keep their identity.
    assert layouts[:2] == [f"k={t} v={t} flash=auto adapter=none rope=model n_ctx=any" for t in ("f16", "q8_0")]
    assert layouts[2].startswith("k=q8_0 v=q4_0 ")
    assert "rope=yarn1.5 " in layouts[-2]


def test_yarn_changes_keys_beyond_the_first_position_and_not_the_training_length(model: Model) -> None:
    tokens = random_tokens(100)
    n_ctx_train = model.n_ctx_train
    logits = []
    for factor in (1.0, 2.0, 4.0, 1.0):
        context = open_context(model, n_ctx=N_CTX, n_threads=1, yarn_factor=factor)
        context.decode(tokens)
        logits.append(context.logits().copy())
        context.close()
    assert np.array_equal(logits[0], logits[3])
    assert not np.allclose(logits[0], logits[1], atol=0.01)
    assert not np.allclose(logits[1], logits[2], atol=0.01)
    assert model.n_ctx_train == n_ctx_train


def test_yarn_context_restores_its_own_segments(native: Bindings, tmp_path: Path) -> None:
    model = Model(native, write_tiny_llama(tmp_path / "tiny.gguf"))
    tokens = random_tokens(400)
    contexts = [open_context(model, n_ctx=N_CTX, n_threads=1, yarn_factor=2.0) for _ in range(2)]
    contexts[0].decode(tokens[:380])
    assert contexts[1].restore(0, 0, tokens[:380], contexts[0].save(0, 0, 380))
    expected, restored = (decode_rest(context, tokens[380:]) for context in contexts)
    assert np.array_equal(restored, expected)
