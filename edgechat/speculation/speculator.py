"""What the decode loop asks: which tokens to try with the next step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from edgechat.speculation.controller import MAX_DRAFT, DraftController
from edgechat.speculation.drafter import NO_DRAFT, Draft, Drafter


class SpeculationStats(msgspec.Struct, kw_only=True):
    """Counts of one answer."""

    n_drafts: int = 0
    n_drafted: int = 0
    n_accepted: int = 0
    step_s: float = 0.0
    """All decode steps."""
    n_tokens: int = 0
    """What they brought."""
    plain_s: float = 0.0
    """What these tokens would have taken one by one, by the speed of single steps at their time."""

    @property
    def mean_acceptance_length(self) -> float:
        """Tokens that a step with a draft brings, its own included; 1.0 without drafts."""
        return 1 + self.n_accepted / self.n_drafts if self.n_drafts else 1.0

    @property
    def gain(self) -> float:
        """Estimated speed in times of plain decoding; 1.0 if nothing was drafted."""
        return self.plain_s / self.step_s if self.n_drafts and self.step_s > 0 else 1.0


class Speculator:
    """Drafts for one answer: the best of what several drafters have, as far as it pays."""

    def __init__(
        self,
        drafters: Sequence[Drafter],
        controller: DraftController,
        is_end: Callable[[int], bool] = lambda token: False,
    ) -> None:
        """`is_end` says which tokens end a text: no draft goes so far."""
        self._is_end = is_end
        self._drafters = drafters
        self._controller = controller
        self._draft = NO_DRAFT
        self._has_begun = False
        self.stats = SpeculationStats()

    def start(self, tokens: Sequence[int]) -> None:
        """This is the text so far; to be said again after others had the drafters."""
        if not self._has_begun:
            self._controller.start_reply()
        self._has_begun = True
        for drafter in self._drafters:
            drafter.start(tokens)

    def append(self, tokens: Sequence[int]) -> None:
        """So it goes on."""
        for drafter in self._drafters:
            drafter.append(tokens)

    def propose(self, room: int, depth: int) -> list[int]:
        """At most `room` tokens to try after `depth` others, perhaps none. `verified` must follow."""
        best: tuple[int, float, Draft] = (0, 1.0, NO_DRAFT)
        for drafter in self._drafters:
            draft = self._cut(drafter.draft(min(room, MAX_DRAFT))) if room > 0 else NO_DRAFT
            n_tokens, gain = self._controller.choose_length(draft, depth)
            if gain > best[1] or not best[2].tokens:
                best = n_tokens, gain, draft
        n_tokens, _, self._draft = best
        return self._draft.tokens[:n_tokens]

    def _cut(self, draft: Draft) -> Draft:
        end = next((i for i, token in enumerate(draft.tokens) if self._is_end(token)), None)
        return draft if end is None else draft._replace(tokens=draft.tokens[:end])

    def record_step(self, n_tried: int, n_right: int, following: int, depth: int, seconds: float) -> None:
        """Of `n_tried` tokens of what was proposed so many were right, then another came; the step took so long."""
        costs, stats = self._controller.costs, self.stats
        costs.record(1 + n_tried, depth, seconds)
        if self._draft.tokens:
            self._controller.record(self._draft, n_tried, n_right, following)
        stats.n_drafts += n_tried > 0
        stats.n_drafted += n_tried
        stats.n_accepted += n_right
        stats.step_s += seconds
        stats.n_tokens += 1 + n_right
        stats.plain_s += (1 + n_right) * costs.single_s(depth)
