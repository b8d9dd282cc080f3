"""Draft length controller: chooses the number of draft tokens with the highest expected throughput."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from edgechat.speculation.acceptance import Acceptance, find_bucket
from edgechat.speculation.calibration import Calibration
from edgechat.speculation.drafter import FROM_MODEL, Draft
from edgechat.speculation.step_costs import STEP_SIZES, StepCosts

# Minimum expected gain of a draft. The estimates are inexact, and a rejected draft costs about as much time as an
# accepted draft saves.
MIN_GAIN: Final = 1.05
# Minimum cost of a two-token step, relative to a one-token step, at which the controller uses
# `probability_lower_bounds`.
_EXPENSIVE_STEP_COST: Final = 1.5
MAX_DRAFT_LENGTH: Final = STEP_SIZES[-1] - 1
# Minimum probability that a whole draft is accepted. Drafts with a lower probability are not considered.
_MIN_ALL_ACCEPTED_PROBABILITY: Final = 0.02


class DraftController:
    """Chooses the draft length k that maximises E(k) / t(1 + k): expected tokens per step, divided by the step cost.

    E(k) = 1 + p(L) + p(L) p(L + 1) + ... (k terms after the 1), where p(L) is the acceptance probability of a token
    after a match of L tokens. Each accepted token makes the match one token longer.
    """

    def __init__(self, acceptance: Acceptance, costs: StepCosts, calibration: Calibration | None = None) -> None:
        """Create a controller of one reply; `calibration` is that of the model drafter, if there is one."""
        self.acceptance = acceptance
        self.costs = costs
        self.calibration = calibration or Calibration()

    def start_reply(self) -> None:
        """Discard the acceptance counts of the previous reply, and make the next step a single-token step."""
        self.acceptance.start_reply()
        self.costs.start_reply()

    def choose_length(self, draft: Draft, depth: int, max_cost: float = math.inf) -> tuple[int, float]:
        """Return how many tokens of a text's `draft` to decode at position `depth`, and the expected gain.

        Returns (0, 1.0) if decoding without a draft is expected to be as fast, or if a single-token step is required.
        A step may cost at most `max_cost` single-token steps. Occasionally returns a longer draft than the measured
        costs justify, to measure its cost again.
        """
        if not draft.tokens or self.costs.needs_single_step:
            return 0, 1.0
        expected_by_size = self._expected_tokens(draft, depth)
        size, gain = choose_size(expected_by_size, self.costs, depth, max_cost)
        return size - 1, gain

    def _expected_tokens(self, draft: Draft, depth: int) -> dict[int, float]:
        """Return the expected number of tokens of a step of each size that `draft` can fill."""
        is_expensive = self.costs.ratio(2, depth) >= _EXPENSIVE_STEP_COST
        return sum_by_size(self.estimate_chain(draft, is_cautious=is_expensive))

    def estimate_chain(self, draft: Draft, *, is_cautious: bool) -> list[float]:
        """Return for each token of `draft` the probability that it and all tokens before it are accepted.

        The list ends where this probability gets negligible. With `is_cautious`, the acceptance rates are reduced by
        one standard error.
        """
        probability, chain = 1.0, []
        if draft.source == FROM_MODEL:
            for model_probability in draft.model_probabilities:
                probability *= self.calibration.estimate_rate(model_probability, is_cautious=is_cautious)
                chain.append(probability)
            return chain
        acceptance = self.acceptance
        tables = acceptance.probability_lower_bounds if is_cautious else acceptance.probabilities
        rates, match_length = tables[draft.source], draft.match_length
        for i in range(len(draft.tokens)):
            probability *= rates[find_bucket(match_length + i)]
            chain.append(probability)
            if probability < _MIN_ALL_ACCEPTED_PROBABILITY / 2:
                break
        return chain

    def record(self, draft: Draft, n_drafted: int, n_accepted: int, next_token: int) -> None:
        """Count the accepted tokens of `draft` and the first rejected token, in whose place `next_token` was sampled.

        If the draft was not decoded (`n_drafted` is 0), compare its first token with `next_token` and count that token.
        """
        record, source, match_length = self.acceptance.record, draft.source, draft.match_length
        for i in range(n_accepted):
            record(source, match_length + i, is_accepted=True)
        if n_accepted < min(max(n_drafted, 1), len(draft.tokens)):
            record(source, match_length + n_accepted, is_accepted=draft.tokens[n_accepted] == next_token)


def sum_by_size(chain: Sequence[float]) -> dict[int, float]:
    """Return the expected number of tokens of a step of each size, for `chain` as of `estimate_chain`.

    Sizes beyond those whose draft has a negligible probability of being accepted as a whole are left out.
    """
    expected, n_counted, expected_by_size = 1.0, 0, {}
    for size in STEP_SIZES:
        if size - 1 > len(chain):
            break
        expected += sum(chain[n_counted : size - 1])
        n_counted = size - 1
        expected_by_size[size] = expected
        if chain[n_counted - 1] < _MIN_ALL_ACCEPTED_PROBABILITY:
            break
    return expected_by_size


def choose_size(
    expected_by_size: dict[int, float], costs: StepCosts, depth: int, max_cost: float = math.inf,
    min_gain: float = MIN_GAIN,
) -> tuple[int, float]:  # fmt: skip
    """Return the step size with the highest expected gain, and this gain; (1, 1.0) if it is at most `min_gain`.

    Only sizes that cost at most `max_cost` are considered. Occasionally returns the size of a trial.
    """
    if max_cost < math.inf:
        expected_by_size = {size: n for size, n in expected_by_size.items() if costs.ratio(size, depth) <= max_cost}
    best_size, best_gain = max(
        ((size, n / costs.ratio(size, depth)) for size, n in expected_by_size.items()),
        key=lambda choice: choice[1], default=(1, 1.0),
    )  # fmt: skip
    if best_gain <= min_gain:
        best_size, best_gain = 1, 1.0
    trial_size = _choose_trial(expected_by_size, costs, best_size, best_gain, depth)
    return (trial_size, MIN_GAIN) if trial_size else (best_size, best_gain)


def _choose_trial(
    expected_by_size: dict[int, float], costs: StepCosts, best_size: int, best_gain: float, depth: int
) -> int:
    """Return the size of a step that tests whether the measured cost of a larger step is too high; usually 0.

    Without such tests, a wrong high cost would never be corrected, because steps that seem expensive are not decoded.
    Among the sizes that would be best if their costs were lower, the size whose last measurement is oldest is tried.
    """
    sizes = [
        size for size, n in expected_by_size.items()
        if size > best_size and n / costs.optimistic_ratio(size, depth) > max(best_gain, 1.0) * MIN_GAIN
    ]  # fmt: skip
    if not sizes:
        return 0
    size = min(sizes, key=lambda n: costs.measured_at(n, depth))
    loss = costs.ratio(size, depth) - expected_by_size[size] / best_gain
    return size if costs.spend_trial(loss) else 0
