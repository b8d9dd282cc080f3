"""A context that is resized between steps computes what a context of the final length computes."""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgechat.errors import PlanError
from edgechat.hardware.memory import read_rss_bytes
from edgechat.runtime.bindings import Bindings
from edgechat.runtime.context import Context, NoKvSlotError
from edgechat.runtime.model import Model
from edgechat.runtime.resizable_context import ResizeError
from tests.models import KINDS, N_WINDOW, Kind, growth, open_context, write_tiny


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    kind: Kind = request.param
    return kind


def open_pair(native: Bindings, path: Path, **options: object) -> tuple[Context, Context]:
    """Open a growing context of 256 to 2,048 tokens, and a fixed one of 2,048."""
    options = {"n_seqs": 3, "n_threads": 2, "n_batch": 64, "n_ctx": 2048} | options
    model = Model(native, path)
    return open_context(model, growth=growth(256, 2048), **options), open_context(model, **options)


def decode(context: Context, tokens: list[int], seq: int = 0) -> None:
    for start in range(0, len(tokens), 64):
        context.decode(tokens[start : start + 64], seq)


def argmax(context: Context) -> int:
    return int(np.argmax(context.logits()))


def generate(context: Context, n_tokens: int, on_full: Callable[[], None], seq: int = 0) -> list[int]:
    tokens = [argmax(context)]
    for _ in range(n_tokens):
        try:
            context.decode_each({seq: tokens[-1]})
        except NoKvSlotError:
            on_full()
            context.decode_each({seq: tokens[-1]})
        tokens.append(argmax(context))
    return tokens


def assert_same_logits(context: Context, other: Context, tokens: list[int]) -> None:
    """Decode `tokens` and compare the logits after each. Those of unrelated texts differ by more than 5."""
    for token in tokens:
        results = []
        for c in (context, other):
            decode(c, [token])
            results.append(c.logits().copy())
        np.testing.assert_allclose(results[0], results[1], atol=1)


def make_tokens(n_tokens: int, seed: int = 0) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(10, 300, n_tokens)]


def test_growing_context_generates_the_tokens_of_a_fixed_one(native: Bindings, tmp_path: Path, kind: Kind) -> None:
    growing, fixed = open_pair(native, write_tiny(tmp_path / "tiny.gguf", kind))
    lengths = []

    def grow() -> None:
        lengths.append(growing.n_ctx)
        growing.resize(2 * growing.n_ctx)

    prompt = make_tokens(200)
    for context in (growing, fixed):
        decode(context, prompt)
    expected = generate(fixed, 600, lambda: None)
    assert generate(growing, 600, grow) == expected
    assert lengths == [256, 512]
    assert growing.tokens() == fixed.tokens() == [*prompt, *expected[:-1]]


def test_sequences_that_share_cells_share_them_after_a_resize(native: Bindings, tmp_path: Path) -> None:
    growing, fixed = open_pair(native, write_tiny(tmp_path / "tiny.gguf", "llama"))
    prompt = make_tokens(150)
    for context in (growing, fixed):
        decode(context, prompt)
        for seq in (1, 2):
            context.copy(0, seq, 150)
    growing.resize(512)
    for context in (growing, fixed):
        for seq in range(3):
            decode(context, make_tokens(40, seed=seq + 1), seq)
    growing.resize(768)
    growing.resize(512)  # 150 shared cells and three times 40 of their own
    for seq in range(3):
        results = []
        for context in (growing, fixed):
            context.decode([5], seq)
            results.append(context.logits().copy())
        np.testing.assert_allclose(results[0], results[1], atol=0.02)


def test_sequences_can_be_copied_saved_and_restored_after_a_resize(
    native: Bindings, tmp_path: Path, kind: Kind
) -> None:
    growing, fixed = open_pair(native, write_tiny(tmp_path / "tiny.gguf", kind))
    prompt = make_tokens(120)
    for context in (growing, fixed):
        decode(context, prompt)
    data = growing.save(0, 0, 120)
    growing.resize(1024)
    assert growing.save(0, 0, 120) == data, "the memory of a sequence depends on the length of the context"
    assert growing.restore(1, 0, prompt, data)
    growing.copy(0, 2, 120)
    results = []
    for context, seq in ((fixed, 0), (growing, 0), (growing, 1), (growing, 2)):
        decode(context, [7, 8, 9], seq)
        results.append(context.logits().copy())
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], atol=0.02)


