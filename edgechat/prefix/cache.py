"""The one door to all tiers: which prefix of a prompt is where, and how it comes into a sequence."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from edgechat.errors import EngineError
from edgechat.prefix.common_prefix import common_prefix_length
from edgechat.prefix.disk_tier import DiskTier
from edgechat.prefix.kv_memory import KvMemory
from edgechat.prefix.restore_plan import RestorePlan, RestorePlanner
from edgechat.prefix.segment import KvSegment
from edgechat.prefix.throughput import PrefixThroughput
from edgechat.prefix.tree import Match, Node, PrefixTree

# Fewer are computed again before a file is opened.
MIN_TOKENS: Final = 16
# Saved at a time in idle moments: a request that comes then waits for so much at most. Also what a file holds, so that
# reading many of them needs a small buffer.
STEP_TOKENS: Final = 256
# Cells that others may hold while a prompt is worked on: a branch or two, and a part of what it holds itself.
PARKED_TOKENS: Final = 128
PARKED_SHARE: Final = 16


class CachedPrefix(msgspec.Struct, frozen=True, kw_only=True):
    """A sequence that holds a prefix of a prompt, and where that came from, in tokens."""

    seq: int
    live_tokens: int = 0
    ram_tokens: int = 0
    disk_tokens: int = 0


class PrefixCache:
    """Knows what every sequence of a context holds, and what was saved of others.

    Between `prepare` and `settle` a sequence is in work: it is not touched here, whatever has to make room. There may be
    several.
    """

    def __init__(self, memory: KvMemory, *, ram_cap_bytes: int = 0, disk: DiskTier | None = None) -> None:
        self.tree = PrefixTree()
        self.throughput = PrefixThroughput()
        self._memory = memory
        self._ram_cap_bytes = ram_cap_bytes
        self._disk = disk
        self.leaves: dict[int, Node] = {}
        """Where sequences end that others can begin with; in the order of their use."""
        self._owner: dict[int, str] = {}
        """The conversation of each sequence in use."""
        self._working: set[int] = set()
        """Those of them that are not to be touched."""
        self.segments: set[KvSegment] = set()
        self._token_bytes = 0.0
        """What a saved token takes; 0 if none was saved yet."""
        self._clock = itertools.count(1)

    @property
    def live_tokens(self) -> int:
        """Tokens that live sequences hold, shared ones counted once."""
        return sum(len(node.tokens) for node in self._live_nodes())

    # Before a prompt is computed

    def acquire(
        self, tokens: Sequence[int], conversation: str = "", *, bypass_cache: bool = False, ephemeral: bool = False
    ) -> CachedPrefix:
        """Get a sequence that holds as much of `tokens` as is worth having, and not the last one.

        With `is_cold` it holds nothing. With `is_aside` all live sequences stay as they are; with `is_cold` alone nothing
        else is live, so that the same cells are used each time.
        """
        for seq in [s for s in self._owner if s not in self.leaves and s not in self._working]:
            self.drop(seq)  # an error ended the work on it
        self._learn_files(conversation)
        if bypass_cache and not ephemeral:
            while self.evict_lru():
                pass
            self._memory.clear()
        while True:
            match = self.tree.match(tokens[:-1])
            ways = RestorePlanner(self._memory, self.throughput, match, self.leaves, self.segments)
            way = RestorePlan(n_tokens=0) if bypass_cache else ways.best()
            self.evict_unshared(match, len(tokens), way.base)
            cached = self._follow(way, tokens, ephemeral=ephemeral)
            if cached is not None:
                self._owner[cached.seq] = conversation
                self.evict_unshared(match, len(tokens), way.base if ephemeral else None)
                self._working.add(cached.seq)
                return cached

    def _learn_files(self, conversation: str) -> None:
        if self._disk is None:
            return
        for path, header in self._disk.new_files(conversation):
            node = self.tree.insert(header.tokens)
            piece = KvSegment(node, header.start, conversation, can_resume=header.can_resume, n_bytes=header.n_bytes)
            piece.file = path
            self._add(piece)

    def _follow(self, way: RestorePlan, tokens: Sequence[int], *, ephemeral: bool) -> CachedPrefix | None:
        """Go that way; None if a piece turned out to be none, and another way has to be found."""
        memory = self._memory
        goes_on = (
            way.base is not None and way.base not in self._working and len(memory.tokens(way.base)) == way.base_tokens
        )
        if way.base is not None and goes_on and not ephemeral and (memory.can_truncate or not way.segments):
            seq = way.base
            self._untip(seq)
        else:
            seq = self._free_seq(way.base)
            if way.base is not None:
                if way.base not in self.leaves:
                    return None  # it had to make room for what would have been made of it
                memory.copy(way.base, seq, way.base_tokens)
                self.leaves[way.base] = self.leaves.pop(way.base)  # of use just now
        n_tokens = {"ram": 0, "disk": 0}
        started = time.monotonic()
        for piece, data in self._with_data(way.segments):
            before = len(memory.tokens(seq))
            tier = "ram" if isinstance(data, bytearray) else "disk"
            if not self._restore(seq, piece, data, tokens, way.base):
                if memory.can_truncate:
                    break
                memory.drop(seq)
                return None
            n_tokens[tier] += len(memory.tokens(seq)) - before
            speed = self.throughput.ram if tier == "ram" else self.throughput.disk
            speed.record(piece.n_bytes, time.monotonic() - started)
            started = time.monotonic()
        return CachedPrefix(
            seq=seq, live_tokens=way.base_tokens, ram_tokens=n_tokens["ram"], disk_tokens=n_tokens["disk"]
        )

    def _with_data(self, way: Sequence[KvSegment]) -> Iterator[tuple[KvSegment, bytearray | memoryview | None]]:
        """Each piece with its bytes; None if they cannot be had."""
        held = [(piece, piece.data) for piece in way]  # whatever makes room meanwhile
        wanted = [(p.file, p.node.path()) for p, data in held if data is None and p.file is not None]
        with contextlib.closing(self._read(wanted)) as read:
            for piece, data in held:
                yield piece, next(read, None) if data is None else data

    def _read(self, wanted: Sequence[tuple[Path, list[int]]]) -> Generator[memoryview | None, None, None]:
        if self._disk is not None and wanted:
            yield from self._disk.read(wanted)

    def _restore(
        self, seq: int, piece: KvSegment, data: bytearray | memoryview | None, tokens: Sequence[int], base: int | None
    ) -> bool:
        """Append a piece, or what of it the prompt shares. If that fails, the piece is gone."""
        end = common_prefix_length(piece.node.path(), tokens[:-1])
        if data is not None:
            held = tokens[piece.start : end]
            while not self._memory.restore(seq, piece.start, held, data):
                if not self.evict_lru(seq, base):
                    break
            else:
                piece.last_used = next(self._clock)
                return True
        self._remove(piece)
        return False

    # Sequences in work, and after it

    def fork(self, seq: int, n_forks: int) -> list[int]:
        """More sequences that hold what `seq`, which is in work, holds; they are in work too."""
        n_tokens = len(self._memory.tokens(seq))
        forks: list[int] = []
        try:
            for _ in range(n_forks):
                fork = self._free_seq(seq)
                self._memory.copy(seq, fork, n_tokens)
                self._owner[fork] = self._owner[seq]
                self._working.add(fork)
                forks.append(fork)
        except EngineError:
            for fork in forks:
                self.drop(fork)
            raise
        return forks

    def checkpoint(self, seq: int) -> None:
        """Make it possible to come back to where `seq`, which is in work, is now."""
        if not self._memory.can_truncate:
            self._capture(seq, min_tokens=1)

    def publish(self, seq: int) -> None:
        """The work on `seq` goes on, but others can begin with what it holds now."""
        self._untip(seq)
        node = self.tree.insert(self._memory.tokens(seq))
        node.seqs.add(seq)
        self.leaves[seq] = node

    def commit(self, seq: int) -> None:
        """The work on `seq` is done; what it holds can be gone on from."""
        if not self._memory.tokens(seq):
            self.drop(seq)
            return
        self._working.discard(seq)
        self.publish(seq)

    def drop(self, seq: int) -> None:
        """Forget a sequence."""
        self._memory.drop(seq)
        self._working.discard(seq)
        self._owner.pop(seq, None)
        self._untip(seq)

    def evict_lru(self, *keep: int | None) -> bool:
        """Give up the live sequence that was not used for the longest time; False if there is none but `keep`.

        What only it holds is saved, where there is a place for it.
        """
        for seq in self._parked():
            if seq not in keep:
                self._give_up(seq)
                return True
        return False

    def _give_up(self, seq: int) -> None:
        """Release a sequence, saved if that is possible."""
        with contextlib.suppress(MemoryError, EngineError):
            self._capture(seq)
        self.drop(seq)

    def _parked(self) -> list[int]:
        """Sequences that nobody works on; those first that were not used for the longest time."""
        return [seq for seq in self.leaves if seq not in self._working]

    def evict_unshared(self, match: Match, n_tokens: int, keep: int | None) -> None:
        """Give up live sequences until a prompt of `n_tokens` is not held up by what it does not share.

        Attention looks at every cell that is in use, and finds out only then whose it is.
        """
        if not self._ram_cap_bytes and self._disk is None:
            return  # live is all there is
        most = PARKED_TOKENS + n_tokens // PARKED_SHARE
        for seq in self._parked():
            if self._parked_tokens(match) <= most:
                return
            if seq != keep:
                self._give_up(seq)

    def _parked_tokens(self, match: Match) -> int:
        """What parked sequences alone hold, and the prompt does not share."""
        working = self._live_nodes(self._working & self.leaves.keys())
        parked = self._live_nodes(self._parked())
        return sum(len(node.tokens) for node in parked - working if match.n_shared(node) < node.end)

    def _live_nodes(self, seqs: Iterable[int] | None = None) -> set[Node]:
        found: set[Node] = set()
        for seq in self.leaves if seqs is None else seqs:
            node: Node | None = self.leaves[seq]
            while node is not None and node not in found:
                found.add(node)
                node = node.parent
        return found

    def _free_seq(self, keep: int | None) -> int:
        while True:
            for seq in range(self._memory.n_seqs):
                if seq not in self._owner:
                    self._memory.drop(seq)  # whatever an error left in it
                    return seq
            if not self.evict_lru(keep) and not self.evict_lru():
                raise EngineError(
                    f"all {self._memory.n_seqs} sequences of the context are in work: ask for fewer at once"
                )

    def _untip(self, seq: int) -> None:
        node = self.leaves.pop(seq, None)
        if node is not None:
            node.seqs.discard(seq)
            self.tree.prune(node)

    # Saving

    def idle_step(self) -> bool:
        """Save a little of what is not saved yet; False if there is nothing left to do for now."""
        self._tidy()
        disk = self._disk
        if disk is None or disk.is_busy or disk.is_failing:
            return False
        for piece in self.segments:
            if piece.data is not None and piece.file is None and disk.accepts(piece.conversation):
                self._write(piece)
                return True
        for seq in reversed(self.leaves):
            if (
                disk.accepts(self._owner[seq])
                and (captured := self._capture(seq, STEP_TOKENS, is_waiting=True)) is not None
            ):
                self._write(captured)
                return True
        return False

    def finish(self, timeout_s: float) -> None:
        """Save what is not saved yet, as far as there is time."""
        if self._disk is None:
            return
        self._disk.resume()
        until_s = time.monotonic() + timeout_s
        while (self.idle_step() or self._disk.is_busy) and time.monotonic() < until_s:
            time.sleep(0.001)
        self._disk.finish(max(0.0, until_s - time.monotonic()))

    def _capture(
        self, seq: int, max_tokens: int | None = None, min_tokens: int = MIN_TOKENS, *, is_waiting: bool = False
    ) -> KvSegment | None:
        """Save what `seq` holds beyond all pieces, in RAM; None if that is little, or there is no place for it.

        With `is_waiting` it stays there until it is written.
        """
        tokens, conversation = self._memory.tokens(seq), self._owner[seq]
        if not self._ram_cap_bytes and (self._disk is None or not conversation):
            return None
        start = self._covered(tokens, conversation)
        end = len(tokens)
        if self._memory.can_truncate:
            end = min(end, start + (max_tokens or end))
            if not is_waiting and end > start:
                end = min(end, start + self._ram_tokens(seq, start))
        if end - start < min_tokens:
            return None
        start = 0 if self._memory.saves_full_state else start
        data = self._memory.save(seq, start, end)
        piece = KvSegment(
            self.tree.insert(tokens[:end]), start, conversation, can_resume=end == len(tokens), n_bytes=len(data)
        )
        piece.data, piece.is_pending_write = data, is_waiting
        if self._memory.can_truncate:
            self._token_bytes = len(data) / (end - start)
        self._add(piece)
        return piece

    def _ram_tokens(self, seq: int, start: int) -> int:
        """How many there is room for in RAM: more are not even taken out, which would take as much memory for a moment."""
        if not self._token_bytes:
            self._token_bytes = float(len(self._memory.save(seq, start, start + 1)))
        return int(self._ram_cap_bytes / self._token_bytes)

    def _covered(self, tokens: Sequence[int], conversation: str) -> int:
        """How much of `tokens` can be put together from what was saved of this conversation."""
        match = self.tree.match(tokens)
        own = [p for p in self.segments if p.conversation == conversation and p.has_data]
        if not self._memory.can_truncate:
            return max((p.end for p in own if p.can_resume and match.n_shared(p.node) == p.end), default=0)
        done = 0
        while (further := max((match.n_shared(p.node) for p in own if p.start <= done), default=0)) > done:
            done = further
        return done

    def _write(self, piece: KvSegment) -> None:
        if self._disk is not None:
            self._disk.queue_write(piece, piece.node.path())

    def _add(self, piece: KvSegment) -> None:
        piece.last_used = next(self._clock)
        piece.node.segments.append(piece)
        self.segments.add(piece)
        self._limit_ram()

    def _remove(self, piece: KvSegment) -> None:
        self.segments.discard(piece)
        piece.node.segments.remove(piece)
        self.tree.prune(piece.node)

    def _tidy(self) -> None:
        """Give up pieces that are nowhere."""
        for piece in list(self.segments):
            if not piece.has_data:
                self._remove(piece)
        self._limit_ram()

    def _limit_ram(self) -> None:
        """Keep the bytes in RAM under their cap; what waits for the disk goes last."""
        live = self._live_nodes()
        held = sorted(
            (p for p in self.segments if p.data is not None),
            key=lambda p: (p.is_pending_write, not (p.file is not None and p.node in live), p.last_used),
        )
        total = sum(p.n_bytes for p in held)
        for piece in held:
            if total <= self._ram_cap_bytes or piece.is_pending_write:
                return
            total -= piece.n_bytes
            piece.data = None
            if not piece.has_data:
                self._remove(piece)
