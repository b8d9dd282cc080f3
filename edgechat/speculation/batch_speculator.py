"""Drafts for several replies in one batch: their lengths are chosen together."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from edgechat.speculation.controller import MAX_DRAFT_LENGTH, choose_size
from edgechat.speculation.drafter import Draft
from edgechat.speculation.model_source import ModelSource
from edgechat.speculation.speculator import Speculator
from edgechat.speculation.step_costs import STEP_SIZES, StepCosts

# Minimum expected gain of the drafts of a step for several replies. It is higher than that for one reply, because a
# rejected draft of one reply slows down all of them.
MIN_BATCH_GAIN: Final = 1.1
# Number of steps without a draft after which texts are searched only in some of the steps: a search for four replies
# takes a noticeable part of a step of a small model.
_MAX_FRUITLESS_STEPS: Final = 8
_SEARCH_INTERVAL: Final = 4
# Maximum number of drafted tokens of one reply.
_MAX_REPLY_DRAFT: Final = 15
# Part of a reply's budget, in steps, that only steps may use from which this reply itself is expected to gain. Without
# it, the drafts of the other replies use up the budget, and when all texts repeat, no step can have a draft.
_RESERVED_BUDGET: Final = 1.25


class BatchMember(NamedTuple):
    """A reply in a batch."""

    speculator: Speculator
    max_tokens: int
    """Maximum number of its drafted tokens in the step."""


class BatchSpeculator:
    """Chooses the drafts of a decode step for several replies, and records the outcome.

    All replies must have the same step costs and the same model drafter. A step is as slow for a reply without a draft
    as for the others, so that the budget of every reply must cover its loss.
    """

    def __init__(self, find_costs: Callable[[int], StepCosts], model: ModelSource | None, max_tokens: int) -> None:
        """Create a speculator; `find_costs` returns the costs of steps for a number of replies.

        `max_tokens` is the maximum number of tokens in a batch.
        """
        self._find_costs = find_costs
        self._model = model
        self._max_tokens = max_tokens
        self._draft_s = 0.0
        self._n_fruitless_steps = 0
        """Number of steps since the last draft."""

    def propose(self, members: Sequence[BatchMember], depth: int) -> list[list[int]]:
        """Return the draft of each member for a step at position `depth`; empty drafts for the others.

        The caller must call `record_step` after the step.
        """
        self._draft_s = 0.0
        for speculator, _ in members:
            speculator.begin_step()
        costs = self._find_costs(len(members))
        budgets = [member.speculator.budget.remaining for member in members]
        max_cost = 1 + min(budgets)
        no_drafts: list[list[int]] = [[] for _ in members]
        if costs.needs_single_step or costs.ratio(STEP_SIZES[0], depth) > max_cost:
            return no_drafts
        self._n_fruitless_steps += 1
        if self._n_fruitless_steps > _MAX_FRUITLESS_STEPS and self._n_fruitless_steps % _SEARCH_INTERVAL:
            return no_drafts
        max_drafted = min(self._max_tokens - len(members), MAX_DRAFT_LENGTH)
        choices = [
            member.speculator.find_text_draft(min(member.max_tokens, _MAX_REPLY_DRAFT, max_drafted), is_cautious=True)
            for member in members
        ]
        lengths, gain = _choose_lengths([chain for _, chain in choices], max_drafted, costs, depth, budgets)
        if self._ask_model(members, costs, depth, gain, max_cost):
            choices = [
                _choose_better(member.speculator, *choice) for member, choice in zip(members, choices, strict=True)
            ]
            chains = [chain for _, chain in choices]
            draft_cost = self._compute_draft_cost(costs, depth)
            lengths, _ = _choose_lengths(chains, max_drafted, costs, depth, [b - draft_cost for b in budgets])
        if any(lengths):
            self._n_fruitless_steps = 0
        return [draft.tokens[:n] for (draft, _), n in zip(choices, lengths, strict=True)]

    def _ask_model(
        self, members: Sequence[BatchMember], costs: StepCosts, depth: int, gain: float, max_cost: float
    ) -> bool:
        """Ask the model for drafts if they are worth their time; return whether it was asked."""
        model = self._model
        if model is None or not model.is_usable:
            return False
        candidates = [member.speculator.make_candidate(member.max_tokens) for member in members]
        choice = model.choose(
            candidates, costs, depth, other_gain=gain, max_cost=max_cost, reserve=_RESERVED_BUDGET,
            max_trial_cost=1 + min(member.speculator.budget.remaining_for_trial for member in members),
        )  # fmt: skip
        if choice is None:
            return False
        drafts = model.draft(choice, candidates, costs, depth)
        self._draft_s = model.draft_s
        for member, candidate in zip(members, candidates, strict=True):
            n_requested = min(choice.n_tokens, candidate.max_tokens)
            member.speculator.set_model_draft(drafts.get(candidate.seq), n_requested, model.draft_s)
        return True

    def record_step(
        self, members: Sequence[BatchMember], drafts: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]],
        depth: int, elapsed_s: float, *, is_disturbed: bool = False,
    ) -> None:  # fmt: skip
        """Record a step: the decoded draft and the output tokens of each member.

        All but the last token of an output are the beginning of the draft.
        """
        costs = self._find_costs(len(members))
        size = 1 + sum(map(len, drafts))
        costs.record(size, depth, elapsed_s, is_disturbed=is_disturbed)
        single_step_s = costs.single_step_s(depth)
        cost = costs.ratio(size, depth) + self._compute_draft_cost(costs, depth)
        for (speculator, _), draft, output in zip(members, drafts, outputs, strict=True):
            speculator.record_outcome(
                len(draft), len(output) - 1, output[-1], cost=cost, step_s=elapsed_s, single_step_s=single_step_s
            )

    def _compute_draft_cost(self, costs: StepCosts, depth: int) -> float:
        single_step_s = costs.single_step_s(depth)
        return self._draft_s / single_step_s if single_step_s > 0 else 0.0


def _choose_better(speculator: Speculator, draft: Draft, chain: list[float]) -> tuple[Draft, list[float]]:
    """Return the draft of the model if more of its tokens are expected to be accepted than of `draft`."""
    model_draft = speculator.model_draft
    if model_draft is not None:
        model_chain = speculator.controller.estimate_chain(model_draft, is_cautious=False)
        if sum(model_chain) > sum(chain):
            draft, chain = model_draft, model_chain
    speculator.set_draft(draft)
    return draft, chain


def _choose_lengths(
    chains: list[list[float]], max_drafted: int, costs: StepCosts, depth: int, budgets: Sequence[float]
) -> tuple[list[int], float]:
    """Choose the number of tokens of each chain in a step, and return the expected gain, too.

    `budgets` are the losses that the replies can cover, relative to a step without drafts.
    """
    # Expected tokens per reply and the lengths, by size of the step.
    best: dict[int, tuple[float, list[int]]] = {}
    for order in (_order_tokens(chains, max_drafted, balanced=balanced) for balanced in (False, True)):
        lengths, expected = [0] * len(chains), [1.0] * len(chains)
        for n_drafted, i in enumerate(order, 1):
            expected[i] += chains[i][lengths[i]]
            lengths[i] += 1
            size, mean = 1 + n_drafted, sum(expected) / len(chains)
            is_better = size in STEP_SIZES and (size not in best or mean > best[size][0])
            if is_better and _is_covered(costs.ratio(size, depth), expected, budgets):
                best[size] = mean, lengths.copy()
    expected_by_size = {size: mean for size, (mean, _) in sorted(best.items())}
    size, gain = choose_size(expected_by_size, costs, depth, min_gain=MIN_BATCH_GAIN)
    return best[size][1] if size > 1 else [0] * len(chains), gain


def _order_tokens(chains: Sequence[Sequence[float]], max_drafted: int, *, balanced: bool) -> Iterator[int]:
    """Yield the reply of each drafted token of a step, at most `max_drafted` times.

    The tokens that are most likely to be accepted come first, whatever their reply is. With `balanced`, the next token
    is always one of the reply that expects fewest tokens, so that as many replies as possible gain.
    """
    queue = [(0.0 if balanced else -chain[0], i, 0) for i, chain in enumerate(chains) if chain]
    heapq.heapify(queue)
    for _ in range(max_drafted):
        if not queue:
            return
        key, i, n = heapq.heappop(queue)
        yield i
        if n + 1 < len(chains[i]):
            heapq.heappush(queue, (key + chains[i][n] if balanced else -chains[i][n + 1], i, n + 1))


def _is_covered(cost: float, expected: Sequence[float], budgets: Sequence[float]) -> bool:
    """Return whether all budgets cover a step of `cost`, of which the replies expect `expected` tokens."""
    return all(
        cost - 1 <= budget - (0.0 if n_tokens >= cost else _RESERVED_BUDGET)
        for n_tokens, budget in zip(expected, budgets, strict=True)
    )
