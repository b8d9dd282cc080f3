"""Speculator: proposes draft tokens for the next step of one reply, and records the outcome."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from edgechat.speculation.controller import MAX_DRAFT_LENGTH, DraftController, sum_by_size
from edgechat.speculation.drafter import FROM_MODEL, NO_DRAFT, SOURCE_NAMES, Draft, Drafter
from edgechat.speculation.model_choice import ModelCandidate
from edgechat.speculation.model_source import ModelSource
from edgechat.speculation.reply_budget import ReplyBudget


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

    def add(self, other: SpeculationStats) -> None:
        """Add the counts and times of another reply."""
        for name in ("n_drafts", "n_drafted", "n_accepted", "step_s", "n_tokens", "baseline_s"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for source in range(len(SOURCE_NAMES)):
            self.drafted_by_source[source] += other.drafted_by_source[source]
            self.accepted_by_source[source] += other.accepted_by_source[source]

    @property
    def mean_acceptance_length(self) -> float:
        """Mean number of tokens generated per step with a draft, including the sampled token; 1.0 without drafts."""
        return 1 + self.n_accepted / self.n_drafts if self.n_drafts else 1.0

    @property
    def main_source(self) -> str:
        """Source of most of the accepted draft tokens, one of `SOURCE_NAMES`; "" if no draft token was accepted."""
        counts = self.accepted_by_source
        return SOURCE_NAMES[counts.index(max(counts))] if self.n_accepted else ""

    @property
    def gain(self) -> float:
        """Estimated speed relative to decoding without drafts; 1.0 if nothing was drafted."""
        return self.baseline_s / self.step_s if self.n_drafts and self.step_s > 0 else 1.0


class Speculator:
    """Chooses the source of a draft and its length for each decode step of one reply."""

    def __init__(
        self,
        drafters: Sequence[Drafter],
        controller: DraftController,
        is_end_token: Callable[[int], bool] | None = None,
        model: ModelSource | None = None,
    ) -> None:
        """Create a speculator for one reply; drafts stop before tokens for which `is_end_token` returns True.

        Without `is_end_token`, no token ends the reply.
        """
        self._is_end_token = is_end_token
        self._drafters = drafters
        self.controller = controller
        self.model = model if model is not None and model.is_usable else None
        self.budget = ReplyBudget()
        self.seq = 0
        """Sequence of the context that contains the reply."""
        self._next_token = 0
        """Last token of the text, which the sequence does not contain yet."""
        self._draft = NO_DRAFT
        """Draft of the current step, also if none of its tokens are decoded."""
        self._model_draft: Draft | None = None
        self._n_requested = 0
        """Number of tokens that the model was asked for in the current step."""
        self.draft_s = 0.0
        """Time that the model took for the draft of the current step, in seconds."""
        self._has_started = False
        self.stats = SpeculationStats()

    def start(self, tokens: Sequence[int]) -> None:
        """Set the text of all drafters to `tokens`. Call `start` again after another reply has used the drafters."""
        if not self._has_started:
            self.controller.start_reply()
        self._has_started = True
        self._next_token = tokens[-1] if tokens else 0
        for drafter in self._drafters:
            drafter.start(tokens)

    def stop(self) -> None:
        """Let other replies use the drafters until the next `start`."""
        for drafter in self._drafters:
            drafter.stop()

    def append(self, tokens: Sequence[int]) -> None:
        """Append `tokens` to the text of all drafters."""
        self._next_token = tokens[-1] if tokens else self._next_token
        for drafter in self._drafters:
            drafter.append(tokens)

    def propose(self, max_tokens: int, depth: int) -> list[int]:
        """Return up to `max_tokens` draft tokens for the step at position `depth`; empty if no draft is worth decoding.

        The caller must call `record_step` after the step.
        """
        self.begin_step()
        max_length, costs = min(max_tokens, MAX_DRAFT_LENGTH), self.controller.costs
        max_cost = 1 + self.budget.remaining
        n_tokens, gain, self._draft = self._choose_text_draft(max_length, depth, max_cost)
        if self.model is not None and max_length > 0 and not costs.needs_single_step:
            candidate = self.make_candidate(max_length)
            choice = self.model.choose(
                [candidate], costs, depth, other_gain=gain, max_cost=max_cost,
                max_trial_cost=1 + self.budget.remaining_for_trial,
            )  # fmt: skip
            if choice is not None:
                drafts = self.model.draft(choice, [candidate], costs, depth)
                self.set_model_draft(drafts.get(self.seq), choice.n_tokens, self.model.draft_s)
                n_tokens = self._choose_between_drafts(n_tokens, gain, depth, max_cost)
        return self._draft.tokens[:n_tokens]

    def _choose_text_draft(self, max_length: int, depth: int, max_cost: float) -> tuple[int, float, Draft]:
        """Return the best draft from a text, the number of its tokens to decode, and the expected gain."""
        best_choice: tuple[int, float, Draft] = (0, 1.0, NO_DRAFT)
        for drafter in self._drafters:
            draft = self._cut_at_end_token(drafter.draft(max_length)) if max_length > 0 else NO_DRAFT
            n_tokens, gain = self.controller.choose_length(draft, depth, max_cost)
            if gain > best_choice[1] or not best_choice[2].tokens:
                best_choice = n_tokens, gain, draft
        return best_choice

    def _choose_between_drafts(self, n_text_tokens: int, text_gain: float, depth: int, max_cost: float) -> int:
        """Choose between the draft from a text and that of the model; return the number of tokens to decode.

        The time of the draft of the model is spent in both cases.
        """
        draft, controller = self._model_draft, self.controller
        costs = controller.costs
        draft_cost = self.compute_draft_cost(depth)
        text_cost = costs.ratio(1 + n_text_tokens, depth)
        best_length, best_gain = n_text_tokens, text_gain * text_cost / (text_cost + draft_cost)
        if text_cost + draft_cost > max_cost:  # the draft of the model took longer than it was expected to
            best_length, best_gain = 0, 1 / (1 + draft_cost)
        if draft is None or not draft.tokens:
            return best_length
        is_best = not best_length
        for size, expected in sum_by_size(controller.estimate_chain(draft, is_cautious=False)).items():
            cost = costs.ratio(size, depth) + draft_cost
            if cost <= max_cost and expected / cost > best_gain:
                best_length, best_gain, is_best = size - 1, expected / cost, True
        if is_best:
            self._draft = draft
        return best_length

    def _cut_at_end_token(self, draft: Draft) -> Draft:
        if self._is_end_token is None:
            return draft
        end = next((i for i, token in enumerate(draft.tokens) if self._is_end_token(token)), None)
        return draft if end is None else draft._replace(tokens=draft.tokens[:end])

    # Parts of a step, for batches of several sequences

    def begin_step(self) -> None:
        """Discard the drafts of the previous step."""
        self._draft, self._model_draft, self._n_requested, self.draft_s = NO_DRAFT, None, 0, 0.0

    def find_text_draft(self, max_tokens: int, *, is_cautious: bool) -> tuple[Draft, list[float]]:
        """Return the draft from a text with most tokens expected to be accepted, and its chain of probabilities.

        The draft is that of the current step until `set_draft` replaces it.
        """
        best: tuple[Draft, list[float]] = NO_DRAFT, []
        if max_tokens > 0:
            for drafter in self._drafters:
                draft = self._cut_at_end_token(drafter.draft(max_tokens))
                chain = self.controller.estimate_chain(draft, is_cautious=is_cautious)
                if sum(chain) > sum(best[1]):
                    best = draft, chain
        self._draft = best[0]
        return best

    def make_candidate(self, max_tokens: int) -> ModelCandidate:
        """Describe this reply for a draft of the model of at most `max_tokens` tokens."""
        return ModelCandidate(
            self.seq, self._next_token, max(0, max_tokens), self.controller.calibration, self._is_end_token is not None
        )

    def set_model_draft(self, draft: Draft | None, n_requested: int, draft_s: float) -> None:
        """Set what the model drafted in this step, when it was asked for `n_requested` tokens; it took `draft_s`.

        `draft` has no tokens if the model ended it at once, and is None if the model could not draft.
        """
        self._model_draft, self._n_requested, self.draft_s = None, 0, draft_s
        if draft is not None:
            self._n_requested = n_requested
            draft = self._cut_at_end_token(draft)
            self._model_draft = draft._replace(model_probabilities=draft.model_probabilities[: len(draft.tokens)])
        elif self.model is not None and not self.model.is_usable:
            self.model = None

    @property
    def model_draft(self) -> Draft | None:
        """Draft of the model in the current step; None if it has none."""
        return self._model_draft

    def set_draft(self, draft: Draft) -> None:
        """Set the draft of the current step."""
        self._draft = draft

    def compute_draft_cost(self, depth: int) -> float:
        """Return the cost of the model's draft of the current step, relative to a step without drafts."""
        single_step_s = self.controller.costs.single_step_s(depth)
        return self.draft_s / single_step_s if single_step_s > 0 else 0.0

    # Results

    def record_step(
        self, n_drafted: int, n_accepted: int, next_token: int, depth: int, elapsed_s: float, *,
        is_disturbed: bool = False,
    ) -> None:  # fmt: skip
        """Record a decode step of 1 + `n_drafted` tokens, of which `n_accepted` drafted tokens were accepted.

        `next_token` is the token that was sampled after the accepted tokens. `is_disturbed` marks a step that another
        program or a pause slowed down.
        """
        costs = self.controller.costs
        costs.record(1 + n_drafted, depth, elapsed_s, is_disturbed=is_disturbed)
        cost = costs.ratio(1 + n_drafted, depth) + self.compute_draft_cost(depth)
        self.record_outcome(
            n_drafted, n_accepted, next_token, cost=cost, step_s=elapsed_s, single_step_s=costs.single_step_s(depth)
        )

    def record_outcome(
        self, n_drafted: int, n_accepted: int, next_token: int, *, cost: float, step_s: float, single_step_s: float
    ) -> None:  # fmt: skip
        """Record the tokens of a step that took `step_s` seconds after the draft.

        `cost` is the cost of the step with its draft, relative to a step without drafts, which takes `single_step_s`.
        """
        stats, draft = self.stats, self._draft
        if draft.tokens and draft.source != FROM_MODEL:
            self.controller.record(draft, n_drafted, n_accepted, next_token)
        if self._n_requested:
            actual = [*draft.tokens[:n_accepted], next_token]
            self.controller.calibration.record(self._model_draft or NO_DRAFT, self._n_requested, actual)
        elif self.model is not None:
            self.model.record_tokens(1 + n_accepted)
        self.budget.record(1 + n_accepted, cost)
        stats.n_drafts += n_drafted > 0
        stats.n_drafted += n_drafted
        stats.n_accepted += n_accepted
        stats.drafted_by_source[draft.source] += n_drafted
        stats.accepted_by_source[draft.source] += n_accepted
        stats.step_s += step_s + self.draft_s
        stats.n_tokens += 1 + n_accepted
        stats.baseline_s += (1 + n_accepted) * single_step_s
