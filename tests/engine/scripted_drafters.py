"""Model drafters of tests: they know the texts, or propose wrong, invalid or no tokens."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

from edgechat.draft_request import DraftRequest, TextWindow, TokenChain
from edgechat.errors import EngineError
from edgechat.speculation.model_source import DrafterProfile, ModelSource

Behaviour = Literal["perfect", "random", "wrong", "half", "raising", "too long", "invalid", "silent", "no memory"]
BEHAVIOURS: tuple[Behaviour, ...] = (
    "perfect", "random", "wrong", "half", "raising", "too long", "invalid", "silent", "no memory"
)  # fmt: skip


class HasTokens(Protocol):
    def tokens(self, seq: int = 0) -> Sequence[int]: ...


class ScriptedDrafter:
    """Drafts for the sequences of `context`, which generate `texts` (prompts with their replies)."""

    max_tokens = 7
    is_open = True

    def __init__(self, context: HasTokens, behaviour: Behaviour, n_vocab: int, texts: list[list[int]]) -> None:
        self.context, self.behaviour, self.n_vocab, self.texts = context, behaviour, n_vocab, texts
        self.rng = random.Random(0)
        self.n_calls = 0
        self.n_seqs_of_calls: list[int] = []
        self.n_sleeps = self.n_wakes = 0
        self.can_wake = True

    def find_window(self, seq: int) -> TextWindow:
        return TextWindow(1, 500, 0)

    def draft(self, requests: Mapping[int, DraftRequest]) -> dict[int, TokenChain]:
        self.n_calls += 1
        self.n_seqs_of_calls.append(len(requests))
        if self.behaviour == "raising" and self.n_calls >= 3:
            raise EngineError("llama.cpp failed to compute a draft.")
        if self.behaviour == "no memory" and self.n_calls >= 2:
            raise MemoryError
        return {seq: self._draft(seq, request) for seq, request in requests.items()}

    def _draft(self, seq: int, request: DraftRequest) -> TokenChain:
        assert request.max_tokens > 0
        n = 40 if self.behaviour == "too long" else request.max_tokens
        text = [*self.context.tokens(seq), request.next_token]
        # The longest of the texts that continue this one: two replies may begin alike.
        ahead = max((t[len(text) :] for t in self.texts if t[: len(text)] == text), key=len, default=[])[:n]
        if self.behaviour == "silent":
            return TokenChain([], [])
        if self.behaviour == "invalid":
            return TokenChain([*ahead[:1], self.n_vocab + 5, -3], [float("nan"), 2.0, -1.0])
        if self.behaviour == "random":
            ahead = [self.rng.randrange(self.n_vocab) for _ in range(n)]
        if self.behaviour == "wrong":
            ahead = [(t + 1) % self.n_vocab for t in ahead]
        if self.behaviour == "half":
            ahead = [t if self.rng.random() < 0.5 else (t + 1) % self.n_vocab for t in ahead]
        return TokenChain(ahead, [0.9] * len(ahead))

    def sleep(self) -> None:
        self.n_sleeps += 1

    def wake(self) -> bool:
        self.n_wakes += 1
        return self.can_wake


class EagerSource(ModelSource):
    """Source that asks its drafter in every step, whatever the drafts are worth."""

    def choose(self, candidates: Sequence[Any], costs: Any, depth: int, **_options: float) -> Any:
        self.profile.schedule.interval = 0
        return super().choose(candidates, costs, depth, other_gain=1.0, max_cost=1e6, max_trial_cost=1e6)


def make_source(drafter: ScriptedDrafter, on_failure: Callable[[str], None] = lambda _message: None) -> ModelSource:
    """Return a source whose drafts take no time."""
    return EagerSource(drafter, DrafterProfile(), drafter.n_vocab, lambda: lambda: (1e-9, False), on_failure)
