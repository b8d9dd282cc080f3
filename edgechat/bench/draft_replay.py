"""Recorded answers, gone through again without a model: what a policy of drafting would have cost."""

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
    """Chooses what is tried with the next token; `Speculator` is one."""

    def start(self, tokens: Sequence[int]) -> None:
        """This is the text so far."""

    def append(self, tokens: Sequence[int]) -> None:
        """So it goes on."""

    def propose(self, room: int, depth: int) -> list[int]:
        """At most `room` tokens to try after `depth` others."""

    def record_step(self, n_tried: int, n_right: int, following: int, depth: int, seconds: float) -> None:
        """Of `n_tried` so many were right, then another came."""


def replay(policy: Policy, prompt: Sequence[int], reply: Sequence[int], costs: StepCosts) -> float:
    """Speed of decoding `reply` after `prompt`, in times of decoding token by token, where steps cost `costs`."""
    policy.start([*prompt, reply[0]])
    done, cost, plain = 1, 0.0, len(reply) - 1
    while done < len(reply):
        depth = len(prompt) + done - 1
        draft = policy.propose(len(reply) - done - 1, depth)
        n_right = 0
        while n_right < len(draft) and draft[n_right] == reply[done + n_right]:
            n_right += 1
        ratio = costs.ratio(1 + len(draft), depth)
        cost += ratio
        policy.record_step(len(draft), n_right, reply[done + n_right], depth, ratio)
        policy.append(reply[done : done + n_right + 1])
        done += n_right + 1
    return plain / cost if cost else 1.0


class _Measured(StepCosts):
    """Costs that are known, and change no more; single steps need not be measured."""

    def __init__(self, costs: StepCosts) -> None:
        super().__init__()
        self.ratios = costs.ratios

    def record(self, n_tokens: int, depth: int, seconds: float, *, is_benchmark: bool = False) -> None:
        """Nothing is learned; but what probing costs is a part of the price."""
        self._since_single = 0 if n_tokens == 1 else self._since_single + 1


def ours(make_index: MakeIndex, costs: StepCosts, acceptance: Acceptance | None = None) -> Policy:
    """Edgechat's own."""
    return Speculator([LiveDrafter(make_index(0))], DraftController(acceptance or Acceptance(), _Measured(costs)))


class _Fixed:
    """A policy that learns nothing."""

    def __init__(self) -> None:
        self.text: list[int] = []

    def start(self, tokens: Sequence[int]) -> None:
        self.text = list(tokens)

    def append(self, tokens: Sequence[int]) -> None:
        self.text.extend(tokens)

    def record_step(self, n_tried: int, n_right: int, following: int, depth: int, seconds: float) -> None:
        pass


class PromptLookup(_Fixed):
    """llama-cpp-python's: the first place where the last two tokens stood, or the last one; ten tokens."""

    def __init__(self, n_gram: int = 2, n_draft: int = 10) -> None:
        super().__init__()
        self._n_gram, self._n_draft = n_gram, n_draft

    def propose(self, room: int, depth: int) -> list[int]:
        """What follows the oldest match."""
        for n in range(self._n_gram, 0, -1):
            at = _find(self.text, n, newest=False)
            if at is not None:
                return self.text[at : at + min(self._n_draft, room)]
        return []


class NgramSimple(_Fixed):
    """llama.cpp's ngram-simple: the newest place where the last `n` tokens stood, and up to `m` after it."""

    def __init__(self, n: int = 12, m: int = 48) -> None:
        super().__init__()
        self._n, self._m = n, m

    def propose(self, room: int, depth: int) -> list[int]:
        """What follows the newest match."""
        at = _find(self.text, self._n, newest=True)
        return self.text[at : at + min(self._m, room)] if at is not None else []


class PlainSuffix(_Fixed):
    """As many tokens as the longest match is long."""

    def __init__(self, index: TokenIndex) -> None:
        super().__init__()
        self._drafter = LiveDrafter(index)

    def start(self, tokens: Sequence[int]) -> None:
        """This is the text so far."""
        self._drafter.start(tokens)

    def append(self, tokens: Sequence[int]) -> None:
        """So it goes on."""
        self._drafter.append(tokens)

    def propose(self, room: int, depth: int) -> list[int]:
        """What follows the longest match."""
        draft = self._drafter.draft(min(room, 31)) if room > 0 else None
        return draft.tokens[: draft.match_length] if draft is not None else []


FIXED: Final[dict[str, Callable[[MakeIndex], Policy]]] = {
    "prompt lookup 2/10": lambda _make: PromptLookup(),
    "12-gram/48": lambda _make: NgramSimple(),
    "plain suffix": lambda make: PlainSuffix(make(0)),
}


def _find(text: list[int], n: int, *, newest: bool) -> int | None:
    """The position after an earlier place where the last `n` tokens stand."""
    if len(text) <= n:
        return None
    end = text[-n:]
    places = range(len(text) - n - 1, -1, -1) if newest else range(len(text) - n)
    return next((i + n for i in places if text[i : i + n] == end), None)
