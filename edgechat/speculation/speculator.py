"""Speculator: proposes draft tokens for the next step of one reply, and records the outcome."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from edgechat.speculation.controller import MAX_DRAFT, DraftController
from edgechat.speculation.drafter import NO_DRAFT, Draft, Drafter


class SpeculationStats(msgspec.Struct, kw_only=True):
    """Draft and step counts of one reply."""

    n_drafts: int = 0
    n_drafted: int = 0
    n_accepted: int = 0
    step_s: float = 0.0
    """Total time of the decode steps."""
    n_tokens: int = 0
    """Number of tokens that the decode steps generated."""
    plain_s: float = 0.0
    """Estimated time of the same tokens without drafts, from the measured time of single-token steps."""

    @property
    def mean_acceptance_length(self) -> float:
        """Mean number of tokens per step with a draft, including the sampled token; 1.0 without drafts."""
        return 1 + self.n_accepted / self.n_drafts if self.n_drafts else 1.0

    @property
    def gain(self) -> float:
        """Estimated speed relative to decoding without drafts; 1.0 if nothing was drafted."""
        return self.plain_s / self.step_s if self.n_drafts and self.step_s > 0 else 1.0


class Speculator:
    """Chooses the best draft of several drafters for one reply, if its expected gain suffices."""

    def __init__(
        self,
        drafters: Sequence[Drafter],
        controller: DraftController,
        is_end: Callable[[int], bool] = lambda token: False,
    ) -> None:
        """`is_end` returns True for end-of-generation tokens; drafts stop before them."""
        self._is_end = is_end
        self._drafters = drafters
        self._controller = controller
        self._draft = NO_DRAFT
        self._has_started = False
        self.stats = SpeculationStats()

    def start(self, tokens: Sequence[int]) -> None:
        """Set the text of all drafters to `tokens`. Call `start` again after another reply has used the drafters."""
        if not self._has_started:
            self._controller.start_reply()
        self._has_started = True
        for drafter in self._drafters:
            drafter.start(tokens)

    def append(self, tokens: Sequence[int]) -> None:
        """Append `tokens` to the text of all drafters."""
        for drafter in self._drafters:
            drafter.append(tokens)

    def propose(self, max_tokens: int, depth: int) -> list[int]:
        """Return at most `max_tokens` draft tokens, or none, for the step at position `depth`.

        `record_step` must follow.
        """
        best: tuple[int, float, Draft] = (0, 1.0, NO_DRAFT)
        for drafter in self._drafters:
            draft = self._cut(drafter.draft(min(max_tokens, MAX_DRAFT))) if max_tokens > 0 else NO_DRAFT
            n_tokens, gain = self._controller.choose_length(draft, depth)
            if gain > best[1] or not best[2].tokens:
                best = n_tokens, gain, draft
        n_tokens, _, self._draft = best
        return self._draft.tokens[:n_tokens]

    def _cut(self, draft: Draft) -> Draft:
        end = next((i for i, token in enumerate(draft.tokens) if self._is_end(token)), None)
        return draft if end is None else draft._replace(tokens=draft.tokens[:end])

    def record_step(self, n_drafted: int, n_accepted: int, next_token: int, depth: int, seconds: float) -> None:
        """Record a step of 1 + `n_drafted` tokens: `n_accepted` were accepted, then `next_token` was sampled."""
        costs, stats = self._controller.costs, self.stats
        costs.record(1 + n_drafted, depth, seconds)
        if self._draft.tokens:
            self._controller.record(self._draft, n_drafted, n_accepted, next_token)
        stats.n_drafts += n_drafted > 0
        stats.n_drafted += n_drafted
        stats.n_accepted += n_accepted
        stats.step_s += seconds
        stats.n_tokens += 1 + n_accepted
        stats.plain_s += (1 + n_accepted) * costs.single_s(depth)
