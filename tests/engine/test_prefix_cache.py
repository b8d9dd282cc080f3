"""Logits after a cached prefix equal computed ones, for every kind of memory and for the starter model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgechat.planner.kv_types import KvType
from edgechat.prefix.cache import CachedPrefix, PrefixCache
from edgechat.prefix.disk_tier import DiskTier
from edgechat.runtime.bindings import Bindings
from edgechat.runtime.context import Context, NoKvSlotError
from edgechat.runtime.model import Model
from tests.fake_memory import check_cache
from tests.models import KINDS, Kind, open_context, write_tiny
from tests.waiting import until

N_CTX = 1024
TINY = 1_000_000
Logits = NDArray[np.float32]


class CachedContext:
    """A context with a prefix cache; it computes prompts as the engine does."""

    def __init__(
        self, model: Model, folder: Path | None = None, *, n_seqs: int = 4, n_ctx: int = N_CTX, kv_type: KvType = "f16"
    ) -> None:
        self.context = open_context(
            model, n_ctx=n_ctx, n_threads=1, n_batch=128, n_ubatch=128, n_seqs=n_seqs, kv_type=kv_type
        )
        self.disk = DiskTier(folder, 1 << 30, lambda pause: "identity") if folder is not None else None
        if self.disk is not None:
            self.disk.identity = "identity"
        self.cache = PrefixCache(self.context, ram_cap_bytes=64 << 20, disk=self.disk)
        # Claim a slow prefill, so that the cache always restores: these models prefill faster than a file opens.
        self.cache.throughput.prefill.per_s = 1.0

    def logits(self, index: int = -1) -> Logits:
        pointer = self.context.model.bindings.llama.llama_get_logits_ith(self.context.pointer, index)
        return np.array(pointer[: self.context.model.n_vocab], dtype=np.float32)

    def prefill(
        self, tokens: list[int], checkpoints: tuple[int, ...] = (), *, conversation: str = "chat"
    ) -> tuple[CachedPrefix, Logits]:
        """Acquire a sequence and prefill the rest of the prompt; return the cached prefix and the last logits."""
        cached = self.cache.acquire(tokens, conversation)
        seq = cached.seq
        end = len(self.context.tokens(seq))
        assert list(self.context.tokens(seq)) == tokens[:end]
        if end in checkpoints:
            self.cache.checkpoint(seq)
        while end < len(tokens):
            start, end = end, min([len(tokens), end + 128, *(c for c in checkpoints if c > end)])
            while True:
                try:
                    self.context.decode(tokens[start:end], seq)
                except NoKvSlotError:
                    assert self.cache.evict_lru(seq)
                else:
                    break
            if end in checkpoints:
                self.cache.checkpoint(seq)
        return cached, self.logits()

    def run_turn(
        self, tokens: list[int], checkpoints: tuple[int, ...] = (), *, conversation: str = "chat"
    ) -> tuple[CachedPrefix, Logits]:
        cached, logits = self.prefill(tokens, checkpoints, conversation=conversation)
        self.cache.commit(cached.seq)
        check_cache(self.cache)
        return cached, logits

    def save_all(self) -> None:
        # First `is_busy`, because `idle_step` saves nothing while the disk is busy.
        until(lambda: not ((self.disk is not None and self.disk.is_busy) or self.cache.idle_step()), interval_s=0.001)

    def close(self) -> None:
        self.save_all()
        self.cache.finish(60)
        self.context.close()


def uncached_logits(model: Model, tokens: list[int], n_before: int = 0) -> Logits:
    """Compute logits without a cache, in batches of the same shapes as after a cached prefix of `n_before` tokens."""
    cached_context = CachedContext(model, n_seqs=1)
    _, logits = cached_context.prefill(tokens, (n_before,))
    cached_context.close()
    return logits


def n_cached(cached: CachedPrefix) -> int:
    return cached.live_tokens + cached.ram_tokens + cached.disk_tokens


def distance(a: Logits, b: Logits) -> float:
    """Largest difference as a share of the range of `b`."""
    return float(np.abs(a - b).max() / (b.max() - b.min()))


def noise(model: Model) -> float:
    """Upper bound of the rounding noise between batch shapes; quantised weights round the activations, too."""
    return 0.01 if model.n_params < TINY else 0.03


def assert_same_logits(model: Model, tokens: list[int], cached: CachedPrefix, logits: Logits) -> None:
    assert distance(logits, uncached_logits(model, tokens, n_cached(cached))) < noise(model)


def random_tokens(n: int, seed: int = 0) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(10, 340, n)]


@pytest.fixture(scope="module", params=[*KINDS, "starter"])
def model(
    request: pytest.FixtureRequest, native: Bindings, starter: Path, tmp_path_factory: pytest.TempPathFactory
) -> Model:
    if request.param == "starter":
        return Model(native, starter)
    return Model(native, write_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf", request.param))


def test_batch_noise_is_smaller_than_the_effect_of_wrong_tokens(model: Model) -> None:
    """Otherwise the other tests could not detect a wrong prefix, such as one with missing tokens."""
    tokens = random_tokens(300)
    expected = uncached_logits(model, tokens)
    assert distance(uncached_logits(model, tokens, 170), expected) < noise(model)
    for wrong in ([*tokens[:280], *tokens[290:]], [*tokens[:260], *random_tokens(35, 5), *tokens[295:]]):
        assert distance(uncached_logits(model, wrong), expected) > noise(model)


def test_next_turn_edit_and_branch_switch_use_the_cache(model: Model) -> None:
    cached_context = CachedContext(model)
    first = random_tokens(200)
    cached_context.run_turn(first, (190,))
    following = first + random_tokens(60, 1)
    cached, logits = cached_context.run_turn(following, (200, 250))
    assert cached.live_tokens == 200
    assert_same_logits(model, following, cached, logits)

    edited = first + random_tokens(40, 2)
    cached, logits = cached_context.run_turn(edited, (200,))
    assert cached.live_tokens + cached.ram_tokens == 200  # from the fork, or from the checkpoint where the turn began
    assert_same_logits(model, edited, cached, logits)

    back = following + random_tokens(10, 3)
    cached, logits = cached_context.run_turn(back)
    assert n_cached(cached) == len(following)  # the branch stayed live or was evicted to RAM
    assert_same_logits(model, back, cached, logits)

    again = first + random_tokens(60, 1)  # regenerate: the same prompt again
    cached, logits = cached_context.run_turn(again)
    if cached_context.context.can_truncate:
        assert cached.live_tokens == len(again) - 1
    else:
        assert cached.live_tokens + cached.ram_tokens >= 250  # the last checkpoint
    assert_same_logits(model, again, cached, logits)
    cached_context.close()


def test_prefix_on_disk_is_restored_after_a_restart(model: Model, tmp_path: Path) -> None:
    tokens = random_tokens(700)
    cached_context = CachedContext(model, tmp_path / "prefix")
    for end in (250, 300, 600):
        cached_context.run_turn(tokens[:end], (end - 20,))
        cached_context.save_all()
    cached_context.close()
    cached_context = CachedContext(model, tmp_path / "prefix")
    cached, logits = cached_context.run_turn(tokens)
    assert (cached.live_tokens, cached.ram_tokens, cached.disk_tokens) == (0, 0, 600)
    assert_same_logits(model, tokens, cached, logits)
    edited = tokens[:280] + random_tokens(50, 1)
    cached, logits = cached_context.run_turn(edited)
    assert cached.live_tokens + cached.disk_tokens == 280
    assert_same_logits(model, edited, cached, logits)
    cached_context.close()


def test_evicted_sequence_is_restored_from_ram(model: Model) -> None:
    cached_context = CachedContext(model, n_seqs=2)
    prompts = [random_tokens(400, seed) for seed in range(4)]
    for tokens in prompts:
        cached_context.run_turn(tokens, (380,))
    cached, logits = cached_context.run_turn(prompts[0] + [50])
    assert cached.ram_tokens == 400
    assert_same_logits(model, prompts[0] + [50], cached, logits)
    cached_context.close()


def test_parallel_sequences_share_the_prompt(model: Model) -> None:
    cached_context = CachedContext(model)
    prompt = random_tokens(200)
    cached, _ = cached_context.prefill(prompt)
    seqs = [cached.seq, *cached_context.cache.fork(cached.seq, 2)]
    outputs = {seq: random_tokens(5, 10 + i) for i, seq in enumerate(seqs)}
    for step in range(5):
        cached_context.context.decode_each({seq: outputs[seq][step] for seq in seqs})
    for i, seq in enumerate(seqs):
        assert distance(cached_context.logits(i), uncached_logits(model, prompt + outputs[seq], 200)) < noise(model)
        cached_context.cache.commit(seq)
    check_cache(cached_context.cache)
    cached_context.close()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_turns_restarts_and_idle_work_keep_logits_correct(
    kind: Kind, native: Bindings, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("tree")
    model = Model(native, write_tiny(folder / "tiny.gguf", kind))
    cached_context = CachedContext(model, folder / "prefix", n_seqs=data.draw(st.integers(2, 4)))
    prompts = [random_tokens(40)]
    for number in range(data.draw(st.integers(2, 7))):
        action = data.draw(st.sampled_from(["turn", "turn", "turn", "idle", "restart"]))
        if action == "turn":
            base = data.draw(st.sampled_from(prompts))
            shared = data.draw(st.integers(0, len(base)))
            tokens = (base[:shared] + random_tokens(data.draw(st.integers(1, 250)), number))[: N_CTX - 10]
            cached, logits = cached_context.run_turn(tokens, (shared, len(tokens) - 1))
            assert_same_logits(model, tokens, cached, logits)
            prompts.append(tokens)
        elif action == "idle":
            cached_context.save_all()
        else:
            cached_context.close()
            cached_context = CachedContext(model, folder / "prefix")
    cached_context.close()
    shutil.rmtree(folder)


def test_context_reports_what_its_memory_supports(native: Bindings, tmp_path: Path) -> None:
    def make_context(kind: Kind) -> Context:
        return open_context(
            Model(native, write_tiny(tmp_path / f"{kind}.gguf", kind)), n_ctx=N_CTX, n_threads=1, n_ubatch=64, n_seqs=2
        )

    capabilities: dict[str, Callable[[Context], bool]] = {
        "truncate": lambda c: c.can_truncate,
        "full state": lambda c: c.saves_full_state,
        "rewind": lambda c: c.can_rewind(0, 400),
        "rewind far": lambda c: c.can_rewind(0, 100),
    }
    supported = {}
    for kind in KINDS:
        context = make_context(kind)
        for start in range(0, 600, 100):
            context.decode(random_tokens(100, start))
        supported[kind] = {name for name, has in capabilities.items() if has(context)}
        context.close()
    assert supported["llama"] == supported["moe"] == {"truncate", "rewind", "rewind far"}
    assert "truncate" not in supported["sliding"]
    assert "rewind far" not in supported["sliding"]
    assert supported["mamba"] == {"full state"}
    assert supported["hybrid"] == supported["hybrid sliding"] == set()


def test_sequence_cannot_rewind_into_a_gap_before_a_restored_window(native: Bindings, tmp_path: Path) -> None:
    """The restored window starts later than the existing tokens end, so the cells in between are missing."""
    model = Model(native, write_tiny(tmp_path / "sliding.gguf", "sliding"))
    tokens = random_tokens(300)
    context = open_context(model, n_ctx=N_CTX, n_threads=1, n_batch=128, n_ubatch=128, n_seqs=3)
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
    context.decode(random_tokens(100, 1), 1)
    assert not context.can_rewind(1, 290)
    assert context.can_rewind(1, 390)
    context.drop(1)
    context.decode(tokens[:10], 1)
    assert context.can_rewind(1, 5)
    context.close()


def test_padding_tokens_leave_nothing_behind(native: Bindings, starter: Path) -> None:
    model = Model(native, starter)
    context = open_context(model, n_ctx=1024, n_threads=1, n_seqs=1)
    prompt, rest = random_tokens(900), random_tokens(58, 1)
    for start in range(0, 900, 450):
        context.decode(prompt[start : start + 450])
    assert context._count_padding(58, 900) == 6
    context.decode(rest)
    assert list(context.tokens()) == prompt + rest
    assert context._get_end_position(context._scratch_seq) == 0
    padded = np.array(native.llama.llama_get_logits_ith(context.pointer, -1)[: model.n_vocab])
    context.decode(random_tokens(60, 2))  # 1018 of 1024 cells: no padding fits
    assert len(context.tokens()) == 1018
    context.close()
    plain = open_context(model, n_ctx=1024, n_threads=1, n_seqs=1)
    for start in range(0, 900, 450):
        plain.decode(prompt[start : start + 450])
    plain.decode(rest[:29])
    plain.decode(rest[29:])
    logits = np.array(native.llama.llama_get_logits_ith(plain.pointer, -1)[: model.n_vocab])
    assert distance(padded, logits) < noise(model)
    plain.close()
