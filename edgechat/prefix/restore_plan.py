"""Restore plans: choose the live sequence and the segments from which a cached prefix is restored."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec

from edgechat.prefix.kv_memory import KvMemory
from edgechat.prefix.segment import KvSegment
from edgechat.prefix.throughput import PrefixThroughput
from edgechat.prefix.tree import Match, Node


class RestorePlan(msgspec.Struct, frozen=True, kw_only=True):
    """Steps that restore a prefix: copy `base_tokens` of the live sequence `base_seq`, then append `segments`."""

    n_tokens: int
    """Length of the restored prefix."""
    base_seq: int | None = None
    """Live sequence that holds the first `base_tokens`; None if the plan uses no live sequence."""
    base_tokens: int = 0
    segments: tuple[KvSegment, ...] = ()
    cost_s: float = 0.0
    """Expected time to restore the segments, in seconds."""


class RestorePlanner:
    """Builds the possible restore plans for one prompt and chooses the best plan."""

    def __init__(
        self,
        memory: KvMemory,
        throughput: PrefixThroughput,
        match: Match,
        leaves: Mapping[int, Node],
        segments: Collection[KvSegment],
    ) -> None:
        """Prepare plans for the prompt of `match`; `leaves` maps each live sequence to its last tree node."""
        self._memory = memory
        self._throughput = throughput
        self._match = match
        self._leaves = leaves
        self._segments = [s for s in segments if s.data is not None or s.file is not None]

    def choose_plan(self) -> RestorePlan:
        """Return the plan that saves the most time compared with prefill; the plan can be empty."""
        find_plans = (
            self._find_plans_with_truncation if self._memory.can_truncate else self._find_plans_without_truncation
        )
        return max(
            find_plans(),
            key=lambda plan: self._throughput.prefill.duration_s(plan.n_tokens) - plan.cost_s,
            default=RestorePlan(n_tokens=0),
        )

    def _find_plans_with_truncation(self) -> list[RestorePlan]:
        """Return plans for memory that can be truncated.

        The first plan restores the longest live prefix. Each further plan adds the segment with the highest gain.
        """
        base_seq = max(
            self._leaves, key=lambda s: (self._count_shared(self._leaves[s]), -self._leaves[s].end), default=None
        )
        n_shared = self._count_shared(self._leaves[base_seq]) if base_seq is not None else 0
        plan = RestorePlan(n_tokens=n_shared, base_seq=base_seq if n_shared else None, base_tokens=n_shared)
        plans = [plan]
        while True:
            candidates = [
                (self._count_shared(s.node) - plan.n_tokens, s) for s in self._segments
                if s.start <= plan.n_tokens < self._count_shared(s.node)
            ]  # fmt: skip
            if not candidates:
                return plans
            n_gained_tokens, segment = max(
                candidates, key=lambda c: self._throughput.prefill.duration_s(c[0]) - self._estimate_restore_s(c[1])
            )
            plan = msgspec.structs.replace(
                plan, n_tokens=plan.n_tokens + n_gained_tokens, segments=(*plan.segments, segment),
                cost_s=plan.cost_s + self._estimate_restore_s(segment),
            )  # fmt: skip
            plans.append(plan)

    def _find_plans_without_truncation(self) -> list[RestorePlan]:
        """Return plans for memory that cannot be truncated.

        Each plan ends where a live sequence or a resumable segment ends.
        """
        plans = []
        for seq, leaf in self._leaves.items():
            n_shared = self._count_shared(leaf)
            if n_shared and self._memory.can_rewind(seq, n_shared):
                plans.append(RestorePlan(n_tokens=n_shared, base_seq=seq, base_tokens=n_shared))
        for segment in self._segments:
            if segment.can_resume and self._count_shared(segment.node) == segment.end:
                plan = self._find_plan_ending_with(segment)
                if plan is not None:
                    plans.append(plan)
        return plans

    def _find_plan_ending_with(self, last_segment: KvSegment) -> RestorePlan | None:
        """Return a plan that restores a chain of segments up to `last_segment`.

        The chain starts at the end of a live sequence, or at position 0. Returns None if a segment of the chain is
        missing.
        """
        segments = [last_segment]
        base_seq, start = None, last_segment.start
        while start > 0:
            base_seq = self._find_base(start, segments[0].end)
            if base_seq is not None:
                break
            previous_segment = next(
                (s for s in self._segments if s.can_resume and s.end == start == self._count_shared(s.node)), None
            )
            if previous_segment is None or previous_segment.start >= start:
                return None
            segments.insert(0, previous_segment)
            start = previous_segment.start
        cost_s = sum(self._estimate_restore_s(s) for s in segments)
        return RestorePlan(
            n_tokens=last_segment.end, base_seq=base_seq, base_tokens=start, segments=tuple(segments), cost_s=cost_s
        )

    def _find_base(self, start: int, end: int) -> int | None:
        """Return a live sequence to which a segment from `start` to `end` can be appended; None if there is none."""
        for seq, leaf in self._leaves.items():
            if self._count_shared(leaf) >= start and self._memory.can_append_segment(seq, start, end):
                return seq
        return None

    def _count_shared(self, node: Node) -> int:
        return self._match.n_shared(node)

    def _estimate_restore_s(self, segment: KvSegment) -> float:
        throughput = self._throughput.ram if segment.data is not None else self._throughput.disk
        return throughput.duration_s(segment.n_bytes)
