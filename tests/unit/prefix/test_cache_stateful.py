"""Random turns, edits, forks, evictions, restarts and damage against a memory that checks every token it is given."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from edgechat.prefix.cache import PrefixCache
from edgechat.prefix.disk_tier import DiskTier, delete_conversation
from tests.fake_memory import CellsFullError, FakeMemory, check_cache
from tests.models import KINDS, Kind
from tests.waiting import until

N_CELLS = 400
RAM_CAP_BYTES = 40_000
tokens = st.lists(st.integers(1, 3), min_size=1, max_size=60)
conversations = st.sampled_from(["", "a", "b"])


class PrefixMachine(RuleBasedStateMachine):
    kind: ClassVar[Kind] = "llama"

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.prompts: list[list[int]] = [[1, 2, 3]]
        self._start()

    def _start(self) -> None:
        self.memory = FakeMemory(self.kind, n_cells=N_CELLS)
        self.disk = DiskTier(self.folder / "prefix", 200_000, lambda pause: "weights")
        self.disk.identity = "weights"
        self.cache = PrefixCache(self.memory, ram_cap_bytes=RAM_CAP_BYTES, disk=self.disk)

    @rule(of=st.integers(0, 50), keep=st.integers(0, 300), more=tokens, answer=tokens, whose=conversations,
          boundary=st.integers(0, 300), transient=st.booleans(), n_forks=st.integers(0, 2))  # fmt: skip
    def turn(
        self, of: int, keep: int, more: list[int], answer: list[int], whose: str, boundary: int, *,
        transient: bool, n_forks: int,
    ) -> None:  # fmt: skip
        """A prompt that begins like an earlier one, and its answer."""
        prompt = (self.prompts[of % len(self.prompts)][:keep] + more)[: N_CELLS // 2]
        live = {s: list(self.memory.tokens(s)) for s in range(self.memory.n_seqs)}
        cached = self.cache.acquire(prompt, whose, ephemeral=transient)
        seq, held = cached.seq, list(self.memory.tokens(cached.seq))
        assert held == prompt[: len(held)]
        assert len(held) < len(prompt)
        if transient:
            after = {s: list(self.memory.tokens(s)) for s in live if s != seq}
            assert all(tokens in (live[s], []) for s, tokens in after.items())
        assert cached.live_tokens + cached.ram_tokens + cached.disk_tokens == len(held)
        self.memory.check(seq)
        for part in (prompt[len(held) : boundary], prompt[max(len(held), boundary) :]):
            if part:
                self._decode(seq, part)
                self.cache.checkpoint(seq)
        forks = self.cache.fork(seq, n_forks)
        for i, at in enumerate([seq, *forks]):
            for token in [*answer, i]:
                self._decode(at, [token])
            self.memory.check(at)
            if transient:
                self.cache.drop(at)
            else:
                self.cache.commit(at)
                self.prompts.append(list(self.memory.tokens(at)))

    def _decode(self, seq: int, part: list[int]) -> None:
        while True:
            try:
                self.memory.decode(seq, part)
            except CellsFullError:
                assert self.cache.evict_lru(seq)
            else:
                return

    @rule(n=st.integers(1, 5))
    def idle(self, n: int) -> None:
        for _ in range(n):
            self.cache.idle_step()
            self._wait()

    def _wait(self) -> None:
        until(lambda: not self.disk.is_busy, interval_s=0.0005)

    @rule()
    def restart(self) -> None:
        self.cache.finish(5)
        self._start()

    @rule()
    def killed(self) -> None:
        self._wait()
        self._start()

    @rule(whose=st.sampled_from(["a", "b"]))
    def delete(self, whose: str) -> None:
        delete_conversation(self.folder / "prefix", whose)

    @precondition(lambda self: self._files())
    @rule(which=st.integers(0, 100), where=st.integers(0, 100_000), cut=st.booleans())
    def damage(self, which: int, where: int, *, cut: bool) -> None:
        path = self._files()[which % len(self._files())]
        data = bytearray(path.read_bytes() or b"cut")
        if cut:
            del data[where % len(data) :]
        else:
            data[where % len(data)] ^= 1 << (where % 8)
        path.write_bytes(data)

    def _files(self) -> list[Path]:
        return sorted((self.folder / "prefix").glob("*/*/*.kv"))

    @invariant()
    def is_sound(self) -> None:
        if not hasattr(self, "cache"):
            return
        check_cache(self.cache)
        for seq in range(self.memory.n_seqs):
            self.memory.check(seq)

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self._wait()
            shutil.rmtree(self.folder)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "moe"])
def test_a_cached_prefix_is_the_one_that_would_be_computed(kind: Kind) -> None:
    machine = type("Machine", (PrefixMachine,), {"kind": kind})
    run_state_machine_as_test(machine, settings=settings(max_examples=40, stateful_step_count=25, deadline=None))
