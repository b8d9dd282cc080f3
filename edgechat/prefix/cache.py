"""Prefix cache of a context: lease sequences to requests, restore cached prefixes, evict and save sequences."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec

from edgechat.errors import EngineError
from edgechat.prefix.common_prefix import common_prefix_length
from edgechat.prefix.disk_tier import DiskTier
from edgechat.prefix.kv_memory import KvMemory
from edgechat.prefix.owners import SequenceOwners
from edgechat.prefix.restore_plan import RestorePlan, RestorePlanner
from edgechat.prefix.segment import KvSegment
from edgechat.prefix.segment_store import SegmentStore
from edgechat.prefix.shared_prefix import SharedPrefix
from edgechat.prefix.throughput import PrefixThroughput, StopTimer, start_plain_timer
from edgechat.prefix.tree import Match, Node, PrefixTree

# Minimum length of a saved segment: computing fewer tokens again is faster than opening a file.
MIN_SEGMENT_TOKENS: Final = 16
# Maximum number of tokens that one idle task saves, so that a new request waits only for a short save. The read buffers
# also stay small, because a file has at most this number of tokens.
IDLE_SEGMENT_TOKENS: Final = 256
# Idle sequences may hold up to 128 + n / 16 cells that are not shared with a prompt of n tokens. That is enough for one
# or two other branches.
_MAX_UNSHARED_TOKENS: Final = 128
_UNSHARED_DIVISOR: Final = 16


class CachedPrefix(msgspec.Struct, frozen=True, kw_only=True):
    """Sequence that holds the cached prefix of a prompt, and the number of restored tokens by origin."""

    seq: int
    live_tokens: int = 0
    ram_tokens: int = 0
    disk_tokens: int = 0


class PrefixCache:
    """Cache of the prefixes in the sequences of a context, and in segments saved from these sequences.

    `acquire` leases a sequence to a request until `commit` or `drop`. Several sequences can be leased at the same time.
    Leased sequences are never evicted.
    """

    def __init__(
        self, memory: KvMemory, *, ram_cap_bytes: int = 0, disk: DiskTier | None = None,
        start_timer: Callable[[], StopTimer] = start_plain_timer,
    ) -> None:  # fmt: skip
        """Create an empty cache. `start_timer` starts to measure how long a segment takes to restore."""
        self._start_timer = start_timer
        self.tree = PrefixTree()
        self.throughput = PrefixThroughput()
        self.leaves: dict[int, Node] = {}
        """Last tree node of each live sequence, from which other requests can start; least recently used first."""
        self.store = SegmentStore(self.tree, self._find_live_nodes, ram_cap_bytes, disk)
        self._memory = memory
        self._owners = SequenceOwners(memory, self.store)
        self._leased_seqs: set[int] = set()
        self._token_bytes = 0.0
        """Size of a saved token in bytes; 0 before the first save."""

    @property
    def live_tokens(self) -> int:
        """Number of tokens in live sequences; tokens that several sequences share are counted once."""
        return sum(len(node.tokens) for node in self._find_live_nodes())

    @property
    def idle_tokens(self) -> int:
        """Number of tokens in live sequences that are not leased; tokens that sequences share are counted once."""
        return sum(len(node.tokens) for node in self._find_live_nodes(self._find_idle_seqs()))

    # Acquiring a sequence with the longest cached prefix of a prompt

    def acquire(
        self, tokens: Sequence[int], conversation: str = "", *, shared_prefix: SharedPrefix | None = None,
        bypass_cache: bool = False, ephemeral: bool = False,
    ) -> CachedPrefix:  # fmt: skip
        """Restore the cached prefix of `tokens`, if that is faster than prefill, and lease the sequence that holds it.

        Tokens of `shared_prefix` are saved for its owner, the others for `conversation`. The prefix never includes the
        last token, because its logits are needed. With `bypass_cache`, the prefix is empty. With `ephemeral`, live
        sequences are copied and not continued. `bypass_cache` without `ephemeral` evicts all idle sequences, so that
        the request always uses the same cells. Raises EngineError if all sequences are leased.
        """
        for seq in [s for s in self._owners if s not in self.leaves and s not in self._leased_seqs]:
            self.drop(seq)  # an unleased sequence without a leaf: its request failed
        self.store.load_headers(conversation)
        if shared_prefix is not None:
            self.store.load_headers(shared_prefix.owner)
        if bypass_cache and not ephemeral:
            while self.evict_lru():
                pass
            self._memory.clear()
        while True:
            match = self.tree.match(tokens[:-1])
            planner = RestorePlanner(self._memory, self.throughput, match, self.leaves, self.store.segments)
            plan = RestorePlan(n_tokens=0) if bypass_cache else planner.choose_plan()
            self._evict_unshared_seqs(match, len(tokens), plan.base_seq)
            cached_prefix = self._restore(plan, tokens, ephemeral=ephemeral)
            if cached_prefix is not None:
                self._owners.set(cached_prefix.seq, conversation, shared_prefix)
                self._evict_unshared_seqs(match, len(tokens), plan.base_seq if ephemeral else None)
                self._leased_seqs.add(cached_prefix.seq)
                return cached_prefix

    def _restore(self, plan: RestorePlan, tokens: Sequence[int], *, ephemeral: bool) -> CachedPrefix | None:
        """Execute a restore plan; return None if it failed because a segment or the base sequence was lost."""
        memory = self._memory
        seq = self._restore_base(plan, ephemeral=ephemeral)
        if seq is None:
            return None
        n_tokens_by_tier = {"ram": 0, "disk": 0}
        stop_timer = self._start_timer()
        for segment, data in self.store.read(plan.segments):
            n_tokens_before = len(memory.tokens(seq))
            tier = "ram" if isinstance(data, bytearray) else "disk"
            if not self._restore_segment(seq, segment, data, tokens, plan.base_seq):
                if memory.can_truncate:
                    break
                memory.drop(seq)
                return None
            n_tokens_by_tier[tier] += len(memory.tokens(seq)) - n_tokens_before
            throughput = self.throughput.ram if tier == "ram" else self.throughput.disk
            elapsed_s, is_disturbed = stop_timer()
            throughput.record(segment.n_bytes, elapsed_s, is_disturbed=is_disturbed)
            stop_timer = self._start_timer()
        return CachedPrefix(
            seq=seq,
            live_tokens=plan.base_tokens,
            ram_tokens=n_tokens_by_tier["ram"],
            disk_tokens=n_tokens_by_tier["disk"],
        )

    def _restore_base(self, plan: RestorePlan, *, ephemeral: bool) -> int | None:
        """Return a sequence with the first `base_tokens` of a plan: the base sequence, or a copy of its beginning.

        Returns an empty sequence for a plan without a base, and None if the base was evicted to free a sequence.
        """
        base_seq, memory = plan.base_seq, self._memory
        if base_seq is None:
            return self._take_unused_seq(None)
        is_usable_in_place = base_seq not in self._leased_seqs and len(memory.tokens(base_seq)) == plan.base_tokens
        if is_usable_in_place and not ephemeral and (memory.can_truncate or not plan.segments):
            self._unpublish(base_seq)
            return base_seq
        seq = self._take_unused_seq(base_seq)
        if base_seq not in self.leaves:
            return None  # `base_seq` was evicted to free a sequence
        memory.copy(base_seq, seq, plan.base_tokens)
        self.leaves[base_seq] = self.leaves.pop(base_seq)  # move to the end: most recently used
        return seq

    def _restore_segment(
        self,
        seq: int,
        segment: KvSegment,
        data: bytearray | memoryview | None,
        tokens: Sequence[int],
        base_seq: int | None,
    ) -> bool:
        """Append the part of a segment that matches the prompt; on failure, remove the segment and return False."""
        end = common_prefix_length(segment.node.path(), tokens[:-1])
        if data is not None:
            while not self._memory.restore(seq, segment.start, tokens[segment.start : end], data):
                if not self.evict_lru(seq, base_seq):
                    break
            else:
                self.store.mark_used(segment)
                return True
        self.store.remove(segment)
        return False

    # Leased sequences

    def fork(self, seq: int, n_forks: int) -> list[int]:
        """Lease `n_forks` copies of the leased sequence `seq`. Raises EngineError if too few sequences are free."""
        n_tokens = len(self._memory.tokens(seq))
        forked_seqs: list[int] = []
        try:
            for _ in range(n_forks):
                forked_seq = self._take_unused_seq(seq)
                self._memory.copy(seq, forked_seq, n_tokens)
                self._owners.copy(seq, forked_seq)
                self._leased_seqs.add(forked_seq)
                forked_seqs.append(forked_seq)
        except EngineError:
            for forked_seq in forked_seqs:
                self.drop(forked_seq)
            raise
        return forked_seqs

    def checkpoint(self, seq: int) -> None:
        """If sequences cannot be truncated, save the leased sequence `seq`, so that prompts can resume at its end."""
        if not self._memory.can_truncate:
            self._save(seq, min_tokens=1)

    def publish(self, seq: int) -> None:
        """Let other requests start from the current tokens of the leased sequence `seq`; the lease continues."""
        self._unpublish(seq)
        node = self.tree.insert(self._memory.tokens(seq))
        node.seqs.add(seq)
        self.leaves[seq] = node

    def commit(self, seq: int) -> None:
        """End the lease of `seq`; its tokens remain available as a live prefix."""
        if not self._memory.tokens(seq):
            self.drop(seq)
            return
        self._leased_seqs.discard(seq)
        self.publish(seq)

    def drop(self, seq: int) -> None:
        """Remove all tokens of `seq` and end its lease."""
        self._memory.drop(seq)
        self._leased_seqs.discard(seq)
        self._owners.drop(seq)
        self._unpublish(seq)

    def _unpublish(self, seq: int) -> None:
        node = self.leaves.pop(seq, None)
        if node is not None:
            node.seqs.discard(seq)
            self.tree.prune(node)

    # Eviction

    def evict_lru(self, *protected_seqs: int | None) -> bool:
        """Evict the least recently used idle sequence except `protected_seqs`; return False if there is none.

        Tokens that are not in any segment are saved first, if a tier accepts them.
        """
        for seq in self._find_idle_seqs():
            if seq not in protected_seqs:
                self._evict(seq)
                return True
        return False

    def evict_saved_lru(self) -> bool:
        """Evict the least recently used idle sequence that segments hold in full; return False if there is none."""
        for seq in self._find_idle_seqs():
            if self._is_saved(seq):
                self.drop(seq)
                return True
        return False

    def save_and_evict(self, n_kept: int) -> None:
        """Save idle sequences, least recently used first, and evict each sequence that is saved in full.

        The `n_kept` most recently used idle sequences are unchanged.
        """
        idle_seqs = self._find_idle_seqs()
        for seq in idle_seqs[: max(0, len(idle_seqs) - n_kept)]:
            with contextlib.suppress(MemoryError, EngineError):
                self._save(seq, min_tokens=1)
            if self._is_saved(seq):
                self.drop(seq)

    def _is_saved(self, seq: int) -> bool:
        return self._owners.count_saved_tokens(seq) == len(self._memory.tokens(seq))

    def drop_lost_sequences(self) -> None:
        """Remove all live sequences from the cache, because their memory was lost. Their leases continue."""
        for seq in range(self._memory.n_seqs):
            if seq in self._leased_seqs:
                self._unpublish(seq)
            else:
                self.drop(seq)

    def _evict(self, seq: int) -> None:
        with contextlib.suppress(MemoryError, EngineError):
            self._save(seq)
        self.drop(seq)

    def _evict_unshared_seqs(self, match: Match, n_tokens: int, protected_seq: int | None) -> None:
        """Evict idle sequences until the number of cells that they do not share with the prompt is below a limit.

        Such cells make attention slower: it reads every used cell and only then masks the cells of other sequences.
        The limit grows with `n_tokens`, the length of the prompt.
        """
        if not self.store.can_save_any:
            return  # evicted tokens would be lost, because they cannot be saved
        max_unshared_tokens = _MAX_UNSHARED_TOKENS + n_tokens // _UNSHARED_DIVISOR
        for seq in self._find_idle_seqs():
            if self._count_unshared_tokens(match) <= max_unshared_tokens:
                return
            if seq != protected_seq:
                self._evict(seq)

    def _count_unshared_tokens(self, match: Match) -> int:
        """Count the tokens of idle sequences that are shared neither with a leased sequence nor with the prompt."""
        leased_nodes = self._find_live_nodes(self._leased_seqs & self.leaves.keys())
        idle_nodes = self._find_live_nodes(self._find_idle_seqs())
        return sum(len(node.tokens) for node in idle_nodes - leased_nodes if match.n_shared(node) < node.end)

    def _find_idle_seqs(self) -> list[int]:
        """Return the live sequences that are not leased, least recently used first."""
        return [seq for seq in self.leaves if seq not in self._leased_seqs]

    def _find_live_nodes(self, seqs: Iterable[int] | None = None) -> set[Node]:
        """Return the tree nodes on the paths of `seqs`; without `seqs`, on the paths of all live sequences."""
        nodes: set[Node] = set()
        for seq in self.leaves if seqs is None else seqs:
            node: Node | None = self.leaves[seq]
            while node is not None and node not in nodes:
                nodes.add(node)
                node = node.parent
        return nodes

    def _take_unused_seq(self, protected_seq: int | None) -> int:
        """Return an unused sequence; if there is none, evict an idle sequence, preferably not `protected_seq`."""
        while True:
            for seq in range(self._memory.n_seqs):
                if seq not in self._owners:
                    self._memory.drop(seq)  # a failed request may have left tokens in the sequence
                    return seq
            if not self.evict_lru(protected_seq) and not self.evict_lru():
                raise EngineError(
                    f"All {self._memory.n_seqs} sequences of the context are in use. Send fewer requests at once."
                )

    # Saving

    def idle_step(self) -> bool:
        """Save up to 256 tokens to disk. Return False if all tokens are saved, or the disk is busy or failing."""
        self.store.remove_empty_segments()
        disk = self.store.disk
        if disk is None or disk.is_busy or disk.is_failing:
            return False
        if self.store.write_next_segment():
            return True
        for seq in reversed(self.leaves):
            if disk.accepts_owner(self._owners.find_unsaved_range(seq, MIN_SEGMENT_TOKENS)[0]):
                segment = self._save(seq, IDLE_SEGMENT_TOKENS, is_pending_write=True)
                if segment is not None:
                    self.store.write(segment)
                    return True
        return False

    def finish(self, timeout_s: float) -> None:
        """Save the remaining tokens to disk for at most `timeout_s`, and end the disk thread."""
        disk = self.store.disk
        if disk is None:
            return
        disk.resume()
        deadline = time.monotonic() + timeout_s
        # First `is_busy`: a write that ends after `idle_step` has waited for it must not end the loop.
        while (disk.is_busy or self.idle_step()) and time.monotonic() < deadline:
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
        """Save the tokens of `seq` that are not in any segment of its owners to a new segment in RAM.

        Returns None if there are fewer than `min_tokens` such tokens, or no tier accepts them. With `is_pending_write`
        the segment stays in RAM until it is written to disk, even if RAM is above its cap.
        """
        tokens = self._memory.tokens(seq)
        owner, start, end = self._owners.find_unsaved_range(seq, min_tokens)
        if not self.store.can_save(owner):
            return None
        if self._memory.can_truncate:
            end = min(end, start + (max_tokens or end))
            if not is_pending_write and end > start:
                end = min(end, start + self._count_tokens_that_fit_ram(seq, start))
        if end - start < min_tokens:
            return None
        start = 0 if self._memory.saves_full_state else start
        data = self._memory.save(seq, start, end)
        node = self.tree.insert(tokens[:end])
        segment = KvSegment(node, start, owner, can_resume=end == len(tokens), n_bytes=len(data))
        segment.data, segment.is_pending_write = data, is_pending_write
        if self._memory.can_truncate:
            self._token_bytes = len(data) / (end - start)
        self.store.add(segment)
        return segment

    def _count_tokens_that_fit_ram(self, seq: int, start: int) -> int:
        """Return the number of tokens whose KV memory fits under the RAM cap; no single save may exceed the cap."""
        if not self._token_bytes:
            self._token_bytes = float(len(self._memory.save(seq, start, start + 1)))
        return int(self.store.ram_cap_bytes / self._token_bytes)
