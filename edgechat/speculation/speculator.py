"""Speculator: proposes draft tokens for the next step of one reply, and records the outcome."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from edgechat.speculation.controller import MAX_DRAFT_LENGTH, DraftController
from edgechat.speculation.drafter import NO_DRAFT, SOURCE_NAMES, Draft, Drafter


class SpeculationStats(msgspec.Struct, kw_only=True):
    """Counts and times of the decode steps of one reply."""

    n_drafts: int = 0
    """Number of decode steps with drafted tokens."""
    n_drafted: int = 0
    """Number of drafted tokens."""
    n_accepted: int = 0
    """Number of drafted tokens that were accepted."""
    drafted_by_source: list[int] = msgspec.field(default_factory=lambda: [0] * len(SOURCE_NAMES))
    """Number of drafted tokens from each source."""
    accepted_by_source: list[int] = msgspec.field(default_factory=lambda: [0] * len(SOURCE_NAMES))
    step_s: float = 0.0
    """Total time of the decode steps, in seconds."""
    n_tokens: int = 0
    """Number of tokens generated in the decode steps."""
    baseline_s: float = 0.0
    """Estimated time for the same tokens without drafts, from the measured time of single-token steps."""

    @property
    def mean_acceptance_length(self) -> float:
        """Mean number of tokens generated per step with a draft, including the sampled token; 1.0 without drafts."""
        return 1 + self.n_accepted / self.n_drafts if self.n_drafts else 1.0

    @property
    def gain(self) -> float:
        """Estimated speed relative to decoding without drafts; 1.0 if nothing was drafted."""
        return self.baseline_s / self.step_s if self.n_drafts and self.step_s > 0 else 1.0


class Speculator:
    """Chooses the drafter and the draft length for each decode step of one reply."""

    def __init__(
        self,
        drafters: Sequence[Drafter],
        controller: DraftController,
        is_end_token: Callable[[int], bool] = lambda token: False,
    ) -> None:
        """Create a speculator; drafts stop before tokens for which `is_end_token` returns True."""
        self._is_end_token = is_end_token
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
        """Return up to `max_tokens` draft tokens for the step at position `depth`; empty if no draft is worth decoding.

        The caller must call `record_step` after the step.
        """
        best_choice: tuple[int, float, Draft] = (0, 1.0, NO_DRAFT)
        for drafter in self._drafters:
            max_length = min(max_tokens, MAX_DRAFT_LENGTH)
            draft = self._cut_at_end_token(drafter.draft(max_length)) if max_length > 0 else NO_DRAFT
            n_tokens, gain = self._controller.choose_length(draft, depth)
            if gain > best_choice[1] or not best_choice[2].tokens:
                best_choice = n_tokens, gain, draft
        n_tokens, _, self._draft = best_choice
        return self._draft.tokens[:n_tokens]

    def _cut_at_end_token(self, draft: Draft) -> Draft:
        end = next((i for i, token in enumerate(draft.tokens) if self._is_end_token(token)), None)
        return draft if end is None else draft._replace(tokens=draft.tokens[:end])

    def record_step(
        self, n_drafted: int, n_accepted: int, next_token: int, depth: int, elapsed_s: float, *,
        is_disturbed: bool = False,
    ) -> None:  # fmt: skip
        """Record a decode step of 1 + `n_drafted` tokens, of which `n_accepted` drafted tokens were accepted.

        `next_token` is the token that was sampled after the accepted tokens. `is_disturbed` marks a step that another
        program or a pause slowed down.
        """
        costs, stats = self._controller.costs, self.stats
        costs.record(1 + n_drafted, depth, elapsed_s, is_disturbed=is_disturbed)
        if self._draft.tokens:
            self._controller.record(self._draft, n_drafted, n_accepted, next_token)
        stats.n_drafts += n_drafted > 0
        stats.n_drafted += n_drafted
        stats.n_accepted += n_accepted
        stats.drafted_by_source[self._draft.source] += n_drafted
        stats.accepted_by_source[self._draft.source] += n_accepted
        stats.step_s += elapsed_s
        stats.n_tokens += 1 + n_accepted
        stats.baseline_s += (1 + n_accepted) * costs.single_step_s(depth)