@pytest.mark.parametrize("kind", ["hybrid", "hybrid sliding"])
def test_rejected_drafts_stay_rejected_after_a_resize(native: Bindings, tmp_path: Path, kind: Kind) -> None:
    growing, fixed = open_pair(native, write_tiny(tmp_path / "tiny.gguf", kind), n_rs_seq=3)
    assert growing.max_rollback == 3
    for context in (growing, fixed):
        decode(context, make_tokens(100))
        context.decode_chains({0: [20, 21, 22, 23]})
        context.rollback(0, 2)
    growing.resize(512)
    assert growing.max_rollback == 3
    for context in (growing, fixed):
        context.decode_chains({0: [30, 31]})
        context.rollback(0, 1)
    assert generate(growing, 50, lambda: None) == generate(fixed, 50, lambda: None)


def test_context_that_cannot_be_opened_keeps_its_sequences(
    native: Bindings, tmp_path: Path, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    growing, fixed = open_pair(native, write_tiny(tmp_path / "tiny.gguf", kind))
    for context in (growing, fixed):
        decode(context, make_tokens(120))
    open_native = growing._open

    def fail_above(model: Model, n_ctx: int) -> object:
        if n_ctx > 256:
            raise PlanError("out of memory")
        return open_native(model, n_ctx)

    monkeypatch.setattr(growing, "_open", fail_above)
    with pytest.raises(ResizeError, match="out of memory") as raised:
        growing.resize(512)
    assert not raised.value.lost_sequences
    assert growing.n_ctx == 256
    for context in (growing, fixed):
        decode(context, [3, 4])
    assert generate(growing, 50, lambda: None) == generate(fixed, 50, lambda: None)


def test_context_is_usable_after_its_sequences_were_lost(
    native: Bindings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    growing, fixed = open_pair(native, write_tiny(tmp_path / "tiny.gguf", "llama"))
    decode(growing, make_tokens(120))
    open_native = growing._open

    def fail(_model: Model, _n_ctx: int) -> object:
        raise PlanError("out of memory")

    monkeypatch.setattr(growing, "_open", fail)
    with pytest.raises(ResizeError) as raised:
        growing.resize(512)
    assert raised.value.lost_sequences
    assert not growing.is_open
    assert not growing.tokens()
    growing.abort()
    growing.clear_abort()
    monkeypatch.setattr(growing, "_open", open_native)
    growing.reopen()
    for context in (growing, fixed):
        decode(context, make_tokens(120))
    assert generate(growing, 50, lambda: None) == generate(fixed, 50, lambda: None)


def test_sequences_that_do_not_fit_in_a_smaller_context_are_kept(native: Bindings, tmp_path: Path) -> None:
    growing, _ = open_pair(native, write_tiny(tmp_path / "tiny.gguf", "llama"))
    growing.resize(1024)
    decode(growing, make_tokens(600))
    with pytest.raises(ResizeError, match="do not fit"):
        growing.resize(512)
    assert growing.n_ctx == 1024
    assert len(growing.tokens()) == 600
    decode(growing, [3, 4])


@pytest.mark.skipif(sys.platform != "linux", reason="cells are cleared at once on other systems")
def test_free_cells_of_a_grown_context_take_no_memory(native: Bindings, starter: Path) -> None:
    if isinstance(native.edgechat.edgechat_set_lazy_clear, types.FunctionType):
        pytest.skip("the native bundle was built before edgechat_set_lazy_clear existed")
    context = open_context(Model(native, starter), growth=growth(256, 8192), n_threads=2, n_batch=64, n_ctx=8192)
    fixed = open_context(context.model, n_threads=2, n_batch=64, n_ctx=8192)
    for c in (context, fixed):
        decode(c, list(range(100, 300)))
    rss_bytes = read_rss_bytes(os.getpid())
    context.resize(8192)  # 180 MB, of which 4.4 MB are in use
    assert read_rss_bytes(os.getpid()) - rss_bytes < 60 << 20
    assert_same_logits(context, fixed, [50, 51, 52])
    for c in (context, fixed):
        c.clear()
        decode(c, list(range(300, 400)))
    assert_same_logits(context, fixed, [50, 51, 52])


def test_sliding_window_survives_many_resizes(native: Bindings, tmp_path: Path) -> None:
    growing, fixed = open_pair(native, write_tiny(tmp_path / "tiny.gguf", "sliding"))
    for n_ctx in (512, 2048, 1024, 2048):
        for context in (growing, fixed):
            decode(context, make_tokens(2 * N_WINDOW, seed=n_ctx))
        growing.resize(n_ctx)
    for context in (growing, fixed):
        decode(context, [3])
    assert generate(growing, 60, lambda: None) == generate(fixed, 60, lambda: None)
