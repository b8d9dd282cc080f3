"""When the size of a context changes: how much memory is free, what is evicted first, and when growing is refused."""

from __future__ import annotations

import threading
from typing import Any, Final

import pytest

from edgechat.engine import protocol
from edgechat.engine.context_sizing import ContextSizer
from edgechat.errors import EngineError
from edgechat.hardware.free_memory import FreeMemory
from edgechat.prefix.cache import PrefixCache
from edgechat.runtime.resizable_context import ResizeError
from tests.fake_memory import FakeMemory
from tests.models import growth

MIB: Final = 1 << 20
GIB: Final = 1 << 30
PLENTY: Final = FreeMemory(total_bytes=64 * GIB, available_bytes=60 * GIB)
SHORT: Final = FreeMemory(total_bytes=8 * GIB, available_bytes=50 * MIB)


class FakeContext:
    """A context without a model, whose cells need 64 KiB each."""

    def __init__(self) -> None:
        self.n_ctx, self.max_n_ctx = 256, 4096
        self.is_open = True
        self.state_bytes = MIB
        self.lengths: list[int] = []
        self.error: Exception | None = None

    def resize(self, n_ctx: int) -> None:
        if self.error is not None:
            raise self.error
        self.n_ctx = n_ctx
        self.lengths.append(n_ctx)


class Sizing:
    """A ContextSizer with a clock, a reader of free memory, and the events that it sends."""

    def __init__(self, ram_cap_bytes: int = 0) -> None:
        self.context = FakeContext()
        self.sequences = FakeMemory("llama")
        self.cache = PrefixCache(self.sequences, ram_cap_bytes=ram_cap_bytes)
        self.memory = PLENTY
        self.n_reads = 0
        self.now = 0.0
        self.events: list[Any] = []
        self.sizer = ContextSizer(
            self.context, self.cache, growth(256, 4096, 64 << 10), self.events.append, self._read,  # type: ignore[arg-type]
            lambda: self.now,
        )  # fmt: skip

    def _read(self) -> FreeMemory:
        self.n_reads += 1
        return self.memory

    def grow(self, n_needed: int = 1000, request_id: int = 1, *, is_required: bool = False) -> bool:
        return self.sizer.grow(n_needed, [request_id], [request_id], is_required=is_required)

    def check(self) -> None:
        self.now += 2.0
        self.sizer.check_memory(100, [1])

    def add_idle_sequence(self, n_tokens: int, conversation: str = "") -> None:
        tokens = [len(self.sequences.tokens(0)) + 1, *range(2, n_tokens + 1)]
        seq = self.cache.acquire(tokens, conversation).seq
        self.sequences.decode(seq, tokens[len(self.sequences.tokens(seq)) :])
        self.cache.commit(seq)


def test_lost_context_is_neither_shrunk_nor_grown() -> None:
    sizing = Sizing()
    assert sizing.grow()
    sizing.context.error = ResizeError("out of memory", lost_sequences=True)
    with pytest.raises(EngineError, match="out of memory"):
        sizing.grow(2000)
    sizing.context.is_open, sizing.context.error = False, AssertionError("the closed context is resized")
    sizing.memory = SHORT
    sizing.check()
    assert sizing.sizer.idle_step(301.0) is None
    assert not sizing.grow(2000)


def test_model_drafter_is_freed_while_the_engine_is_idle() -> None:
    sizing = Sizing()
    n_freed = 0

    def free() -> bool:
        nonlocal n_freed
        n_freed += 1
        return n_freed == 1

    assert sizing.sizer.idle_step(1.0) is None, "there is nothing to free"
    sizing.sizer._free_drafter = free
    assert sizing.sizer.idle_step(1.0)
    assert n_freed == 0
    sizing.memory = SHORT
    sizing.now += 10.0
    assert sizing.sizer.idle_step(11.0)
    assert n_freed == 1


def test_context_is_not_copied_without_memory_for_the_copy() -> None:
    sizing = Sizing()
    assert sizing.grow()
    sizing.memory = SHORT
    sizing.context.state_bytes = 60 * MIB
    sizing.check()
    sizing.sizer.idle_step(301.0)
    assert sizing.context.n_ctx > 256
    sizing.context.state_bytes = 40 * MIB
    sizing.check()
    assert sizing.context.n_ctx == 256


