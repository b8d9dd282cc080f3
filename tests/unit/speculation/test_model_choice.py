"""Choice of the length of a model's draft: it follows the costs, the budget, and the estimated acceptance."""

from __future__ import annotations

from edgechat.draft_request import TextWindow
from edgechat.speculation.calibration import Calibration
from edgechat.speculation.drafter import FROM_MODEL, Draft
from edgechat.speculation.drafter_costs import DrafterCosts
from edgechat.speculation.model_choice import ModelCandidate, ModelChoice, find_best_length
from tests.unit.speculation.costs import STAIRCASE, costs_of

WINDOW = TextWindow(1, 100, 101)


def make_candidate(*, is_right: bool = True, max_tokens: int = 7) -> ModelCandidate:
    calibration = Calibration()
    for _ in range(30):
        calibration.record(Draft([1], 0, FROM_MODEL, [0.9]), 1, [1 if is_right else 2])
    return ModelCandidate(0, 5, max_tokens, calibration)


def choose(candidate: ModelCandidate, window: TextWindow = WINDOW, max_cost: float = 10.0) -> ModelChoice | None:
    drafter_costs = DrafterCosts()
    for _ in range(3):
        drafter_costs.record(1, 1, 1, 0.001, is_disturbed=False)  # a tenth of a decode step
    return find_best_length([candidate], [window], costs_of(STAIRCASE), drafter_costs, 100, max_cost=max_cost)


def test_drafts_that_are_accepted_are_long() -> None:
    right, wrong = choose(make_candidate()), choose(make_candidate(is_right=False))
    assert right is not None
    assert wrong is not None
    assert right.n_tokens == 7
    assert right.gain > 1.5
    assert wrong.n_tokens == 1
    assert wrong.gain < 1


def test_length_is_limited_by_the_budget_and_the_reply() -> None:
    choice = choose(make_candidate(), max_cost=1.5)
    assert choice is not None
    assert choice.n_tokens == 2  # 1.27 for the step, 0.2 for the draft
    choice = choose(make_candidate(max_tokens=2))
    assert choice is not None
    assert choice.n_tokens == 2
    assert choose(make_candidate(), max_cost=1.1) is None


def test_nothing_is_chosen_for_a_sequence_that_the_model_cannot_continue() -> None:
    assert choose(make_candidate(max_tokens=0)) is None
    assert choose(make_candidate(), TextWindow(0, 0, 0)) is None
