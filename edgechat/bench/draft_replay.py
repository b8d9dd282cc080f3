"""Replay recorded replies without a model to compute the cost of a drafting policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from edgechat.speculation.acceptance import Acceptance
from edgechat.speculation.controller import DraftController
from edgechat.speculation.drafter import LiveDrafter, TokenIndex
from edgechat.speculation.speculator import Speculator
from edgechat.speculation.step_costs import StepCosts

MakeIndex = Callable[[int], TokenIndex]


class Policy(Protocol):
    """Chooses the draft for each decode step; `Speculator` implements it."""

    def start(self, tokens: Sequence[int]) -> None:
        """Start with the tokens of a new text."""

    def append(self, tokens: Sequence[int]) -> None:
        """Append verified tokens to the text."""

    def propose(self, max_tokens: int, depth: int) -> list[int]:
        """Return a draft of at most `max_tokens` tokens at context depth `depth`."""

    def record_step(self, n_drafted: int, n_accepted: int, next_token: int, depth: int, seconds: float) -> None:
        """Record a verified step: accepted drafted tokens, the token after them, and its seconds."""


def replay(policy: Policy, prompt: Sequence[int], reply: Sequence[int], costs: StepCosts) -> float:
    """Return the speed of decoding `reply` after `prompt` relative to plain decoding, given the step costs."""
    policy.start([*prompt, reply[0]])
    position, cost, plain = 1, 0.0, len(reply) - 1
    while position < len(reply):
        depth = len(prompt) + position - 1
        draft = policy.propose(len(reply) - position - 1, depth)
        n_accepted = 0
        while n_accepted < len(draft) and draft[n_accepted] == reply[position + n_accepted]:
            n_accepted += 1
        ratio = costs.ratio(1 + len(draft), depth)
        cost += ratio
        policy.record_step(len(draft), n_accepted, reply[position + n_accepted], depth, ratio)
        policy.append(reply[position : position + n_accepted + 1])
        position += n_accepted + 1
    return plain / cost if cost else 1.0


class _FixedStepCosts(StepCosts):
    """Step costs that stay constant during a replay."""

    def __init__(self, costs: StepCosts) -> None:
        super().__init__()
        self.ratios = costs.ratios

    def record(self, n_tokens: int, depth: int, seconds: float, *, is_benchmark: bool = False) -> None:
        """Count the steps since the last plain one, so that the replay includes the cost of probing."""
        self._since_single = 0 if n_tokens == 1 else self._since_single + 1


def edgechat_policy(make_index: MakeIndex, costs: StepCosts, acceptance: Acceptance | None = None) -> Policy:
    """Return edgechat's drafting policy with constant step costs."""
    return Speculator([LiveDrafter(make_index(0))], DraftController(acceptance or Acceptance(), _FixedStepCosts(costs)))


class _StaticPolicy:
    """Base class of drafting policies that do not learn."""

    def __init__(self) -> None:
        self.text: list[int] = []

    def start(self, tokens: Sequence[int]) -> None:
        self.text = list(tokens)

    def append(self, tokens: Sequence[int]) -> None:
        self.text.extend(tokens)

    def record_step(self, n_drafted: int, n_accepted: int, next_token: int, depth: int, seconds: float) -> None:
        pass


class PromptLookup(_StaticPolicy):
    """Prompt lookup of llama-cpp-python: ten tokens after the oldest match of the last two tokens, or of the last."""

    def __init__(self, n_gram: int = 2, n_draft: int = 10) -> None:
        super().__init__()
        self._n_gram, self._n_draft = n_gram, n_draft

    def propose(self, max_tokens: int, depth: int) -> list[int]:
        for n in range(self._n_gram, 0, -1):
            at = _find(self.text, n, newest=False)
            if at is not None:
                return self.text[at : at + min(self._n_draft, max_tokens)]
        return []


class NgramSimple(_StaticPolicy):
    """llama.cpp's ngram-simple policy: up to `m` tokens after the newest match of the last `n` tokens."""

    def __init__(self, n: int = 12, m: int = 48) -> None:
        super().__init__()
        self._n, self._m = n, m

    def propose(self, max_tokens: int, depth: int) -> list[int]:
        at = _find(self.text, self._n, newest=True)
        return self.text[at : at + min(self._m, max_tokens)] if at is not None else []


class PlainSuffix(_StaticPolicy):
    """Policy that drafts as many tokens as the longest match has."""

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
    "prompt lookup 2/10": lambda _make: PromptLookup(),
    "12-gram/48": lambda _make: NgramSimple(),
    "plain suffix": lambda make: PlainSuffix(make(0)),
}


def _find(text: list[int], n: int, *, newest: bool) -> int | None:
    """Return the position after an earlier occurrence of the last `n` tokens, or None."""
    if len(text) <= n:
        return None
    end = text[-n:]
    positions = range(len(text) - n - 1, -1, -1) if newest else range(len(text) - n)
    return next((i + n for i in positions if text[i : i + n] == end), None)
