"""Prefix cache: choice between restore and prefill, leases, eviction, failing disks."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgechat.errors import EngineError
from edgechat.prefix.cache import PrefixCache
from edgechat.prefix.disk_tier import DiskTier, delete_conversation
from tests.fake_memory import FakeMemory
from tests.models import Kind
from tests.unit.prefix.segment_files import TOKENS, make_disk, wait_for_writes


def test_prefix_is_restored_only_if_that_is_faster_than_prefill(tmp_path: Path) -> None:
    def restored_tokens(prefill_tps: float) -> int:
        memory = FakeMemory("llama")
        cache = PrefixCache(memory, ram_cap_bytes=0, disk=make_disk(tmp_path))
        cache.throughput.prefill.per_s = prefill_tps
        cached = cache.acquire(TOKENS, "talk")
        memory.decode(cached.seq, TOKENS[len(memory.tokens(cached.seq)) :])
        cache.commit(cached.seq)
        cache.finish(5)
        return cached.disk_tokens

    assert restored_tokens(50) == 0  # nothing is saved yet
    assert restored_tokens(50) == 99
    assert restored_tokens(1e9) == 0


def test_finish_saves_all_tokens_if_a_write_ends_between_two_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = FakeMemory("llama")
    cache = PrefixCache(memory, ram_cap_bytes=0, disk=make_disk(tmp_path))
    memory.decode(cache.acquire(TOKENS, "talk").seq, TOKENS)
    cache.commit(0)
    answers = iter([True])
    monkeypatch.setattr(DiskTier, "is_busy", property(lambda _disk: next(answers, False)))
    cache.finish(60)
    assert len(list(tmp_path.glob("*/*/*.kv"))) == 1


@pytest.mark.parametrize("obstacle", ["unwritable directory", "cap too small", "deleted conversation"])
def test_refused_segments_are_not_retried_forever(tmp_path: Path, obstacle: str) -> None:
    root = tmp_path / "prefix"
    if obstacle == "unwritable directory":
        root.write_text("a file")
    disk = make_disk(root, cap_bytes=100 if obstacle == "cap too small" else 1 << 20)
    memory = FakeMemory("llama")
    cache = PrefixCache(memory, ram_cap_bytes=0, disk=disk)

    def count_idle_steps(tokens: list[int]) -> int:
        seq = cache.acquire(tokens, "talk").seq
        memory.decode(seq, tokens[len(memory.tokens(seq)) :])
        cache.commit(seq)
        n_steps = 0
        while cache.idle_step():
            wait_for_writes(disk)
            n_steps += 1
            assert n_steps < 10
        return n_steps

    assert count_idle_steps(TOKENS) >= 1
    if obstacle == "deleted conversation":
        delete_conversation(root, "talk")
        count_idle_steps(TOKENS + TOKENS)
    assert count_idle_steps(TOKENS + TOKENS + TOKENS) == 0


def test_acquired_sequence_is_empty_after_a_drop_or_a_failed_request() -> None:
    memory = FakeMemory("llama")
    cache = PrefixCache(memory)
    memory.decode(0, [9, 9, 9])  # left behind by a failed request
    seq = cache.acquire(TOKENS).seq
    assert list(memory.tokens(seq)) == []
    memory.decode(seq, [9])
    for _ in range(10):
        cache.drop(seq)
        seq = cache.acquire(TOKENS).seq
        assert list(memory.tokens(seq)) == []


def test_eviction_saves_only_the_tokens_that_fit_the_ram_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = FakeMemory("llama")
    saved_tokens: list[int] = []
    save = memory.save

    def recording_save(seq: int, start: int, end: int) -> bytearray:
        saved_tokens.append(end - start)
        return save(seq, start, end)

    monkeypatch.setattr(memory, "save", recording_save)
    tokens = list(range(1, 400))
    ram_cap_bytes = len(saved_memory(memory, tokens[:100]))
    cache = PrefixCache(memory, ram_cap_bytes=ram_cap_bytes)
    cache._token_bytes = ram_cap_bytes / 100
    seq = cache.acquire(tokens, "talk").seq
    memory.decode(seq, tokens)
    cache.commit(seq)
    saved_tokens.clear()
    assert cache.evict_lru()
    assert max(saved_tokens) == 100
    (segment,) = cache.store.segments
    assert (segment.start, segment.end, segment.can_resume) == (0, 100, False)
    assert segment.data is not None


def test_disturbed_restore_counts_only_until_an_undisturbed_one() -> None:
    memory = FakeMemory("llama")
    timing = (0.0, False)
    cache = PrefixCache(memory, ram_cap_bytes=1 << 20, start_timer=lambda: lambda: timing)
    seq = cache.acquire(TOKENS).seq
    memory.decode(seq, TOKENS)
    cache.commit(seq)
    assert cache.evict_lru()
    (segment,) = cache.store.segments
    for timing, seconds in (((0.002, True), 0.002), ((0.001, False), 0.001), ((0.005, True), 0.001)):  # noqa: B007
        cache.drop(cache.acquire(TOKENS).seq)
        assert cache.throughput.ram.per_s == segment.n_bytes / seconds


def saved_memory(memory: FakeMemory, tokens: list[int]) -> bytearray:
    memory.decode(0, tokens)
    data = memory.save(0, 0, len(tokens))
    memory.drop(0)
    return data


def test_leased_sequences_are_never_evicted() -> None:
    memory = FakeMemory("llama")
    cache = PrefixCache(memory)
    seqs = [cache.acquire([*TOKENS, n]).seq for n in range(memory.n_seqs)]
    assert sorted(seqs) == list(range(memory.n_seqs))
    assert not cache.evict_lru()
    with pytest.raises(EngineError, match="are in use"):
        cache.acquire(TOKENS)
    memory.decode(seqs[1], [*TOKENS, 1])
    cache.commit(seqs[1])
    assert cache.acquire([*TOKENS, 1, 2]).seq == seqs[1]  # continued in place


@pytest.mark.parametrize("kind", ["llama", "mamba"])
@pytest.mark.parametrize(("ram_cap_bytes", "uses_disk"), [(0, True), (2000, True), (2000, False), (1 << 30, False)])
def test_idle_sequence_is_evicted_only_if_all_of_it_is_saved(
    kind: Kind, ram_cap_bytes: int, tmp_path: Path, *, uses_disk: bool
) -> None:
    memory = FakeMemory(kind)
    cache = PrefixCache(memory, ram_cap_bytes=ram_cap_bytes, disk=make_disk(tmp_path) if uses_disk else None)
    seq = cache.acquire(TOKENS, "talk").seq
    memory.decode(seq, TOKENS)
    cache.commit(seq)
    assert not cache.evict_saved_lru()
    cache.save_and_evict(n_kept=1)
    assert cache.idle_tokens == len(TOKENS)
    cache.save_and_evict(n_kept=0)
    n_saved = cache.store.count_covered_tokens(TOKENS, "talk", can_truncate=memory.can_truncate)
    assert (cache.idle_tokens == 0) == (n_saved == len(TOKENS))
    if ram_cap_bytes in (0, 1 << 30):
        assert cache.idle_tokens == (0 if ram_cap_bytes else len(TOKENS))
    while uses_disk and cache.idle_step():
        assert cache.store.disk is not None
        wait_for_writes(cache.store.disk)
    if uses_disk and cache.idle_tokens:
        assert cache.evict_saved_lru()
        assert cache.idle_tokens == 0
