"""Replies with a growing context equal those of a context with the final length, and nothing is computed again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgechat.engine import context_sizing, protocol
from edgechat.hardware.free_memory import FreeMemory
from edgechat.planner.context_growth import ContextGrowth
from edgechat.runtime.bindings import Bindings
from edgechat.runtime.resizable_context import ResizeError
from tests.engine.text_models import SteppedModel
from tests.fuzzing import shorten
from tests.models import KINDS, Kind, growth, write_tiny
from tests.waiting import until

MIB = 1 << 20
GROWTH = growth(256, 2048)
Open = Callable[..., SteppedModel]


@pytest.fixture
def open_model(native: Bindings, tmp_path: Path) -> Iterator[Open]:
    """Open text models with random weights, or the one at `path`."""
    models: list[SteppedModel] = []

    def open_one(kind: Kind = "llama", *, path: Path | None = None, **options: Any) -> SteppedModel:
        path = path or write_tiny(tmp_path / f"{kind}.gguf", kind)
        models.append(SteppedModel(native, path, **({"n_ctx": 2048, "speculation": False} | options)))
        return models[-1]

    yield open_one
    for model in models:
        model.model.close()


def make_tokens(n_tokens: int, seed: int = 0) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(10, 300, n_tokens)]


def converse(model: SteppedModel, n_turns: int, n_prompt: int, n_reply: int) -> list[tuple[list[int], int]]:
    """Run a conversation; return the reply and the number of computed prompt tokens of each turn."""
    turns, tokens = [], [1]
    for turn in range(n_turns):
        turn_start = len(tokens)
        tokens += make_tokens(n_prompt, seed=turn)
        reply, event = model.ask(tokens, max_tokens=n_reply, turn_starts=[turn_start, len(tokens)])
        assert isinstance(event, protocol.RequestFinished), event
        turns.append((reply, event.stats.prompt_tokens - event.stats.cached_tokens))
        tokens = tokens + reply
    return turns


@pytest.mark.parametrize("kind", KINDS)
def test_conversation_in_a_growing_context_equals_a_fixed_one(open_model: Open, kind: Kind) -> None:
    growing, fixed = open_model(kind, growth=GROWTH), open_model(kind)
    assert (growing.model.n_ctx, growing.context.n_ctx) == (2048, 256)
    assert converse(growing, 12, 90, 60) == converse(fixed, 12, 90, 60)
    assert growing.lengths == sorted(set(growing.lengths)), "the context did not only grow"
    assert growing.lengths[-1] == 2048
    assert len(growing.lengths) <= 6


@pytest.mark.long
@pytest.mark.parametrize("kind", ["sliding", "mamba", "hybrid"])
def test_conversation_of_thirty_thousand_tokens_grows_from_4096(open_model: Open, kind: Kind) -> None:
    """With all inputs, the conversation has 30,000 tokens, otherwise 7,500 tokens in a context that grows from 1024."""
    n_ctx = shorten(32768, 8192)
    options: dict[str, Any] = {"kind": kind, "n_ctx": n_ctx, "n_batch": 512}
    growing, fixed = open_model(growth=growth(n_ctx // 8, n_ctx), **options), open_model(**options)
    n_prompt, n_reply = shorten(1440, 345), shorten(60, 30)
    results = converse(growing, 20, n_prompt, n_reply)
    assert results == converse(fixed, 20, n_prompt, n_reply)
    assert all(n_computed <= n_prompt + 1 for _, n_computed in results)
    assert growing.lengths == [n_ctx // 8, n_ctx // 4, n_ctx // 2, n_ctx]


def test_starter_model_grows(open_model: Open, starter: Path) -> None:
    """The replies are given, because the starter model has tokens that are nearly as probable as others."""
    growing, fixed = (open_model(path=starter, **options) for options in ({"growth": GROWTH}, {}))
    tokens = [1]
    for turn in range(3):
        turn_start = len(tokens)
        tokens += make_tokens(200, seed=turn)
        reply = make_tokens(12, seed=100 + turn)
        logprobs, n_computed = [], []
        for model in (growing, fixed):
            request_id = model.start(
                tokens, max_tokens=len(reply), forced_tokens=reply, n_logprobs=0, turn_starts=[turn_start, len(tokens)]
            )
            model.finish()
            assert model.tokens(request_id) == reply
            stats = model.final(request_id).stats
            n_computed.append(stats.prompt_tokens - stats.cached_tokens)
            logprobs.append(model.logprobs(request_id))
        assert n_computed[0] == n_computed[1]
        assert logprobs[0] == pytest.approx(logprobs[1], abs=1)
        tokens += reply
    assert growing.lengths == [256, 512, 1024]


def test_long_prompt_opens_the_context_that_it_needs(open_model: Open) -> None:
    growing, fixed = open_model(growth=GROWTH), open_model()
    prompt = make_tokens(1500)
    assert growing.ask(prompt)[0] == fixed.ask(prompt)[0]
    assert growing.lengths == [256, 1792]


@pytest.mark.parametrize("kind", ["llama", "hybrid"])
def test_growing_during_drafts_changes_nothing(open_model: Open, kind: Kind) -> None:
    options: dict[str, Any] = {"speculation": True, "n_rs_seq": 3, "draft_tokens": 1000}
    growing, fixed = open_model(kind, growth=GROWTH, **options), open_model(kind, **options)
    pattern = make_tokens(12) * 12
    forced = (pattern * 8)[:900]
    results = []
    for model in (growing, fixed):
        request_id = model.start(pattern, max_tokens=900, forced_tokens=forced)
        model.finish()
        results.append((model.tokens(request_id), model.final(request_id).finish_reason))
        assert model.final(request_id).stats.n_accepted > 0  # how many depends on measured times
    assert results[0] == results[1]
    assert growing.lengths == [256, 512, 1024, 2048]


def test_grammar_continues_after_growing(open_model: Open) -> None:
    growing, fixed = open_model(growth=GROWTH), open_model()
    grammar = "start: /[abc]{300}e/"
    results = [
        model.ask(make_tokens(100), max_tokens=400, grammars=[grammar], ignore_eog=False) for model in (growing, fixed)
    ]
    assert results[0][0] == results[1][0]
    assert results[0][1].finish_reason == results[1][1].finish_reason == "stop"
    assert growing.lengths[-1] >= 512


@pytest.mark.parametrize("kind", KINDS)
def test_parallel_requests_in_a_growing_context(open_model: Open, kind: Kind) -> None:
    growing, fixed = open_model(kind, growth=GROWTH), open_model(kind)
    ids = [growing.start(make_tokens(100, seed), max_tokens=250) for seed in range(4)]
    growing.finish()
    assert all(growing.final(i).finish_reason == "length" for i in ids)
    assert [len(growing.tokens(i)) for i in ids] == [250] * 4
    for seed, request_id in enumerate(ids):
        assert fixed.find_difference(make_tokens(100, seed), growing.tokens(request_id)) is None
    assert growing.lengths[-1] == (512 if kind == "mamba" else 2048)  # only the length of one sequence counts


def test_replies_of_one_request_share_the_prompt_after_growing(open_model: Open) -> None:
    growing, fixed = open_model(growth=growth(512, 2048)), open_model()
    results = []
    for model in (growing, fixed):
        request_id = model.start(make_tokens(300), n_sequences=3, max_tokens=100)
        model.finish()
        results.append([model.tokens(request_id, i) for i in range(3)])
    assert results[0] == results[1]
    assert growing.lengths == [512, 1024]


@pytest.mark.parametrize(("kind", "n_sequences"), [("sliding", 4), ("hybrid sliding", 2)])
def test_replies_outlive_the_sliding_window_that_they_share(open_model: Open, kind: Kind, n_sequences: int) -> None:
    growing, fixed = open_model(kind, growth=GROWTH), open_model(kind)
    prompt = make_tokens(450)
    for model in (growing, fixed):
        request_id = model.start(prompt, n_sequences=n_sequences, max_tokens=150)
        model.finish()
        replies = [model.tokens(request_id, i) for i in range(n_sequences)]
        assert [len(reply) for reply in replies] == [150] * n_sequences
        assert all(model.find_difference(prompt, reply) is None for reply in replies)
    assert growing.lengths[-1] in {1024, 2048}


def test_requests_cancelled_while_the_context_grows_end(open_model: Open) -> None:
    growing = open_model(growth=GROWTH)
    ids = [growing.start(make_tokens(60, seed), max_tokens=200) for seed in range(3)]
    resize = growing.context.resize

    def resize_and_abort(n_ctx: int) -> None:
        growing.model.abort()  # as the thread that reads requests does
        resize(n_ctx)

    growing.context.resize = resize_and_abort  # type: ignore[method-assign]
    growing.finish(lambda _step: {ids[0]} if len(growing.lengths) > 1 else None)
    assert growing.final(ids[0]).finish_reason == "cancelled"
    assert [growing.final(i).finish_reason for i in ids[1:]] == ["length"] * 2
    fixed = open_model()
    assert [growing.tokens(i) for i in ids[1:]] == [
        fixed.ask(make_tokens(60, seed), max_tokens=200)[0] for seed in (1, 2)
    ]


# Too little memory


def limited_growth() -> ContextGrowth:
    """Return a growth whose cells take 64 KiB each."""
    return growth(256, 2048, 64 << 10)


def test_context_stays_if_memory_is_short_and_the_reply_ends(open_model: Open) -> None:
    model = open_model(growth=limited_growth())
    model.memory = FreeMemory(total_bytes=1024 * MIB, available_bytes=64 * MIB + MIB)
    tokens, event = model.ask(make_tokens(100), max_tokens=1000)
    assert model.lengths == [256]
    assert event.finish_reason == "length"
    assert len(tokens) == 157  # the last token is not decoded
    [notice] = model.notices(1)
    assert (notice.n_ctx, notice.refused_n_ctx) == (256, 512)
    assert notice.available_bytes == 65 * MIB
    assert notice.needed_bytes > 16 * MIB + 64 * MIB


def test_prompt_that_needs_a_refused_length_fails_with_the_present_length(open_model: Open) -> None:
    model = open_model(growth=limited_growth())
    model.memory = FreeMemory(total_bytes=1024 * MIB, available_bytes=65 * MIB)
    _, event = model.ask(make_tokens(700))
    assert event.error_type == "ContextOverflowError"
    assert "700 tokens" in event.message
    assert "256 tokens" in event.message
    assert len(model.notices(1)) == 1
    tokens, event = model.ask(make_tokens(100))
    assert len(tokens) == 30
    assert not model.notices(2)


def test_refused_growth_is_tried_again_after_a_while(open_model: Open) -> None:
    model = open_model(growth=limited_growth())
    model.memory = FreeMemory(total_bytes=1024 * MIB, available_bytes=65 * MIB)
    n_reads = 0

    def read() -> FreeMemory:
        nonlocal n_reads
        n_reads += 1
        return model.memory

    model.sizer._read_memory = read
    ids = [model.start(make_tokens(120, seed), max_tokens=100) for seed in range(3)]
    model.finish()
    assert n_reads <= 6, "memory is checked at every step"
    assert model.lengths == [256]
    assert [len(model.tokens(i)) for i in ids] == [100] * 3, "requests do not run one after another"
    model.memory = FreeMemory(total_bytes=1024 * MIB, available_bytes=1024 * MIB)
    model.ask(make_tokens(120), max_tokens=300)
    assert model.lengths[:2] == [256, 512]


def test_growing_discards_saved_prefixes_from_ram_if_memory_is_short(open_model: Open) -> None:
    model = open_model(growth=limited_growth(), prefix_ram_bytes=64 * MIB)
    first = make_tokens(200)
    model.ask(first)
    model.ask(make_tokens(200, seed=1))
    ram_bytes = model.model._cache.store.ram_bytes
    assert ram_bytes > 0
    store = model.model._cache.store

    def read() -> FreeMemory:
        needed_bytes = 16 * MIB + model.context.state_bytes + 64 * MIB
        return FreeMemory(1024 * MIB, needed_bytes + ram_bytes - 1000 - store.ram_bytes)

    model.sizer._read_memory = read
    model.ask(make_tokens(230, seed=2), max_tokens=100)
    assert model.lengths == [256, 512]
    assert store.ram_bytes < ram_bytes


def test_context_that_cannot_be_opened_counts_as_refused(open_model: Open) -> None:
    model, fixed = open_model(growth=GROWTH), open_model(n_ctx=256)

    def fail(_n_ctx: int) -> None:
        raise ResizeError("out of memory", lost_sequences=False)

    model.context.resize = fail  # type: ignore[assignment, method-assign]
    tokens, event = model.ask(make_tokens(100), max_tokens=1000)
    assert event.finish_reason == "length"
    assert tokens == fixed.ask(make_tokens(100), max_tokens=1000)[0]
    assert [n.error for n in model.notices(1)] == ["out of memory"]


def test_requests_end_with_one_error_if_the_context_is_lost(open_model: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_model(growth=GROWTH)
    model.ask(make_tokens(300), max_tokens=5)
    replace = model.context._replace

    def lose(n_ctx: int, data: Any) -> str:
        model.context._close_context()
        return "out of memory"

    model.context._replace = lose  # type: ignore[method-assign]
    ids = [model.start(make_tokens(70, seed), max_tokens=300) for seed in range(2)]
    model.finish()
    for request_id in ids:
        event = model.final(request_id)
        assert (event.error_type, "out of memory" in event.message) == ("EngineError", True), event
    model.context._replace = replace  # type: ignore[method-assign]
    assert model.sizer.idle_step(301.0) is None  # there is no context to shrink
    model.model.idle_step(lambda _allow: None)
    fixed = open_model()
    assert model.ask(make_tokens(60), max_tokens=300)[0] == fixed.ask(make_tokens(60), max_tokens=300)[0]


def test_growing_for_more_than_a_second_is_reported_to_all_requests(
    open_model: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context_sizing, "_PROGRESS_DELAY_S", 0.0)
    model = open_model(growth=GROWTH)
    resize = model.context.resize

    def resize_slowly(n_ctx: int) -> None:
        until(lambda: sum(isinstance(e, protocol.ContextResizing) for e in model.events) == 2)
        resize(n_ctx)

    model.context.resize = resize_slowly  # type: ignore[method-assign]
    ids = [model.start(make_tokens(60, seed), max_tokens=100) for seed in range(2)]
    model.finish()
    resizing = [e for e in model.events if isinstance(e, protocol.ContextResizing)]
    assert {(e.id, e.n_ctx) for e in resizing} == {(i, 512) for i in ids}


# Shrinking


def test_context_shrinks_in_idle_time_and_grows_again(open_model: Open) -> None:
    model, fixed = open_model(growth=GROWTH, prefix_ram_bytes=64 * MIB), open_model(prefix_ram_bytes=64 * MIB)
    first = make_tokens(900)
    for m in (model, fixed):
        m.ask(first)
        m.ask(make_tokens(150, seed=1))
    assert model.lengths == [256, 1024]
    assert model.sizer.idle_step(10.0) == 5.0
    assert model.context.n_ctx == 1024
    model.sizer.idle_step(301.0)
    assert model.context.n_ctx == 256
    assert model.sizer.idle_step(400.0) is None
    assert model.ask([*first, 7, 8], max_tokens=50)[0] == fixed.ask([*first, 7, 8], max_tokens=50)[0]
    assert model.context.n_ctx == 1024


@pytest.mark.parametrize("kind", KINDS)
def test_context_shrinks_between_steps_when_memory_is_short(open_model: Open, kind: Kind) -> None:
    model, fixed = open_model(kind, growth=GROWTH), open_model(kind)
    model.ask(make_tokens(1200))
    model.model._cache.drop(0)
    model.start(make_tokens(100, seed=1), max_tokens=120)

    def lose_memory(step: int) -> None:
        model.now += 2.0
        if step == 40:
            model.memory = FreeMemory(total_bytes=1024 * MIB, available_bytes=10 * MIB)

    model.finish(lose_memory)
    assert model.lengths[-1] == 256 < model.lengths[-2]
    assert len(model.tokens(2)) == 120
    assert fixed.find_difference(make_tokens(100, seed=1), model.tokens(2)) is None


def test_stalls_shrink_the_context(open_model: Open) -> None:
    model = open_model(growth=GROWTH)
    model.ask(make_tokens(1200))
    model.model._cache.drop(0)
    model.sizer.idle_step(1.0)
    assert model.context.n_ctx > 256
    model.memory = FreeMemory(total_bytes=1 << 40, available_bytes=500 * MIB, stall_percent=30.0)
    model.now += 2.0
    model.sizer.idle_step(1.0)
    assert model.context.n_ctx == 256


# Saved prefixes


@pytest.mark.parametrize("kind", KINDS)
def test_prefixes_saved_at_one_length_are_restored_at_another(native: Bindings, tmp_path: Path, kind: Kind) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", kind)
    options: dict[str, Any] = {
        "n_ctx": 2048,
        "speculation": False,
        "prefix_disk_bytes": 50 * MIB,
        "prefix_ram_bytes": MIB,
    }
    prompt = make_tokens(200)
    cached = []
    for growth_of_load in (GROWTH, growth(1024, 2048), None):
        model = SteppedModel(native, path, prefix_dir=tmp_path / "prefix", growth=growth_of_load, **options)
        model.model._cache.throughput.prefill.per_s = 1.0  # restoring is faster than computing
        _, event = model.ask([*prompt, 5], conversation="talk", turn_starts=[200])
        cached.append(event.stats.cached_disk_tokens)
        while model.model.idle_step(lambda _allow: None) is not None and model.model._disk is not None:
            if not model.model._disk.is_busy and not model.model._cache.idle_step():
                break
        model.model.close()
    assert cached == [0, 200, 200]


# Any order of events


class Turn(NamedTuple):
    conversation: int
    n_prompt: int
    n_reply: int
    n_sequences: int
    action: str


TURNS = st.builds(
    Turn, st.integers(0, 2), st.integers(1, 250), st.integers(1, 60), st.integers(1, 2),
    st.sampled_from(["", "idle", "cancel", "refuse", "grow", "short memory"]),
)  # fmt: skip


@settings(max_examples=shorten(25, 12), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(KINDS), turns=st.lists(TURNS, min_size=2, max_size=8), drafts=st.booleans())
def test_replies_do_not_depend_on_resizes(open_model: Open, kind: Kind, turns: list[Turn], drafts: bool) -> None:
    options = {"prefix_ram_bytes": MIB} | ({"speculation": True, "n_rs_seq": 3, "draft_tokens": 1000} if drafts else {})
    growing, fixed = open_model(kind, growth=GROWTH, **options), open_model(kind)
    conversations: dict[int, list[int]] = {}
    for seed, turn in enumerate(turns):
        tokens = [*conversations.get(turn.conversation, [1]), *make_tokens(turn.n_prompt, seed)]
        if len(tokens) + turn.n_sequences * turn.n_reply > 1900:
            continue  # the reply would end early in a context of 2048 tokens
        growing.memory = FreeMemory(1 << 40, 0 if turn.action == "refuse" else 1 << 40)
        growing.now += 400.0
        if turn.action == "idle":
            growing.sizer.idle_step(301.0)
        elif turn.action == "grow":
            growing.sizer.grow(growing.context.n_ctx + 1, [], [])
        elif turn.action == "cancel":
            request_id = growing.start(make_tokens(300, seed), max_tokens=100)
            growing.finish(lambda step, i=request_id: {i} if step == 5 else None)  # type: ignore[misc]

        def change_memory(step: int, action: str = turn.action) -> None:
            growing.now += 2.0
            if action == "short memory":  # for a few steps, in which the context shrinks
                growing.memory = FreeMemory(1 << 40, (100 * MIB) if step % 16 < 4 else 1 << 40)

        request_id = growing.start(tokens, max_tokens=turn.n_reply, n_sequences=turn.n_sequences)
        growing.finish(change_memory)
        is_refused = turn.action in {"refuse", "short memory"}
        if isinstance(growing.final(request_id), protocol.RequestFailed):
            assert is_refused
            continue
        replies = [growing.tokens(request_id, i) for i in range(turn.n_sequences)]
        for reply in replies:
            assert len(reply) == turn.n_reply or is_refused
            assert fixed.find_difference(tokens, reply) is None
        conversations[turn.conversation] = [*tokens, *replies[0]]
