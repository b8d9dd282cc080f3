"""Replayed replies with scripted drafters: drafts that are right or wrong as a test needs them, and their costs."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from edgechat.bench.draft_replay import FixedStepCosts
from edgechat.draft_request import DraftRequest, TextWindow, TokenChain
from edgechat.speculation.acceptance import Acceptance
from edgechat.speculation.calibration import Calibration
from edgechat.speculation.controller import DraftController
from edgechat.speculation.drafter import FROM_CONTEXT, Draft
from edgechat.speculation.model_source import ModelSource
from edgechat.speculation.profile import LearnedRates, SpeculationProfile
from edgechat.speculation.speculator import Speculator
from tests.unit.speculation.costs import costs_of

N_VOCAB = 1000
# Tokens of each prompt, and of the text that a model reads at most.
PROMPT_LENGTH = 200
MAX_WINDOW = 512
IsRight = Callable[[int], bool]
"""Whether a drafter is right about the token at a position of the reply."""


class ReplyReader:
    """Knows the reply that is replayed; the drafters propose its tokens, or others where they should be wrong."""

    def __init__(self) -> None:
        self.reply: Sequence[int] = []
        self.position = 0
        """Number of tokens of the reply that are generated."""

    def follow(self, is_right: IsRight, max_tokens: int) -> list[int]:
        start = self.position
        tokens = self.reply[start : start + max_tokens]
        return [t if is_right(start + i) else (t + 1) % N_VOCAB for i, t in enumerate(tokens)]


class ScriptedText:
    """Text drafter that claims a match of `match_length` tokens."""

    def __init__(self, reader: ReplyReader, is_right: IsRight, match_length: int) -> None:
        self.reader, self.is_right, self.match_length = reader, is_right, match_length

    def start(self, tokens: Sequence[int]) -> None:
        pass

    def append(self, tokens: Sequence[int]) -> None:
        self.reader.position += len(tokens)

    def draft(self, max_tokens: int) -> Draft:
        return Draft(self.reader.follow(self.is_right, max_tokens), self.match_length, FROM_CONTEXT)

    def stop(self) -> None:
        pass


class ScriptedModel:
    """Model drafter that takes `step_cost` per token on the clock `now_s`, and `token_cost` per pending token."""

    def __init__(
        self, reader: ReplyReader, is_right: IsRight, *, step_cost: float, token_cost: float = 0.0,
        probability: Callable[[int, bool], float] = lambda _position, _is_right: 0.9, max_tokens: int = 7,
        first_cost: float = 0.0, is_disturbed: bool = False,
    ) -> None:  # fmt: skip
        """Create a drafter whose first draft takes `first_cost` more; `is_disturbed` is what the clock says of all."""
        self.reader, self.is_right, self.probability = reader, is_right, probability
        self.step_cost, self.token_cost, self.max_tokens = step_cost, token_cost, max_tokens
        self.first_cost, self.is_disturbed = first_cost, is_disturbed
        self.slow_draft = 1
        """Number of the draft that takes `first_cost` more."""
        self.now_s = 0.0
        self.n_known = self.start = -PROMPT_LENGTH
        """End and start of the part of the text that the model has computed, as positions in the reply."""
        self.n_calls = 0
        self.is_awake = self.is_open = True
        self.n_sleeps = 0
        self.can_draft = self.can_wake = True
        self.n_wakes, self.wake_cost = 0, 0.0

    def find_window(self, seq: int) -> TextWindow:
        n_text = PROMPT_LENGTH + self.reader.position
        n_restart = min(n_text, MAX_WINDOW // 2)
        # The last token is computed again if no token follows it.
        n_known = min(self.n_known, self.reader.position - 1)
        return TextWindow(min(self.reader.position - n_known, n_restart), n_known - self.start, n_restart)

    def draft(self, requests: Mapping[int, DraftRequest]) -> dict[int, TokenChain]:
        assert self.is_awake
        self.n_calls += 1
        if not self.can_draft:
            return {}
        [(seq, request)] = requests.items()
        window = self.find_window(seq)
        max_pending = window.n_restart if request.max_pending is None else request.max_pending
        n_pending = min(max_pending, window.n_restart if request.must_restart else window.n_pending)
        if request.must_restart or self.reader.position - n_pending > self.n_known:
            self.start = self.reader.position - n_pending
        self.n_known = self.reader.position
        self.start = max(self.start, self.n_known - MAX_WINDOW)
        tokens = self.reader.follow(self.is_right, request.max_tokens)
        start = self.reader.position
        probabilities = [
            self.probability(start + i, token == self.reader.reply[start + i]) for i, token in enumerate(tokens)
        ]
        end = next((i for i, p in enumerate(probabilities) if p < request.min_probability), len(tokens))
        n_steps = min(end + 1, request.max_tokens)
        self.now_s += self.first_cost if self.n_calls == self.slow_draft or not self.is_open else 0.0
        self.is_open = True
        self.now_s += n_steps * self.step_cost + max(0, n_pending - 1) * self.token_cost
        return {seq: TokenChain(tokens[:end], probabilities[:end])}

    def sleep(self) -> None:
        self.is_awake = False
        self.n_sleeps += 1

    def wake(self) -> bool:
        self.is_awake = self.can_wake
        self.n_wakes += 1
        self.now_s += self.wake_cost
        self.forget()
        return self.is_awake

    def forget(self) -> None:
        """Start a new text, of which nothing is computed."""
        self.n_known = self.start = -PROMPT_LENGTH

    def start_timer(self) -> Callable[[], tuple[float, bool]]:
        started_s = self.now_s
        return lambda: (self.now_s - started_s, self.is_disturbed)


class Replay:
    """Replays replies one after another, with drafters that learn from each of them."""

    def __init__(self, ratios: dict[int, float]) -> None:
        self.reader = ReplyReader()
        self.costs = FixedStepCosts(costs_of(ratios))
        self.speculation_profile = SpeculationProfile()
        self.profile = self.speculation_profile.find_drafter("a model")
        self.rates = LearnedRates(self.speculation_profile, self.profile)
        self.model: ScriptedModel | None = None
        self.source: ModelSource | None = None
        self.has_memory = True
        self.costs_of_replies: list[float] = []
        """Time of each reply, relative to decoding without drafts."""

    def add_model(self, is_right: IsRight, **options: object) -> ScriptedModel:
        self.model = ScriptedModel(self.reader, is_right, **options)  # type: ignore[arg-type]
        self.source = ModelSource(self.model, self.profile, N_VOCAB, self.model.start_timer)
        return self.model

    def run(self, n_tokens: int, texts: Sequence[tuple[IsRight, int]] = (), *, is_saved: bool = True) -> Speculator:
        """Replay a reply of `n_tokens`; `texts` are text drafters: where they are right, and the match they claim."""
        rng = random.Random(n_tokens)
        reader, costs = self.reader, self.costs
        reader.reply, reader.position = [rng.randrange(N_VOCAB) for _ in range(n_tokens)], 1
        if self.source is not None:
            self.source.wake(lambda: self.has_memory)
        if self.model is not None:
            self.model.forget()
        drafters = [ScriptedText(reader, is_right, match_length) for is_right, match_length in texts]
        acceptance, counts = self.rates.find(is_sampled=False, is_saved=is_saved)
        controller = DraftController(Acceptance(acceptance.counts), costs, Calibration(counts))
        speculator = Speculator(drafters, controller, model=self.source)
        speculator.start([reader.reply[0]])
        cost = 0.0
        while reader.position < n_tokens:
            position, depth = reader.position, PROMPT_LENGTH + reader.position
            draft = speculator.propose(n_tokens - position - 1, depth)
            n_accepted = next((i for i, t in enumerate(draft) if t != reader.reply[position + i]), len(draft))
            ratio = costs.ratio(1 + len(draft), depth)
            cost += ratio + speculator.draft_s
            tokens = reader.reply[position : position + n_accepted + 1]
            speculator.record_step(len(draft), n_accepted, tokens[-1], depth, ratio)
            speculator.append(tokens)
            reader.position = position + len(tokens)
        self.costs_of_replies.append(cost / (n_tokens - 1))
        return speculator
