"""Restore plans: choose live sequences and segments that restore the longest prefix in the shortest time."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec

from edgechat.prefix.kv_memory import KvMemory
from edgechat.prefix.segment import KvSegment
from edgechat.prefix.throughput import PrefixThroughput
from edgechat.prefix.tree import Match, Node


class RestorePlan(msgspec.Struct, frozen=True, kw_only=True):
    """Steps that restore a prefix: copy `base_tokens` of the live sequence `base`, then append `segments`."""

    n_tokens: int
    """Length of the restored prefix."""
    base: int | None = None
    """Live sequence that holds the first tokens; None for a plan without a live sequence."""
    base_tokens: int = 0
    segments: tuple[KvSegment, ...] = ()
    cost_s: float = 0.0
    """Expected time to restore the segments."""


class RestorePlanner:
    """Builds the possible restore plans for one prompt and chooses the best one."""

    def __init__(
        self,
        memory: KvMemory,
        throughput: PrefixThroughput,
        match: Match,
        leaves: Mapping[int, Node],
        segments: Collection[KvSegment],
    ) -> None:
        """Plan for the prompt that produced `match`; `leaves` are the last nodes of the live sequences."""
        self._memory = memory
        self._throughput = throughput
        self._match = match
        self._leaves = leaves
        self._segments = [s for s in segments if s.data is not None or s.file is not None]

    def best(self) -> RestorePlan:
        """Return the plan that saves the most time over prefill; it may restore nothing."""
        plans = self._truncating_plans() if self._memory.can_truncate else self._exact_plans()
        return max(
            plans,
            key=lambda plan: self._throughput.prefill.duration_s(plan.n_tokens) - plan.cost_s,
            default=RestorePlan(n_tokens=0),
        )

    def _truncating_plans(self) -> list[RestorePlan]:
        """Start with the longest live prefix; add the segment with the highest gain until no segment extends it."""
        base = max(self._leaves, key=lambda s: (self._shared(self._leaves[s]), -self._leaves[s].end), default=None)
        start = self._shared(self._leaves[base]) if base is not None else 0
        plan = RestorePlan(n_tokens=start, base=base if start else None, base_tokens=start)
        plans = [plan]
        while True:
            candidates = [
                (self._shared(s.node) - plan.n_tokens, s) for s in self._segments
                if s.start <= plan.n_tokens < self._shared(s.node)
            ]  # fmt: skip
            if not candidates:
                return plans
            n_gained, segment = max(
                candidates, key=lambda c: self._throughput.prefill.duration_s(c[0]) - self._cost_s(c[1])
            )
            plan = msgspec.structs.replace(
                plan, n_tokens=plan.n_tokens + n_gained, segments=(*plan.segments, segment),
                cost_s=plan.cost_s + self._cost_s(segment),
            )  # fmt: skip
            plans.append(plan)

    def _exact_plans(self) -> list[RestorePlan]:
        """Return the plans that end where a live sequence or a resumable segment ends (memory cannot be truncated)."""
        plans = []
        for seq, leaf in self._leaves.items():
            n_shared = self._shared(leaf)
            if n_shared and self._memory.can_rewind(seq, n_shared):
                plans.append(RestorePlan(n_tokens=n_shared, base=seq, base_tokens=n_shared))
        for segment in self._segments:
            if segment.can_resume and self._shared(segment.node) == segment.end:
                plan = self._plan_ending_with(segment)
                if plan is not None:
                    plans.append(plan)
        return plans

    def _plan_ending_with(self, last: KvSegment) -> RestorePlan | None:
        """Chain segments backwards from `last` to a live sequence or position 0; None if memory between is missing."""
        chain = [last]
        base, start = None, last.start
        while start > 0:
            base = self._base_for(start, chain[0].end)
            if base is not None:
                break
            previous = next(
                (s for s in self._segments if s.can_resume and s.end == start == self._shared(s.node)), None
            )
            if previous is None or previous.start >= start:
                return None
            chain.insert(0, previous)
            start = previous.start
        cost_s = sum(self._cost_s(s) for s in chain)
        return RestorePlan(n_tokens=last.end, base=base, base_tokens=start, segments=tuple(chain), cost_s=cost_s)

    def _base_for(self, start: int, end: int) -> int | None:
        """Return a live sequence that a segment from `start` to `end` can be appended to."""
        for seq, leaf in self._leaves.items():
            if self._shared(leaf) >= start and self._memory.can_append_segment(seq, start, end):
                return seq
        return None

    def _shared(self, node: Node) -> int:
        return self._match.n_shared(node)

    def _cost_s(self, segment: KvSegment) -> float:
        tier = self._throughput.ram if segment.data is not None else self._throughput.disk
        return tier.duration_s(segment.n_bytes)
