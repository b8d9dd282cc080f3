"""Drafts for several replies in one batch: their lengths are chosen together."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
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
        max_cost = 1 + min(member.speculator.budget.remaining for member in members)
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
        lengths, gain = _choose_lengths([chain for _, chain in choices], max_drafted, costs, depth, max_cost)
        if self._ask_model(members, costs, depth, gain, max_cost):
            choices = [
                _choose_better(member.speculator, *choice) for member, choice in zip(members, choices, strict=True)
            ]
            chains = [chain for _, chain in choices]
            max_cost -= self._compute_draft_cost(costs, depth)
            lengths, _ = _choose_lengths(chains, max_drafted, costs, depth, max_cost)
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
        choice = model.choose(candidates, costs, depth, other_gain=gain, max_cost=max_cost)
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
    chains: list[list[float]], max_drafted: int, costs: StepCosts, depth: int, max_cost: float
) -> tuple[list[int], float]:
    """Choose the number of tokens of each chain in a step, and return the expected gain, too.

    The tokens that are most likely to be accepted come first, whatever their reply is.
    """
    lengths = [0] * len(chains)
    queue = [(-chain[0], i) for i, chain in enumerate(chains) if chain]
    heapq.heapify(queue)
    order: list[int] = []
    expected, expected_by_size = 1.0, {}
    while queue and len(order) < max_drafted:
        probability, i = heapq.heappop(queue)
        order.append(i)
        lengths[i] += 1
        expected -= probability / len(chains)
        if lengths[i] < len(chains[i]):
            heapq.heappush(queue, (-chains[i][lengths[i]], i))
        if 1 + len(order) in STEP_SIZES:
            expected_by_size[1 + len(order)] = expected
    size, gain = choose_size(expected_by_size, costs, depth, max_cost, MIN_BATCH_GAIN)
    return [order[: size - 1].count(i) for i in range(len(chains))], gain
