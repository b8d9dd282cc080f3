"""Which way leads to the longest prefix in the shortest time: live sequences, then pieces."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec

from edgechat.prefix.kv_memory import KvMemory
from edgechat.prefix.segment import KvSegment
from edgechat.prefix.throughput import PrefixThroughput
from edgechat.prefix.tree import Match, Node


class RestorePlan(msgspec.Struct, frozen=True, kw_only=True):
    """How a prefix can come into a sequence: so much of a live one, then pieces."""

    n_tokens: int
    base: int | None = None
    base_tokens: int = 0
    segments: tuple[KvSegment, ...] = ()
    cost_s: float = 0.0


class RestorePlanner:
    """All ways for one prompt."""

    def __init__(
        self,
        memory: KvMemory,
        speeds: PrefixThroughput,
        match: Match,
        tips: Mapping[int, Node],
        pieces: Collection[KvSegment],
    ) -> None:
        """`tips` are where live sequences end."""
        self._memory = memory
        self._speeds = speeds
        self._match = match
        self._tips = tips
        self._pieces = [p for p in pieces if p.data is not None or p.file is not None]

    def best(self) -> RestorePlan:
        """The one that saves most time; it may lead nowhere."""
        ways = self._at_any_position() if self._memory.can_truncate else self._at_ends()
        return max(
            ways,
            key=lambda way: self._speeds.prefill.duration_s(way.n_tokens) - way.cost_s,
            default=RestorePlan(n_tokens=0),
        )

    def _at_any_position(self) -> list[RestorePlan]:
        """The longest live prefix, and pieces after it for as long as they pay."""
        base = max(self._tips, key=lambda s: (self._match.n_shared(self._tips[s]), -self._tips[s].end), default=None)
        start = self._match.n_shared(self._tips[base]) if base is not None else 0
        way = RestorePlan(n_tokens=start, base=base if start else None, base_tokens=start)
        ways = [way]
        while True:
            usable = [
                (self._match.n_shared(p.node) - way.n_tokens, p) for p in self._pieces
                if p.start <= way.n_tokens < self._match.n_shared(p.node)
            ]  # fmt: skip
            if not usable:
                return ways
            gain, piece = max(usable, key=lambda u: self._speeds.prefill.duration_s(u[0]) - self._cost_s(u[1]))
            way = msgspec.structs.replace(
                way,
                n_tokens=way.n_tokens + gain,
                pieces=(*way.segments, piece),
                cost_s=way.cost_s + self._cost_s(piece),
            )
            ways.append(way)

    def _at_ends(self) -> list[RestorePlan]:
        """Where a live sequence or a piece can be gone on from."""
        ways = []
        for seq, tip in self._tips.items():
            shared = self._match.n_shared(tip)
            if shared and self._memory.can_rewind(seq, shared):
                ways.append(RestorePlan(n_tokens=shared, base=seq, base_tokens=shared))
        for piece in self._pieces:
            if piece.can_resume and self._match.n_shared(piece.node) == piece.end:
                way = self._chain(piece)
                if way is not None:
                    ways.append(way)
        return ways

    def _chain(self, last: KvSegment) -> RestorePlan | None:
        """All that is needed to go on from where `last` ends; None if something before it is missing."""
        chain = [last]
        while (need := chain[0].start) > 0:
            end = chain[0].end
            base = next(
                (
                    s
                    for s, t in self._tips.items()
                    if self._match.n_shared(t) >= need and self._memory.can_append_segment(s, need, end)
                ),
                None,
            )
            if base is not None:
                return self._way(last, base, need, chain)
            before = next(
                (p for p in self._pieces if p.can_resume and p.end == need == self._match.n_shared(p.node)), None
            )
            if before is None or before.start >= need:
                return None
            chain.insert(0, before)
        return self._way(last, None, 0, chain)

    def _way(self, last: KvSegment, base: int | None, base_tokens: int, chain: list[KvSegment]) -> RestorePlan:
        cost_s = sum(self._cost_s(p) for p in chain)
        return RestorePlan(n_tokens=last.end, base=base, base_tokens=base_tokens, segments=tuple(chain), cost_s=cost_s)

    def _cost_s(self, piece: KvSegment) -> float:
        return (self._speeds.ram if piece.data is not None else self._speeds.disk).duration_s(piece.n_bytes)
