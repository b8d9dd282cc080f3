"""Stateful test of the prefix cache: random turns, forks, evictions, restarts and damaged files."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from edgechat.prefix.cache import PrefixCache
from edgechat.prefix.disk_tier import DiskTier, delete_conversation
from edgechat.prefix.shared_prefix import SharedPrefix, delete_pinned, make_pinned_owner
from tests.fake_memory import CellsFullError, FakeMemory, check_cache
from tests.models import KINDS, Kind
from tests.time_limit import HANG_S
from tests.waiting import delete_tree, until

N_CELLS = 400
RAM_CAP_BYTES = 40_000
tokens = st.lists(st.integers(1, 3), min_size=1, max_size=60)
conversations = st.sampled_from(["", "a", "b"])
DOCUMENTS = make_pinned_owner(["reports"])


class PrefixMachine(RuleBasedStateMachine):
    kind: ClassVar[Kind] = "llama"

    @initialize()
    def create(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.prompts: list[list[int]] = [[1, 2, 3]]
        self._start()

    def _start(self) -> None:
        self.memory = FakeMemory(self.kind, n_cells=N_CELLS)
        self.disk = DiskTier(self.folder / "prefix", 200_000, lambda pause: "weights")
        self.disk.identity = "weights"
        self.cache = PrefixCache(self.memory, ram_cap_bytes=RAM_CAP_BYTES, disk=self.disk)

    @rule(earlier=st.integers(0, 50), n_kept=st.integers(0, 300), more=tokens, reply=tokens, conversation=conversations,
          boundary=st.integers(0, 300), n_shared=st.none() | st.integers(0, 80), ephemeral=st.booleans(),
          n_forks=st.integers(0, 2))  # fmt: skip
    def turn(
        self, earlier: int, n_kept: int, more: list[int], reply: list[int], conversation: str, boundary: int, *,
        n_shared: int | None, ephemeral: bool, n_forks: int,
    ) -> None:  # fmt: skip
        """Decode a prompt that shares a prefix with an earlier one, then a reply in each fork."""
        prompt = (self.prompts[earlier % len(self.prompts)][:n_kept] + more)[: N_CELLS // 2]
        live = {s: list(self.memory.tokens(s)) for s in range(self.memory.n_seqs)}
        shared = SharedPrefix(DOCUMENTS, min(n_shared, len(prompt))) if n_shared is not None else None
        cached = self.cache.acquire(prompt, conversation, shared_prefix=shared, ephemeral=ephemeral)
        seq, prefix = cached.seq, list(self.memory.tokens(cached.seq))
        assert prefix == prompt[: len(prefix)]
        assert len(prefix) < len(prompt)
        if ephemeral:
            after = {s: list(self.memory.tokens(s)) for s in live if s != seq}
            assert all(tokens in (live[s], []) for s, tokens in after.items())
        assert cached.live_tokens + cached.ram_tokens + cached.disk_tokens == len(prefix)
        self.memory.check(seq)
        for part in (prompt[len(prefix) : boundary], prompt[max(len(prefix), boundary) :]):
            if part:
                self._decode(seq, part)
                self.cache.checkpoint(seq)
        forks = self.cache.fork(seq, n_forks)
        for i, fork in enumerate([seq, *forks]):
            for token in [*reply, i]:
                self._decode(fork, [token])
            self.memory.check(fork)
            if ephemeral:
                self.cache.drop(fork)
            else:
                self.cache.commit(fork)
                self.prompts.append(list(self.memory.tokens(fork)))

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
        self.cache.finish(HANG_S)
        self._start()

    @rule()
    def restart_without_saving(self) -> None:
        self._wait()
        self._start()

    @rule(conversation=st.sampled_from(["a", "b"]))
    def delete(self, conversation: str) -> None:
        delete_conversation(self.folder / "prefix", conversation)

    @rule()
    def delete_documents(self) -> None:
        delete_pinned(self.folder / "prefix", "reports")

    # No precondition on the files: the disk thread creates them at any moment, so that a replay could see others.
    @rule(index=st.integers(0, 100), offset=st.integers(0, 100_000), cut=st.booleans())
    def damage(self, index: int, offset: int, *, cut: bool) -> None:
        self._wait()
        files = self._files()
        if not files:
            return
        path = files[index % len(files)]
        data = bytearray(path.read_bytes() or b"cut")
        if cut:
            del data[offset % len(data) :]
        else:
            data[offset % len(data)] ^= 1 << (offset % 8)
        path.write_bytes(data)

    def _files(self) -> list[Path]:
        return sorted((self.folder / "prefix").glob("*/*/*.kv"))

    @invariant()
    def is_consistent(self) -> None:
        if not hasattr(self, "cache"):
            return
        check_cache(self.cache)
        for seq in range(self.memory.n_seqs):
            self.memory.check(seq)

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self._wait()
            delete_tree(self.folder)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [k for k in KINDS if k != "moe"])
def test_cached_prefixes_equal_computed_ones_in_random_histories(kind: Kind) -> None:
    machine = type("Machine", (PrefixMachine,), {"kind": kind})
    run_state_machine_as_test(machine, settings=settings(max_examples=40, stateful_step_count=25, deadline=None))


def test_sequence_with_a_gap_before_its_window_is_not_rewound_into_the_gap() -> None:
    """A history that the random test found: the window of a restored segment starts after the tokens before it."""
    machine = type("Machine", (PrefixMachine,), {"kind": "sliding"})()
    machine.create()
    common: dict[str, Any] = {"boundary": 0, "conversation": "", "n_shared": None, "ephemeral": False, "n_forks": 0}
    machine.turn(earlier=0, n_kept=0, more=[1], reply=[1] * 11, **common)
    for n_turns, more in ((13, [1]), (4, [1, 1])):
        for _ in range(n_turns):
            machine.turn(earlier=0, n_kept=0, more=[1], reply=[1], **common)
        machine.turn(earlier=1, n_kept=13, more=more, reply=[1], **common)
    machine.turn(earlier=0, n_kept=0, more=[1] * 4, reply=[1], **common)
