"""Draft length controller: chooses the number of draft tokens with the highest expected throughput."""

from __future__ import annotations

from typing import Final

from edgechat.speculation.acceptance import Acceptance, bucket_of
from edgechat.speculation.drafter import Draft
from edgechat.speculation.step_costs import SIZES, StepCosts

# Minimum expected gain: estimates are inexact, and a rejected draft costs about as much as an accepted draft saves.
MIN_GAIN: Final = 1.05
# Relative cost of a two-token step above which the low acceptance probabilities are used.
_EXPENSIVE_STEP: Final = 1.5
MAX_DRAFT: Final = SIZES[-1] - 1
# Probability of full acceptance below which longer drafts are not considered.
_MIN_ALL_ACCEPTED: Final = 0.02


class DraftController:
    """Chooses the draft length k with the largest E(k) / t(1 + k): expected tokens of a step over its cost.

    E(k) = 1 + p(L) + p(L) p(L + 1) + ... with the acceptance probability p after a match of L tokens: each accepted
    token makes the match one token longer.
    """

    def __init__(self, acceptance: Acceptance, costs: StepCosts) -> None:
        self.acceptance = acceptance
        self.costs = costs

    def start_reply(self) -> None:
        """Reset the state that belongs to one reply."""
        self.acceptance.start_reply()
        self.costs.start_reply()

    def choose_length(self, draft: Draft, depth: int) -> tuple[int, float]:
        """Return the number of tokens of `draft` to decode at position `depth`, and the gain; (0, 1.0) for no draft."""
        if not draft.tokens or self.costs.is_single_due:
            return 0, 1.0
        acceptance, costs = self.acceptance, self.costs
        is_expensive = costs.ratio(2, depth) >= _EXPENSIVE_STEP
        probabilities = (acceptance.low_probabilities if is_expensive else acceptance.probabilities)[draft.source]
        best, best_gain = 0, MIN_GAIN
        expected_tokens, all_accepted = 1.0, 1.0
        n_drafted = 0
        for size in SIZES:
            if size - 1 > len(draft.tokens):
                break
            while n_drafted < size - 1:
                all_accepted *= probabilities[bucket_of(draft.match_length + n_drafted)]
                expected_tokens += all_accepted
                n_drafted += 1
            gain = expected_tokens / costs.ratio(size, depth)
            if gain > best_gain:
                best, best_gain = size - 1, gain
            if all_accepted < _MIN_ALL_ACCEPTED:
                break
        return best, best_gain if best else 1.0

    def record(self, draft: Draft, n_drafted: int, n_accepted: int, next_token: int) -> None:
        """Count the accepted tokens of `draft`, and the first rejected one, which `next_token` replaced.

        With `n_drafted` 0 the draft was not decoded; its first token is still compared with `next_token`.
        """
        count, source, length = self.acceptance.record, draft.source, draft.match_length
        for i in range(n_accepted):
            count(source, length + i, accepted=True)
        if n_accepted < min(max(n_drafted, 1), len(draft.tokens)):
            count(source, length + n_accepted, accepted=draft.tokens[n_accepted] == next_token)
