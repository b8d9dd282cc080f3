"""How many drafted tokens are worth trying: none, if that is what pays."""

from __future__ import annotations

from typing import Final

from edgechat.speculation.acceptance import Acceptance, bucket_of
from edgechat.speculation.drafter import Draft
from edgechat.speculation.step_costs import SIZES, StepCosts

# What has to be won before a draft is tried: estimates are not exact, and a lost bet costs what a won one brings.
MARGIN: Final = 1.05
# Where a second token costs so much, chances are estimated low.
STEEP: Final = 1.5
MAX_DRAFT: Final = SIZES[-1] - 1
# Where all are right less often than this, more of them cannot pay.
_HOPELESS: Final = 0.02


class DraftController:
    """Chooses by E(k) / t(1 + k): expected tokens of a step with k drafted ones, over what it costs.

    E(k) = 1 + p(L) + p(L) p(L + 1) + ...: after j right guesses the match is j tokens longer.
    """

    def __init__(self, acceptance: Acceptance, costs: StepCosts) -> None:
        self.acceptance = acceptance
        self.costs = costs

    def start_reply(self) -> None:
        """Another answer begins."""
        self.acceptance.start_reply()
        self.costs.start_reply()

    def choose_length(self, draft: Draft, depth: int) -> tuple[int, float]:
        """How many tokens of the draft to try after `depth` others, and the gain that is expected; (0, 1.0) for none."""
        if not draft.tokens or self.costs.is_single_due:
            return 0, 1.0
        acceptance, costs = self.acceptance, self.costs
        chances = (acceptance.probabilities if costs.ratio(2, depth) < STEEP else acceptance.low_probabilities)[
            draft.source
        ]
        best, best_gain = 0, MARGIN
        expected, all_right = 1.0, 1.0
        tried = 0
        for size in SIZES:
            if size - 1 > len(draft.tokens):
                break
            while tried < size - 1:
                all_right *= chances[bucket_of(draft.match_length + tried)]
                expected += all_right
                tried += 1
            gain = expected / costs.ratio(size, depth)
            if gain > best_gain:
                best, best_gain = size - 1, gain
            if all_right < _HOPELESS:
                break
        return best, best_gain if best else 1.0

    def record(self, draft: Draft, n_tried: int, n_right: int, following: int) -> None:
        """Of `n_tried` tokens `n_right` were right, then `following` came. With none tried that is a free lesson."""
        record, source, length = self.acceptance.record, draft.source, draft.match_length
        for i in range(n_right):
            record(source, length + i, accepted=True)
        if n_right < min(max(n_tried, 1), len(draft.tokens)):
            record(source, length + n_right, accepted=draft.tokens[n_right] == following)
