"""Replay of recorded replies without a model, to compute the speed of drafting policies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from edgechat.speculation.acceptance import Acceptance
from edgechat.speculation.calibration import Calibration
from edgechat.speculation.controller import DraftController
from edgechat.speculation.drafter import LiveDrafter, TokenIndex
from edgechat.speculation.model_source import ModelSource
from edgechat.speculation.speculator import Speculator
from edgechat.speculation.step_costs import StepCosts

MakeIndex = Callable[[int], TokenIndex]


class Policy(Protocol):
    """Drafting policy: chooses the draft for each decode step. `Speculator` implements this protocol."""

    draft_s: float
    """Time that the last call of `propose` took to compute a draft with a model; a search takes no time."""

    def start(self, tokens: Sequence[int]) -> None:
        """Start a new text that begins with `tokens`."""

    def append(self, tokens: Sequence[int]) -> None:
        """Append verified tokens to the text."""

    def propose(self, max_tokens: int, depth: int) -> list[int]:
        """Return a draft of at most `max_tokens` tokens at context depth `depth`."""

    def record_step(self, n_drafted: int, n_accepted: int, next_token: int, depth: int, elapsed_s: float) -> None:
        """Record the result of a decode step: numbers of drafted and accepted tokens, next token, and duration."""


def replay(policy: Policy, prompt: Sequence[int], reply: Sequence[int], costs: StepCosts) -> float:
    """Compute the speed of decoding `reply` after `prompt`, relative to decoding without drafts, from step costs.

    The unit of time is a step of one token, also for `Policy.draft_s`.
    """
    policy.start([*prompt, reply[0]])
    position, cost, plain_cost = 1, 0.0, len(reply) - 1
    while position < len(reply):
        depth = len(prompt) + position - 1
        draft = policy.propose(len(reply) - position - 1, depth)
        n_accepted = 0
        while n_accepted < len(draft) and draft[n_accepted] == reply[position + n_accepted]:
            n_accepted += 1
        ratio = costs.ratio(1 + len(draft), depth)
        cost += ratio + policy.draft_s
        policy.record_step(len(draft), n_accepted, reply[position + n_accepted], depth, ratio)
        policy.append(reply[position : position + n_accepted + 1])
        position += n_accepted + 1
    return plain_cost / cost if cost else 1.0


class FixedStepCosts(StepCosts):
    """Step costs that stay constant during a replay, in which a step of one token takes a second."""

    def __init__(self, costs: StepCosts) -> None:
        super().__init__()
        self.ratios = costs.ratios

    def record(
        self, n_tokens: int, depth: int, elapsed_s: float, *, is_benchmark: bool = False, is_disturbed: bool = False
    ) -> None:
        """Record a step, but not its time, because the costs are constant.

        The number of steps since the last step without a draft is counted, so that probing steps are replayed too.
        """
        self._steps_since_single = 0 if n_tokens == 1 else self._steps_since_single + 1

    def single_step_s(self, depth: int) -> float:
        """Return the time of a step of one token."""
        return 1.0


def make_edgechat_policy(
    make_index: MakeIndex, costs: StepCosts, acceptance: Acceptance | None = None, model: ModelSource | None = None
) -> Policy:
    """Return edgechat's drafting policy, which uses `costs` as constant step costs."""
    calibration = Calibration(model.profile.greedy) if model is not None else None
    controller = DraftController(acceptance or Acceptance(), FixedStepCosts(costs), calibration)
    return Speculator([LiveDrafter(make_index(0))], controller, model=model)


class _StaticPolicy:
    """Base class of drafting policies that do not learn from earlier steps."""

    draft_s = 0.0

    def __init__(self) -> None:
        self.text: list[int] = []

    def start(self, tokens: Sequence[int]) -> None:
        self.text = list(tokens)

    def append(self, tokens: Sequence[int]) -> None:
        self.text.extend(tokens)

    def record_step(self, n_drafted: int, n_accepted: int, next_token: int, depth: int, elapsed_s: float) -> None:
        pass


class PromptLookup(_StaticPolicy):
    """Prompt lookup of llama-cpp-python: drafts `n_draft` tokens after the oldest match of the last `n_gram` tokens.

    If there is no match, it tries to match fewer tokens.
    """

    def __init__(self, n_gram: int = 2, n_draft: int = 10) -> None:
        super().__init__()
        self._n_gram, self._n_draft = n_gram, n_draft

    def propose(self, max_tokens: int, depth: int) -> list[int]:
        for n in range(self._n_gram, 0, -1):
            match_end = _find_earlier_match(self.text, n, use_newest=False)
            if match_end is not None:
                return self.text[match_end : match_end + min(self._n_draft, max_tokens)]
        return []


class NgramSimple(_StaticPolicy):
    """ngram-simple policy of llama.cpp: drafts `n_draft` tokens after the newest match of the last `n_gram` tokens."""

    def __init__(self, n_gram: int = 12, n_draft: int = 48) -> None:
        super().__init__()
        self._n_gram, self._n_draft = n_gram, n_draft

    def propose(self, max_tokens: int, depth: int) -> list[int]:
        match_end = _find_earlier_match(self.text, self._n_gram, use_newest=True)
        return self.text[match_end : match_end + min(self._n_draft, max_tokens)] if match_end is not None else []


class PlainSuffix(_StaticPolicy):
    """Policy that drafts as many tokens as the longest match has, but at most 31."""

    def __init__(self, index: TokenIndex) -> None:
        super().__init__()
        self._drafter = LiveDrafter(index)

    def start(self, tokens: Sequence[int]) -> None:
        self._drafter.start(tokens)

    def append(self, tokens: Sequence[int]) -> None:
        self._drafter.append(tokens)

    def propose(self, max_tokens: int, depth: int) -> list[int]:
        draft = self._drafter.draft(min(max_tokens, 31)) if max_tokens > 0 else None
        return draft.tokens[: draft.match_length] if draft is not None else []


STATIC_POLICIES: Final[dict[str, Callable[[MakeIndex], Policy]]] = {
    "prompt lookup 2/10": lambda _make_index: PromptLookup(),
    "12-gram/48": lambda _make_index: NgramSimple(),
    "plain suffix": lambda make_index: PlainSuffix(make_index(0)),
}


def _find_earlier_match(text: list[int], n_gram: int, *, use_newest: bool) -> int | None:
    """Return the position after the newest or oldest earlier match of the last `n_gram` tokens, or None."""
    if len(text) <= n_gram:
        return None
    suffix = text[-n_gram:]
    positions = range(len(text) - n_gram - 1, -1, -1) if use_newest else range(len(text) - n_gram)
    return next((i + n_gram for i in positions if text[i : i + n_gram] == suffix), None)
