"""Cached equals computed, on every kind of memory: tiny random models, and the real starter model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgechat.prefix.cache import CachedPrefix, PrefixCache
from edgechat.prefix.disk_tier import DiskTier
from edgechat.runtime.bindings import Bindings
from edgechat.runtime.context import Context, NoKvSlotError
from edgechat.runtime.model import Model
from tests.fake_memory import check_cache
from tests.models import KINDS, Kind, a_context, write_tiny
from tests.waiting import until

N_CTX = 1024
TINY = 1_000_000
Logits = NDArray[np.float32]


class Desk:
    """A context with its cache, and what a plain context would say."""

    def __init__(self, model: Model, folder: Path | None = None, *, n_seqs: int = 4, n_ctx: int = N_CTX) -> None:
        self.context = a_context(model, n_ctx=n_ctx, n_threads=2, n_batch=128, n_ubatch=128, n_seqs=n_seqs)
        self.disk = DiskTier(folder, 1 << 30, lambda pause: "it") if folder is not None else None
        if self.disk is not None:
            self.disk.identity = "it"
        self.cache = PrefixCache(self.context, ram_cap_bytes=64 << 20, disk=self.disk)
        # Restoring wins whatever it costs here: these models compute faster than a file is opened.
        self.cache.throughput.prefill.per_s = 1.0

    def logits(self, index: int = -1) -> Logits:
        pointer = self.context.model.bindings.llama.llama_get_logits_ith(self.context.pointer, index)
        return np.array(pointer[: self.context.model.n_vocab], dtype=np.float32)

    def read(
        self, tokens: list[int], stops: tuple[int, ...] = (), *, whose: str = "talk"
    ) -> tuple[CachedPrefix, Logits]:
        """Have a prompt computed as the engine would."""
        cached = self.cache.acquire(tokens, whose)
        seq = cached.seq
        done = len(self.context.tokens(seq))
        assert list(self.context.tokens(seq)) == tokens[:done]
        if done in stops:
            self.cache.checkpoint(seq)
        while done < len(tokens):
            end = min([len(tokens), done + 128, *(s for s in stops if s > done)])
            while True:
                try:
                    self.context.decode(tokens[done:end], seq)
                except NoKvSlotError:
                    assert self.cache.evict_lru(seq)
                else:
                    break
            done = end
            if done in stops:
                self.cache.checkpoint(seq)
        return cached, self.logits()

    def turn(
        self, tokens: list[int], stops: tuple[int, ...] = (), *, whose: str = "talk"
    ) -> tuple[CachedPrefix, Logits]:
        cached, logits = self.read(tokens, stops, whose=whose)
        self.cache.commit(cached.seq)
        check_cache(self.cache)
        return cached, logits

    def save(self) -> None:
        until(lambda: not (self.cache.idle_step() or (self.disk is not None and self.disk.is_busy)), interval_s=0.001)

    def close(self) -> None:
        self.cache.finish(10)
        self.context.close()


def alone(model: Model, tokens: list[int], n_before: int = 0) -> Logits:
    """What a context that knows nothing says; the last batches are of the shape that they have after `n_before`."""
    desk = Desk(model, n_seqs=1)
    _, logits = desk.read(tokens, (n_before,))
    desk.close()
    return logits


def n_cached(cached: CachedPrefix) -> int:
    return cached.live_tokens + cached.ram_tokens + cached.disk_tokens


def distance(a: Logits, b: Logits) -> float:
    """The largest difference, in parts of the spread of `b`."""
    return float(np.abs(a - b).max() / (b.max() - b.min()))


def noise(model: Model) -> float:
    """What batches of other shapes may make of sums; with quantised weights activations are rounded, too."""
    return 0.01 if model.n_params < TINY else 0.03


def same(model: Model, tokens: list[int], cached: CachedPrefix, logits: Logits) -> None:
    """What was computed with a cached prefix is what is computed without."""
    assert distance(logits, alone(model, tokens, n_cached(cached))) < noise(model)


def some(n: int, seed: int = 0) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(10, 340, n)]


@pytest.fixture(params=[*KINDS, "starter"])
def model(request: pytest.FixtureRequest, native: Bindings, starter: Path, tmp_path: Path) -> Model:
    if request.param == "starter":
        return Model(native, starter)
    return Model(native, write_tiny(tmp_path / "tiny.gguf", request.param))


def test_the_noise_of_batches_is_smaller_than_a_token_makes(model: Model) -> None:
    """Or the tests below could not fail: what they look for is a wrong prefix, as one that is off by some tokens."""
    tokens = some(300)
    true = alone(model, tokens)
    assert distance(alone(model, tokens, 170), true) < noise(model)
    for wrong in ([*tokens[:280], *tokens[290:]], [*tokens[:260], *some(35, 5), *tokens[295:]]):
        assert distance(alone(model, wrong), true) > noise(model)


def test_a_next_turn_an_edit_and_a_switch_back(model: Model) -> None:
    desk = Desk(model)
    first = some(200)
    desk.turn(first, (190,))
    following = first + some(60, 1)
    cached, logits = desk.turn(following, (200, 250))
    assert cached.live_tokens == 200
    same(model, following, cached, logits)

    edited = first + some(40, 2)
    cached, logits = desk.turn(edited, (200,))
    assert cached.live_tokens + cached.ram_tokens == 200  # from the fork, or from what was saved where the turn began
    same(model, edited, cached, logits)

    back = following + some(10, 3)
    cached, logits = desk.turn(back)
    assert n_cached(cached) == len(following)  # it was parked, not lost
    same(model, back, cached, logits)

    again = first + some(60, 1)  # regenerate: the same prompt as before
    cached, logits = desk.turn(again)
    if desk.context.can_truncate:
        assert cached.live_tokens == len(again) - 1
    else:
        assert cached.live_tokens + cached.ram_tokens >= 250  # the last boundary
    same(model, again, cached, logits)
    desk.close()


def test_a_conversation_reopened_after_a_restart(model: Model, tmp_path: Path) -> None:
    tokens = some(700)
    desk = Desk(model, tmp_path / "prefix")
    for end in (250, 300, 600):
        desk.turn(tokens[:end], (end - 20,))
        desk.save()
    desk.close()
    desk = Desk(model, tmp_path / "prefix")
    cached, logits = desk.turn(tokens)
    assert (cached.live_tokens, cached.ram_tokens, cached.disk_tokens) == (0, 0, 600)
    same(model, tokens, cached, logits)
    edited = tokens[:280] + some(50, 1)
    cached, logits = desk.turn(edited)
    assert cached.live_tokens + cached.disk_tokens == 280
    same(model, edited, cached, logits)
    desk.close()


def test_what_is_not_used_makes_room_and_comes_back_from_ram(model: Model) -> None:
    desk = Desk(model, n_seqs=2)
    talks = [some(400, seed) for seed in range(4)]
    for tokens in talks:
        desk.turn(tokens, (380,))
    cached, logits = desk.turn(talks[0] + [50])
    assert cached.ram_tokens == 400
    same(model, talks[0] + [50], cached, logits)
    desk.close()


def test_answers_side_by_side_share_the_prompt(model: Model) -> None:
    desk = Desk(model)
    prompt = some(200)
    cached, _ = desk.read(prompt)
    seqs = [cached.seq, *desk.cache.fork(cached.seq, 2)]
    answers = {seq: some(5, 10 + i) for i, seq in enumerate(seqs)}
    for step in range(5):
        desk.context.decode_each({seq: answers[seq][step] for seq in seqs})
    for i, seq in enumerate(seqs):
        assert distance(desk.logits(i), alone(model, prompt + answers[seq], 200)) < noise(model)
        desk.cache.commit(seq)
    check_cache(desk.cache)
    desk.close()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_way_through_a_tree_of_turns(
    kind: Kind, native: Bindings, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("any")
    model = Model(native, write_tiny(folder / "tiny.gguf", kind))
    desk = Desk(model, folder / "prefix", n_seqs=data.draw(st.integers(2, 4)))
    prompts = [some(40)]
    for number in range(data.draw(st.integers(2, 7))):
        action = data.draw(st.sampled_from(["turn", "turn", "turn", "idle", "restart"]))
        if action == "turn":
            before = data.draw(st.sampled_from(prompts))
            kept = data.draw(st.integers(0, len(before)))
            tokens = (before[:kept] + some(data.draw(st.integers(1, 250)), number))[: N_CTX - 10]
            cached, logits = desk.turn(tokens, (kept, len(tokens) - 1))
            same(model, tokens, cached, logits)
            prompts.append(tokens)
        elif action == "idle":
            desk.save()
        else:
            desk.close()
            desk = Desk(model, folder / "prefix")
    desk.close()
    shutil.rmtree(folder)


def test_what_a_context_can_do_is_said_by_it(native: Bindings, tmp_path: Path) -> None:
    def context(kind: Kind) -> Context:
        return a_context(
            Model(native, write_tiny(tmp_path / f"{kind}.gguf", kind)), n_ctx=N_CTX, n_threads=1, n_ubatch=64, n_seqs=2
        )

    can: dict[str, Callable[[Context], bool]] = {
        "any": lambda c: c.can_truncate,
        "whole": lambda c: c.saves_full_state,
        "back": lambda c: c.can_rewind(0, 400),
        "far back": lambda c: c.can_rewind(0, 100),
    }
    found = {}
    for kind in KINDS:
        made = context(kind)
        for start in range(0, 600, 100):
            made.decode(some(100, start))
        found[kind] = {name for name, ask in can.items() if ask(made)}
        made.close()
    assert found["llama"] == found["moe"] == {"any", "back", "far back"}
    assert "any" not in found["sliding"]
    assert "far back" not in found["sliding"]
    assert found["mamba"] == {"whole"}
    assert found["hybrid"] == found["hybrid sliding"] == set()


def test_what_a_window_lacks_cannot_be_gone_on_from(native: Bindings, tmp_path: Path) -> None:
    """Some tokens, and after them a saved window that begins later: the tokens between them are known, but not there."""
    model = Model(native, write_tiny(tmp_path / "sliding.gguf", "sliding"))
    tokens = some(300)
    context = a_context(model, n_ctx=N_CTX, n_threads=2, n_batch=128, n_ubatch=128, n_seqs=3)
    for start in range(0, 300, 100):
        context.decode(tokens[start : start + 100])
    data = context.save(0, 1, 300)
    context.drop(0)
    context.decode(tokens[:1], 1)
    assert context.restore(1, 1, tokens[1:], data)
    context.copy(1, 2, 300)
    for seq in (1, 2):
        assert [n for n in range(301) if context.can_rewind(seq, n)] == [0, 300]
        assert not context.can_append_segment(seq, 1, 280)
        assert context.can_append_segment(seq, 300, 310)
    context.decode(some(100, 1), 1)
    assert not context.can_rewind(1, 290)
    assert context.can_rewind(1, 390)
    context.drop(1)
    context.decode(tokens[:10], 1)
    assert context.can_rewind(1, 5)
    context.close()


def test_tokens_that_fill_a_tile_leave_nothing_behind(native: Bindings, starter: Path) -> None:
    model = Model(native, starter)
    context = a_context(model, n_ctx=1024, n_threads=2, n_seqs=1)
    before, after = some(900), some(58, 1)
    for start in range(0, 900, 450):
        context.decode(before[start : start + 450])
    assert context._padding(58, 900) == 6
    context.decode(after)
    assert list(context.tokens()) == before + after
    assert context._end(context._scratch) == 0
    padded = np.array(native.llama.llama_get_logits_ith(context.pointer, -1)[: model.n_vocab])
    context.decode(some(60, 2))  # 1018 of 1024: no room for them, and none needed
    assert len(context.tokens()) == 1018
    context.close()
    plain = a_context(model, n_ctx=1024, n_threads=2, n_seqs=1)
    for start in range(0, 900, 450):
        plain.decode(before[start : start + 450])
    plain.decode(after[:29])
    plain.decode(after[29:])
    logits = np.array(native.llama.llama_get_logits_ith(plain.pointer, -1)[: model.n_vocab])
    assert distance(padded, logits) < noise(model)
    plain.close()
