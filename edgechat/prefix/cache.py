"""Prefix cache of a context: match, acquire, commit, drop and evict sequences, and save them to RAM and disk."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from edgechat.errors import EngineError
from edgechat.prefix.common_prefix import common_prefix_length
from edgechat.prefix.disk_tier import DiskTier
from edgechat.prefix.kv_memory import KvMemory
from edgechat.prefix.restore_plan import RestorePlan, RestorePlanner
from edgechat.prefix.segment import KvSegment
from edgechat.prefix.segment_store import SegmentStore
from edgechat.prefix.throughput import PrefixThroughput
from edgechat.prefix.tree import Match, Node, PrefixTree

# Shorter segments are not saved: computing the tokens again is cheaper than opening a file.
MIN_SEGMENT_TOKENS: Final = 16
# Maximum tokens per save during idle time, so that a new request waits only for one such save. As a file then has at
# most this many tokens, reading many files needs only a small buffer.
IDLE_SEGMENT_TOKENS: Final = 256
# Idle sequences may hold 128 + n / 16 cells that a prompt of n tokens does not share: enough for one or two branches.
_UNSHARED_TOKENS: Final = 128
_UNSHARED_SHARE: Final = 16


class CachedPrefix(msgspec.Struct, frozen=True, kw_only=True):
    """Sequence that holds the cached prefix of a prompt, and the number of tokens from each tier."""

    seq: int
    live_tokens: int = 0
    ram_tokens: int = 0
    disk_tokens: int = 0


class PrefixCache:
    """Prefix tree over the sequences of a context, and the segments that were saved from them.

    `acquire` leases a sequence until `commit` or `drop`. Leased sequences are never evicted; several may be leased at
    once.
    """

    def __init__(self, memory: KvMemory, *, ram_cap_bytes: int = 0, disk: DiskTier | None = None) -> None:
        self.tree = PrefixTree()
        self.throughput = PrefixThroughput()
        self.leaves: dict[int, Node] = {}
        """Last node of each sequence that other requests can start from, least recently used first."""
        self.store = SegmentStore(self.tree, self._live_nodes, ram_cap_bytes, disk)
        self._memory = memory
        self._conversations: dict[int, str] = {}
        """Conversation id of each sequence in use."""
        self._leased_seqs: set[int] = set()
        self._token_bytes = 0.0
        """Bytes per saved token; 0 before the first save."""

    @property
    def live_tokens(self) -> int:
        """Number of tokens in live sequences; tokens that sequences share count once."""
        return sum(len(node.tokens) for node in self._live_nodes())

    # Acquire: restore the longest cached prefix of a prompt

    def acquire(
        self, tokens: Sequence[int], conversation: str = "", *, bypass_cache: bool = False, ephemeral: bool = False
    ) -> CachedPrefix:
        """Restore the cached prefix of `tokens` by the best plan, and lease the sequence that holds it.

        The prefix never includes the last token, whose logits are needed. With `bypass_cache` the prefix is empty.
        With `ephemeral` no live sequence is continued in place; `bypass_cache` without `ephemeral` evicts all live
        sequences, so that such requests always use the same cells. Raises EngineError if all sequences are leased.
        """
        for seq in [s for s in self._conversations if s not in self.leaves and s not in self._leased_seqs]:
            self.drop(seq)  # the request of this sequence failed
        self.store.load_headers(conversation)
        if bypass_cache and not ephemeral:
            while self.evict_lru():
                pass
            self._memory.clear()
        while True:
            match = self.tree.match(tokens[:-1])
            planner = RestorePlanner(self._memory, self.throughput, match, self.leaves, self.store.segments)
            plan = RestorePlan(n_tokens=0) if bypass_cache else planner.best()
            self._evict_unshared(match, len(tokens), plan.base)
            cached = self._restore(plan, tokens, ephemeral=ephemeral)
            if cached is not None:
                self._conversations[cached.seq] = conversation
                self._evict_unshared(match, len(tokens), plan.base if ephemeral else None)
                self._leased_seqs.add(cached.seq)
                return cached

    def _restore(self, plan: RestorePlan, tokens: Sequence[int], *, ephemeral: bool) -> CachedPrefix | None:
        """Execute a restore plan; None if a segment turned out to be invalid, so that another plan is needed."""
        memory = self._memory
        seq = self._restore_base(plan, ephemeral=ephemeral)
        if seq is None:
            return None
        n_tokens = {"ram": 0, "disk": 0}
        started_at = time.monotonic()
        for segment, data in self.store.read(plan.segments):
            n_before = len(memory.tokens(seq))
            tier = "ram" if isinstance(data, bytearray) else "disk"
            if not self._restore_segment(seq, segment, data, tokens, plan.base):
                if memory.can_truncate:
                    break
                memory.drop(seq)
                return None
            n_tokens[tier] += len(memory.tokens(seq)) - n_before
            throughput = self.throughput.ram if tier == "ram" else self.throughput.disk
            throughput.record(segment.n_bytes, time.monotonic() - started_at)
            started_at = time.monotonic()
        return CachedPrefix(
            seq=seq, live_tokens=plan.base_tokens, ram_tokens=n_tokens["ram"], disk_tokens=n_tokens["disk"]
        )

    def _restore_base(self, plan: RestorePlan, *, ephemeral: bool) -> int | None:
        """Return a sequence that holds the live part of a plan: the base itself, or a copy of its first tokens."""
        base, memory = plan.base, self._memory
        if base is None:
            return self._free_seq(None)
        is_whole_sequence = base not in self._leased_seqs and len(memory.tokens(base)) == plan.base_tokens
        if is_whole_sequence and not ephemeral and (memory.can_truncate or not plan.segments):
            self._unpublish(base)
            return base
        seq = self._free_seq(base)
        if base not in self.leaves:
            return None  # freeing the sequence evicted `base`
        memory.copy(base, seq, plan.base_tokens)
        self.leaves[base] = self.leaves.pop(base)  # now the most recently used
        return seq

    def _restore_segment(
        self, seq: int, segment: KvSegment, data: bytearray | memoryview | None, tokens: Sequence[int], base: int | None
    ) -> bool:
        """Append the part of a segment that the prompt shares; if that fails, remove the segment and return False."""
        end = common_prefix_length(segment.node.path(), tokens[:-1])
        if data is not None:
            while not self._memory.restore(seq, segment.start, tokens[segment.start : end], data):
                if not self.evict_lru(seq, base):
                    break
            else:
                self.store.mark_used(segment)
                return True
        self.store.remove(segment)
        return False

    # Leased sequences

    def fork(self, seq: int, n_forks: int) -> list[int]:
        """Lease `n_forks` copies of the leased sequence `seq`. Raises EngineError if all sequences are leased."""
        n_tokens = len(self._memory.tokens(seq))
        forks: list[int] = []
        try:
            for _ in range(n_forks):
                fork = self._free_seq(seq)
                self._memory.copy(seq, fork, n_tokens)
                self._conversations[fork] = self._conversations[seq]
                self._leased_seqs.add(fork)
                forks.append(fork)
        except EngineError:
            for fork in forks:
                self.drop(fork)
            raise
        return forks

    def checkpoint(self, seq: int) -> None:
        """Save the leased sequence `seq` if its memory cannot be truncated, so that prompts can resume here later."""
        if not self._memory.can_truncate:
            self._save(seq, min_tokens=1)

    def publish(self, seq: int) -> None:
        """Let other requests start from the current tokens of `seq`; the lease continues."""
        self._unpublish(seq)
        node = self.tree.insert(self._memory.tokens(seq))
        node.seqs.add(seq)
        self.leaves[seq] = node

    def commit(self, seq: int) -> None:
        """End the lease of `seq` and keep its tokens as a live prefix."""
        if not self._memory.tokens(seq):
            self.drop(seq)
            return
        self._leased_seqs.discard(seq)
        self.publish(seq)

    def drop(self, seq: int) -> None:
        """Empty a sequence and end its lease."""
        self._memory.drop(seq)
        self._leased_seqs.discard(seq)
        self._conversations.pop(seq, None)
        self._unpublish(seq)

    def _unpublish(self, seq: int) -> None:
        node = self.leaves.pop(seq, None)
        if node is not None:
            node.seqs.discard(seq)
            self.tree.prune(node)

    # Evict

    def evict_lru(self, *keep: int | None) -> bool:
        """Evict the least recently used sequence that is not leased and not in `keep`; False if none is left.

        Tokens that no segment covers are saved before, if a tier accepts them.
        """
        for seq in self._idle_seqs():
            if seq not in keep:
                self._evict(seq)
                return True
        return False

    def _evict(self, seq: int) -> None:
        with contextlib.suppress(MemoryError, EngineError):
            self._save(seq)
        self.drop(seq)

    def _evict_unshared(self, match: Match, n_tokens: int, keep: int | None) -> None:
        """Evict idle sequences until the prompt of `n_tokens` shares nearly all cells that they hold.

        Attention reads every cell in use, and masks the cells of other sequences only afterwards.
        """
        if not self.store.has_tier:
            return  # evicted tokens would be lost
        limit = _UNSHARED_TOKENS + n_tokens // _UNSHARED_SHARE
        for seq in self._idle_seqs():
            if self._n_unshared(match) <= limit:
                return
            if seq != keep:
                self._evict(seq)

    def _n_unshared(self, match: Match) -> int:
        """Count the tokens that only idle sequences hold and the prompt does not share."""
        leased = self._live_nodes(self._leased_seqs & self.leaves.keys())
        idle = self._live_nodes(self._idle_seqs())
        return sum(len(node.tokens) for node in idle - leased if match.n_shared(node) < node.end)

    def _idle_seqs(self) -> list[int]:
        """Return the live sequences that are not leased, least recently used first."""
        return [seq for seq in self.leaves if seq not in self._leased_seqs]

    def _live_nodes(self, seqs: Iterable[int] | None = None) -> set[Node]:
        """Return the nodes on the paths of `seqs`, or of all live sequences."""
        nodes: set[Node] = set()
        for seq in self.leaves if seqs is None else seqs:
            node: Node | None = self.leaves[seq]
            while node is not None and node not in nodes:
                nodes.add(node)
                node = node.parent
        return nodes

    def _free_seq(self, keep: int | None) -> int:
        """Return an unused sequence; evicts one if needed, preferably not `keep`."""
        while True:
            for seq in range(self._memory.n_seqs):
                if seq not in self._conversations:
                    self._memory.drop(seq)  # a failed request may have left tokens
                    return seq
            if not self.evict_lru(keep) and not self.evict_lru():
                raise EngineError(
                    f"All {self._memory.n_seqs} sequences of the context are in use. Send fewer requests at once."
                )

    # Save

    def idle_step(self) -> bool:
        """Save up to 256 tokens to disk during idle time; False if all is saved, or the disk is busy or failing."""
        self.store.remove_empty()
        disk = self.store.disk
        if disk is None or disk.is_busy or disk.is_failing:
            return False
        if self.store.write_next():
            return True
        for seq in reversed(self.leaves):
            if disk.accepts(self._conversations[seq]):
                segment = self._save(seq, IDLE_SEGMENT_TOKENS, is_pending_write=True)
                if segment is not None:
                    self.store.write(segment)
                    return True
        return False

    def finish(self, timeout_s: float) -> None:
        """Save the remaining tokens to disk within `timeout_s`, and end the disk thread."""
        disk = self.store.disk
        if disk is None:
            return
        disk.resume()
        deadline = time.monotonic() + timeout_s
        while (self.idle_step() or disk.is_busy) and time.monotonic() < deadline:
            time.sleep(0.001)
        disk.finish(max(0.0, deadline - time.monotonic()))

    def _save(
        self,
        seq: int,
        max_tokens: int | None = None,
        min_tokens: int = MIN_SEGMENT_TOKENS,
        *,
        is_pending_write: bool = False,
    ) -> KvSegment | None:
        """Copy the tokens of `seq` that no segment covers to a segment in RAM.

        Returns None if there are fewer than `min_tokens`, or no tier accepts them. With `is_pending_write` the segment
        stays in RAM, even above the cap, until it is written to disk.
        """
        tokens, conversation = self._memory.tokens(seq), self._conversations[seq]
        if not self.store.can_save(conversation):
            return None
        start = self.store.count_covered(tokens, conversation, can_truncate=self._memory.can_truncate)
        end = len(tokens)
        if self._memory.can_truncate:
            end = min(end, start + (max_tokens or end))
            if not is_pending_write and end > start:
                end = min(end, start + self._n_fitting_ram(seq, start))
        if end - start < min_tokens:
            return None
        start = 0 if self._memory.saves_full_state else start
        data = self._memory.save(seq, start, end)
        node = self.tree.insert(tokens[:end])
        segment = KvSegment(node, start, conversation, can_resume=end == len(tokens), n_bytes=len(data))
        segment.data, segment.is_pending_write = data, is_pending_write
        if self._memory.can_truncate:
            self._token_bytes = len(data) / (end - start)
        self.store.add(segment)
        return segment

    def _n_fitting_ram(self, seq: int, start: int) -> int:
        """Return how many tokens fit under the RAM cap; saving more would exceed the cap temporarily."""
        if not self._token_bytes:
            self._token_bytes = float(len(self._memory.save(seq, start, start + 1)))
        return int(self.store.ram_cap_bytes / self._token_bytes)