def test_prefixes_in_ram_are_discarded_before_the_context_shrinks() -> None:
    sizing = Sizing(ram_cap_bytes=GIB)
    sizing.add_idle_sequence(100)
    assert sizing.cache._save(0) is not None
    store = sizing.cache.store
    assert store.ram_bytes
    assert sizing.grow()
    sizing.memory = SHORT
    sizing.context.state_bytes = 60 * MIB
    sizing.check()
    assert not store.ram_bytes
    assert sizing.cache.idle_tokens == 100, "a sequence that is not saved was removed"


def test_discarding_prefixes_can_suffice() -> None:
    sizing = Sizing(ram_cap_bytes=GIB)
    sizing.add_idle_sequence(100)
    assert sizing.cache._save(0) is not None
    assert sizing.grow()
    sizing.memory = SHORT
    discard = sizing.cache.store.discard_from_ram

    def discard_much(n_bytes: int) -> None:
        assert n_bytes == 206 * MIB
        discard(n_bytes)
        sizing.memory = PLENTY

    sizing.cache.store.discard_from_ram = discard_much  # type: ignore[method-assign]
    sizing.check()
    assert sizing.context.n_ctx > 256


def test_stalls_with_ample_memory_do_not_resize_the_context() -> None:
    sizing = Sizing()
    sizing.memory = FreeMemory(64 * GIB, 60 * GIB, stall_percent=30.0)
    assert sizing.grow()
    lengths = list(sizing.context.lengths)
    for _ in range(6000):
        sizing.check()
    assert sizing.context.lengths == lengths


def test_stalls_with_little_memory_shrink_the_context_and_keep_it_from_growing() -> None:
    sizing = Sizing()
    assert sizing.grow()
    sizing.memory = FreeMemory(64 * GIB, 500 * MIB)
    sizing.check()
    assert sizing.context.n_ctx > 256
    sizing.memory = FreeMemory(64 * GIB, 500 * MIB, stall_percent=30.0)
    sizing.check()
    assert sizing.context.n_ctx == 256
    assert not sizing.grow(is_required=True)


def test_context_does_not_alternate_between_two_sizes() -> None:
    sizing = Sizing()
    assert sizing.grow()
    sizing.memory = SHORT
    sizing.check()
    assert sizing.context.n_ctx == 256
    sizing.memory = PLENTY
    assert not sizing.grow(request_id=2)
    assert sizing.grow(is_required=True), "a request that needs the cells waits"
    sizing.memory = SHORT
    sizing.check()
    sizing.memory = PLENTY
    sizing.now += 61.0
    assert sizing.grow(request_id=3)


def test_new_request_checks_memory_at_once_after_a_refusal() -> None:
    sizing = Sizing()
    sizing.memory = SHORT
    for _ in range(8):  # the time between two checks becomes minutes
        assert not sizing.grow(is_required=True)
    sizing.now += 4.0
    sizing.memory = PLENTY
    assert sizing.grow(request_id=2)


def test_refused_request_does_not_check_memory_in_each_step() -> None:
    sizing = Sizing()
    sizing.memory = SHORT
    assert not sizing.grow()
    n_reads = sizing.n_reads
    for _ in range(100):
        assert not sizing.grow()
    assert sizing.n_reads == n_reads
    sizing.now += 6.0
    sizing.memory = PLENTY
    assert sizing.grow()


def test_context_that_could_not_be_opened_is_not_opened_again_for_each_request() -> None:
    sizing = Sizing()
    sizing.context.error = ResizeError("out of memory", lost_sequences=False)
    assert not sizing.grow(is_required=True)
    sizing.context.error = AssertionError("opened again")
    assert not sizing.grow(request_id=2, is_required=True)
    assert [e.id for e in sizing.events if isinstance(e, protocol.ContextGrowthRefused)] == [1, 2]
    started = [e.n_ctx for e in sizing.events if isinstance(e, protocol.ContextResizeStarted)]
    assert started == [1280], "the client does not know which length was tried"


def test_shrinking_for_more_than_a_second_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    class Timer:
        daemon = False

        def __init__(self, _delay_s: float, report: Any) -> None:
            self.start = report

        def cancel(self) -> None:
            pass

    monkeypatch.setattr(threading, "Timer", Timer)
    sizing = Sizing()
    assert sizing.grow()
    sizing.memory = SHORT
    sizing.check()
    events = [event for event in sizing.events if isinstance(event, protocol.ContextResizing)]
    assert [(event.id, event.is_growing) for event in events] == [(1, True), (1, False)]
    assert events[1].n_ctx == 256
