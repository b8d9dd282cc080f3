"""Answers that are made side by side are what each would be alone: exactly on a fake runtime, and in a real engine."""

from __future__ import annotations

import queue
import random
import threading
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgechat.config import GREEDY, Sampling
from edgechat.engine import protocol
from edgechat.engine import sequence as samples
from edgechat.engine.client import EngineClient
from edgechat.engine.request import ActiveRequest
from edgechat.engine.scheduler import Scheduler
from edgechat.errors import EdgechatError
from edgechat.prefix.cache import PrefixCache
from edgechat.runtime.bindings import Bindings
from edgechat.speculation.acceptance import Acceptance
from edgechat.speculation.controller import DraftController
from edgechat.speculation.drafter import LiveDrafter
from edgechat.speculation.speculator import Speculator
from edgechat.speculation.step_costs import SIZES, RunningMean, StepCosts
from tests.fake_context import FakeContext, FakeModel, FakeSampler
from tests.suffix_reference import PlainIndex

N_VOCAB = 12
N_CTX = 60


@pytest.fixture
def fake(native: Bindings, monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    monkeypatch.setattr(samples, "Sampler", FakeSampler)
    return FakeModel(native, N_VOCAB)


class Bench:
    """A fake context, and what was heard of each request."""

    def __init__(self, fake: FakeModel, *, drafts: bool) -> None:
        self.context = FakeContext(fake, N_CTX, n_cells=N_CTX)
        self.cache = PrefixCache(self.context)  # type: ignore[arg-type]
        self.batching = Scheduler(self.context, self.cache, self._ended)  # type: ignore[arg-type]
        self.text: dict[tuple[int, int], str] = {}
        self.last: dict[int, protocol.Event] = {}
        self.answers: dict[int, list[list[int]]] = {}
        self.live = LiveDrafter(PlainIndex(10_000))
        self.drafts = drafts

    def _ended(self, generation: ActiveRequest, event: protocol.Event) -> None:
        assert generation.params.id not in self.last
        self.last[generation.params.id] = event
        self.answers[generation.params.id] = generation.output_tokens

    def hear(self, event: protocol.Event) -> None:
        if isinstance(event, protocol.TokensGenerated):
            key = event.id, event.sequence
            self.text[key] = self.text.get(key, "") + event.text

    def add(self, request: protocol.Generate) -> None:
        speculator = None
        if self.drafts:
            costs = StepCosts()
            costs.ratios = [{n: RunningMean(1.0, 1000) for n in SIZES} for _ in costs.ratios]
            speculator = Speculator([self.live], DraftController(Acceptance(), costs))
        self.batching.add(ActiveRequest(
            self.context, self.cache, request, request.tokens or [], self.hear, 0.0, speculator  # type: ignore[arg-type]
        ))  # fmt: skip

    def finish(self) -> None:
        for _ in range(10_000):
            if self.batching.is_idle:
                return
            self.batching.step()
        raise AssertionError("it goes on for ever")


REQUESTS = st.lists(
    st.tuples(
        st.lists(st.integers(1, N_VOCAB - 1), min_size=1, max_size=30),
        st.sampled_from([0.0, 0.7, 2.0]),
        st.integers(0, 40),  # longest answer
        st.sampled_from([1, 1, 1, 2]),  # answers
        st.integers(0, 12),  # steps before it comes
        st.one_of(st.none(), st.none(), st.integers(0, 15)),  # steps until nobody wants it any more
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wanted=REQUESTS, drafts=st.booleans())
def test_each_answer_is_what_it_is_alone(fake: FakeModel, wanted: list[Any], drafts: bool) -> None:
    """Few cells, so that requests wait, are put off in the middle, and go on again."""
    together = Bench(fake, drafts=drafts)
    cancelled = set()
    requests = [
        protocol.Generate(
            id=i, tokens=prompt if n == 1 else prompt[:12], sampling=Sampling(temperature=heat, seed=i),
            max_tokens=most if n == 1 else min(most, 15),  # two answers that do not fit together end sooner
            n_sequences=n,
        )
        for i, (prompt, heat, most, n, _, _) in enumerate(wanted)
    ]  # fmt: skip
    for step in range(40):
        for request, (*_, comes, goes) in zip(requests, wanted, strict=True):
            if comes == step:
                together.add(request)
            if goes is not None and comes + goes == step and request.id not in together.last:
                together.batching.cancel({request.id})
                cancelled.add(request.id)
        together.batching.step()
    together.finish()
    assert len(together.last) == len(requests)
    for request in requests:
        alone = Bench(fake, drafts=False)
        alone.add(request)
        alone.finish()
        last, expected = together.last[request.id], alone.last[request.id]
        assert isinstance(last, protocol.RequestFinished)
        assert isinstance(expected, protocol.RequestFinished)
        if request.id not in cancelled:
            assert together.answers[request.id] == alone.answers[request.id]
            assert last.finish_reason == expected.finish_reason
        for got, whole in zip(together.answers[request.id], alone.answers[request.id], strict=False):
            assert got == whole[: len(got)]
        for key, text in alone.text.items():
            assert text.startswith(together.text.get(key, ""))
    assert not together.cache._working
    for seq, held in together.context.held.items():
        tip = together.cache.leaves.get(seq)
        assert tip is None or held == tip.path()


def test_whoever_came_first_is_let_in_first_and_none_is_starved(fake: FakeModel) -> None:
    bench = Bench(fake, drafts=False)
    fake.end_logit = -100.0
    for i in range(12):
        bench.add(protocol.Generate(id=i, tokens=[1 + i % 9] * 20, sampling=GREEDY, max_tokens=10))
    bench.finish()
    order = list(bench.last)
    assert order.index(0) < 3
    assert order.index(11) > 8


# In a real engine


class Heard:
    """What an engine says of one request."""

    def __init__(self, client: EngineClient, request: protocol.Generate) -> None:
        self.client, self.id = client, request.id
        self.tokens: dict[int, list[int]] = {}
        self.text = ""
        self.first = threading.Event()
        self._done: queue.SimpleQueue[protocol.AnyEvent | EdgechatError] = queue.SimpleQueue()
        client.submit(request, self._hear)

    def _hear(self, event: protocol.AnyEvent | EdgechatError) -> None:
        if isinstance(event, protocol.TokensGenerated):
            self.tokens.setdefault(event.sequence, []).extend(event.tokens)
            self.text += event.text
            self.first.set()
        elif isinstance(event, EdgechatError | protocol.RequestFinished):
            self._done.put(event)

    @property
    def is_going_on(self) -> bool:
        return self._done.empty()

    def end(self) -> protocol.RequestFinished:
        event = self._done.get(timeout=100)
        assert isinstance(event, protocol.RequestFinished), event
        return event


def ask(engine: EngineClient, seed: int, **options: Any) -> Heard:
    draw = random.Random(seed)
    given: dict[str, Any] = {
        "tokens": [draw.randrange(300, 3000) for _ in range(options.pop("n_prompt", 40))], "max_tokens": 24,
        "ignore_eog": True, "sampling": GREEDY, "speculate": False,
    } | options  # fmt: skip
    return Heard(engine, protocol.Generate(id=engine.next_id(), **given))


def test_several_at_a_time_share_steps(engine: EngineClient) -> None:
    together = [ask(engine, seed, max_tokens=120) for seed in range(2)]
    assert all(heard.first.wait(30) for heard in together)
    assert all(heard.is_going_on for heard in together)  # the second one did not wait for the end of the first
    for heard in together:
        ended = heard.end()
        assert ended.finish_reason == "length"
        assert len(heard.tokens[0]) == ended.stats.completion_tokens == 120


def test_one_is_cancelled_and_the_others_go_on(engine: EngineClient) -> None:
    stays, goes = ask(engine, 5, max_tokens=60), ask(engine, 6, max_tokens=1500)
    assert goes.first.wait(30)
    engine.cancel(goes.id)
    assert goes.end().finish_reason == "cancelled"
    assert stays.end().finish_reason == "length"
    assert len(stays.tokens[0]) == 60


def test_a_prompt_that_another_one_begins_with_is_computed_once(engine: EngineClient) -> None:
    shared = [7 + i % 900 for i in range(600)]
    first, second = (ask(engine, seed, tokens=[*shared, 400 + seed, 500], max_tokens=40) for seed in (1, 2))
    assert first.end().stats.cached_tokens < 50
    assert second.end().stats.cached_tokens >= len(shared)


def test_the_last_one_that_is_wanted_is_cancelled_at_once_also_while_it_waits(engine: EngineClient) -> None:
    many = [ask(engine, seed, max_tokens=1500, n_prompt=300) for seed in range(10)]
    for heard in many:
        engine.cancel(heard.id)
    assert {heard.end().finish_reason for heard in many} == {"cancelled"}
    assert ask(engine, 1, max_tokens=3).end().finish_reason == "length"


def test_a_question_in_between_does_not_wait_for_an_answer(engine: EngineClient) -> None:
    heard = ask(engine, 3, max_tokens=1000)
    assert heard.first.wait(30)
    assert engine.tokenize("Hello there")
    assert engine.stats().context_tokens >= 0
    assert heard.is_going_on
    engine.cancel(heard.id)
    heard.end()


def test_more_than_the_context_holds_is_answered_all_the_same(engine: EngineClient) -> None:
    """2,048 cells for 6 answers that end with 900 tokens each."""
    many = [ask(engine, seed, n_prompt=700, max_tokens=200) for seed in range(6)]
    assert [heard.end().stats.completion_tokens for heard in many] == [200] * 6
