"""Draft length controller: chooses the number of draft tokens with the highest expected throughput."""

from __future__ import annotations

from typing import Final

from edgechat.speculation.acceptance import Acceptance, find_bucket
from edgechat.speculation.drafter import Draft
from edgechat.speculation.step_costs import STEP_SIZES, StepCosts

# Minimum expected gain of a draft. The estimates are inexact, and a rejected draft costs about as much time as an
# accepted draft saves.
MIN_GAIN: Final = 1.05
# Relative cost of a two-token step from which the controller uses `probability_lower_bounds` (a one-token step
# costs 1).
_EXPENSIVE_STEP_COST: Final = 1.5
MAX_DRAFT_LENGTH: Final = STEP_SIZES[-1] - 1
# Longer drafts are not considered if the probability that the whole draft is accepted is below this value.
_MIN_ALL_ACCEPTED_PROBABILITY: Final = 0.02


class DraftController:
    """Chooses the draft length k that maximises E(k) / t(1 + k): expected tokens per step, divided by the step cost.

    E(k) = 1 + p(L) + p(L) p(L + 1) + ... (k terms after the 1), where p(L) is the acceptance probability of a token
    after a match of L tokens. Each accepted token makes the match one token longer.
    """

    def __init__(self, acceptance: Acceptance, costs: StepCosts) -> None:
        self.acceptance = acceptance
        self.costs = costs

    def start_reply(self) -> None:
        """Discard the acceptance counts of the previous reply, and make the next step a single-token step."""
        self.acceptance.start_reply()
        self.costs.start_reply()

    def choose_length(self, draft: Draft, depth: int) -> tuple[int, float]:
        """Return how many tokens of `draft` to decode at position `depth`, and the expected gain.

        Returns (0, 1.0) if decoding without a draft is expected to be as fast, or if a single-token step is required.
        """
        if not draft.tokens or self.costs.needs_single_step:
            return 0, 1.0
        acceptance, costs = self.acceptance, self.costs
        is_expensive = costs.ratio(2, depth) >= _EXPENSIVE_STEP_COST
        tables = acceptance.probability_lower_bounds if is_expensive else acceptance.probabilities
        probabilities = tables[draft.source]
        best_length, best_gain = 0, MIN_GAIN
        expected_tokens, all_accepted_probability = 1.0, 1.0
        n_drafted = 0
        for size in STEP_SIZES:
            if size - 1 > len(draft.tokens):
                break
            while n_drafted < size - 1:
                all_accepted_probability *= probabilities[find_bucket(draft.match_length + n_drafted)]
                expected_tokens += all_accepted_probability
                n_drafted += 1
            gain = expected_tokens / costs.ratio(size, depth)
            if gain > best_gain:
                best_length, best_gain = size - 1, gain
            if all_accepted_probability < _MIN_ALL_ACCEPTED_PROBABILITY:
                break
        return best_length, best_gain if best_length else 1.0

    def record(self, draft: Draft, n_drafted: int, n_accepted: int, next_token: int) -> None:
        """Count the accepted tokens of `draft` and the first rejected token, in whose place `next_token` was sampled.

        If the draft was not decoded (`n_drafted` is 0), compare its first token with `next_token` and count that token.
        """
        record, source, match_length = self.acceptance.record, draft.source, draft.match_length
        for i in range(n_accepted):
            record(source, match_length + i, is_accepted=True)
        if n_accepted < min(max(n_drafted, 1), len(draft.tokens)):
            record(source, match_length + n_accepted, is_accepted=draft.tokens[n_accepted] == next_token)
