"""Parallel requests generate what each would generate alone: exactly on a fake context, and in a real engine."""

from __future__ import annotations

import queue
import random
import threading
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgechat.config import GREEDY, Sampling
from edgechat.engine import protocol, sequence
from edgechat.engine import request as request_module
from edgechat.engine.client import EngineClient
from edgechat.engine.request import ActiveRequest
from edgechat.errors import EdgechatError
from edgechat.hardware.contention import Timing
from edgechat.runtime.bindings import Bindings
from edgechat.speculation.speculator import Speculator
from tests.engine.fake_engine import N_VOCAB, FakeEngine
from tests.fake_context import FakeContext, FakeModel, FakeSampler


@pytest.fixture
def fake(native: Bindings, monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    monkeypatch.setattr(sequence, "Sampler", FakeSampler)
    monkeypatch.setattr(request_module, "_MIN_TOKENS_AFTER_WAIT", 2)  # the prompts here are short
    return FakeModel(native, N_VOCAB)


class FixedStopwatch:
    """Stopwatch of steps of a tenth of a second; each tenth one is disturbed and takes ten times as long."""

    n_steps = 0

    def stop(self) -> Timing:
        FixedStopwatch.n_steps += 1
        return Timing(1.0, "other programs were busy") if FixedStopwatch.n_steps % 10 == 0 else Timing(0.1)


@pytest.mark.parametrize("n_requests", [1, 2])
@pytest.mark.parametrize("with_drafts", [False, True])
def test_undisturbed_steps_of_one_token_give_the_speed_of_a_reply(
    fake: FakeModel, monkeypatch: pytest.MonkeyPatch, *, n_requests: int, with_drafts: bool
) -> None:
    monkeypatch.setattr(FakeContext, "start_stopwatch", lambda _context: FixedStopwatch())
    speeds: list[float | None] = []
    create_final_event = ActiveRequest.create_final_event

    def finish(request: ActiveRequest) -> protocol.RequestFinished:
        speeds.append(request.speeds.decode_tps)
        return create_final_event(request)

    monkeypatch.setattr(ActiveRequest, "create_final_event", finish)
    engine = FakeEngine(fake, with_drafts=with_drafts)
    monkeypatch.setattr(
        Speculator, "propose", lambda *_arguments: [1] if engine.context.widths[-1] == 1 else []
    )  # a draft in every second step
    for number in range(n_requests):
        engine.add(protocol.Generate(id=number, tokens=[1, 2 + number], max_tokens=20, ignore_eog=True))
    engine.finish()
    is_plain = n_requests == 1 and not with_drafts  # with drafts, fewer than 16 steps have one token
    assert speeds == [10.0 if is_plain else None] * n_requests


REQUESTS = st.lists(
    st.tuples(
        st.lists(st.integers(1, N_VOCAB - 1), min_size=1, max_size=30),
        st.sampled_from([0.0, 0.7, 2.0]),
        st.integers(0, 40),  # max_tokens
        st.sampled_from([1, 1, 1, 2]),  # n_sequences
        st.integers(0, 12),  # step of arrival
        st.one_of(st.none(), st.none(), st.integers(0, 15)),  # steps until it is cancelled
        st.booleans(),  # prompt_logprobs
        st.one_of(st.none(), st.none(), st.integers(0, 15)),  # steps until its grammar is set
    ),
    min_size=1,
    max_size=8,
)


def run_steps(engine: FakeEngine, requests: list[protocol.Generate], specs: list[Any]) -> set[int]:
    """Run the steps in which requests arrive, get their grammars and are cancelled; return the ids of the last ones."""
    cancelled: set[int] = set()
    for step in range(40):
        for request, (*_, arrival, cancel_after, _, grammar_after) in zip(requests, specs, strict=True):
            if arrival == step:
                engine.add(request, awaits_grammar=grammar_after is not None)
            if grammar_after is not None and arrival + grammar_after == step:
                engine.set_grammar(request.id)
            if cancel_after is not None and arrival + cancel_after == step and request.id not in engine.final:
                engine.scheduler.cancel({request.id})
                cancelled.add(request.id)
        engine.scheduler.step()
    return cancelled


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(specs=REQUESTS, with_drafts=st.booleans())
def test_parallel_requests_generate_what_each_generates_alone(
    fake: FakeModel, specs: list[Any], with_drafts: bool
) -> None:
    """With so few cells that requests wait, and are preempted and resumed."""
    together = FakeEngine(fake, with_drafts=with_drafts)
    requests = [
        protocol.Generate(
            id=i, tokens=prompt if n == 1 else prompt[:12], sampling=Sampling(temperature=temperature, seed=i),
            max_tokens=max_tokens if n == 1 else min(max_tokens, 15),  # two longer ones may not fit the context
            n_sequences=n, prompt_logprobs=prompt_logprobs, n_logprobs=0 if prompt_logprobs else None,
        )
        for i, (prompt, temperature, max_tokens, n, _, _, prompt_logprobs, _) in enumerate(specs)
    ]  # fmt: skip
    cancelled = run_steps(together, requests, specs)
    together.set_all_grammars()
    together.finish()
    assert len(together.final) == len(requests)
    for request in requests:
        alone = FakeEngine(fake, with_drafts=False)
        alone.add(request)
        alone.finish()
        final, expected = together.final[request.id], alone.final[request.id]
        assert isinstance(final, protocol.RequestFinished)
        assert isinstance(expected, protocol.RequestFinished)
        if request.id not in cancelled:
            assert together.outputs[request.id] == alone.outputs[request.id]
            assert final.finish_reason == expected.finish_reason
        check_prompt_logprobs(fake, request, together, is_cancelled=request.id in cancelled)
        for partial, whole in zip(together.outputs[request.id], alone.outputs[request.id], strict=False):
            assert partial == whole[: len(partial)]
        for key, text in alone.text.items():
            assert text.startswith(together.text.get(key, ""))
    assert not together.cache._leased_seqs
    for seq, tokens in together.context.seq_tokens.items():
        leaf = together.cache.leaves.get(seq)
        assert leaf is None or tokens == leaf.path()


def check_prompt_logprobs(
    fake: FakeModel, request: protocol.Generate, engine: FakeEngine, *, is_cancelled: bool
) -> None:
    logprobs, prompt = engine.prompt_logprobs.get(request.id, []), request.tokens or []
    if request.prompt_logprobs:
        assert logprobs == [0.0, *(fake.logits(prompt[:i])[prompt[i]] for i in range(1, len(prompt)))][: len(logprobs)]
        assert is_cancelled or len(logprobs) == len(prompt)
    else:
        assert not logprobs


def test_requests_are_admitted_in_order_of_arrival(fake: FakeModel) -> None:
    engine = FakeEngine(fake, with_drafts=False)
    fake.end_logit = -100.0
    for i in range(12):
        engine.add(protocol.Generate(id=i, tokens=[1 + i % 9] * 20, sampling=GREEDY, max_tokens=10))
    engine.finish()
    order = list(engine.final)
    assert order.index(0) < 3
    assert order.index(11) > 8


def test_prompt_is_prefilled_to_its_last_token_without_the_grammar(fake: FakeModel) -> None:
    engine = FakeEngine(fake, with_drafts=False)
    prompt = [1 + i % 9 for i in range(20)]
    engine.add(protocol.Generate(id=1, tokens=prompt, sampling=GREEDY, max_tokens=3), awaits_grammar=True)
    assert not engine.scheduler.is_blocked
    for _ in range(3):
        engine.scheduler.step()
    assert engine.scheduler.is_blocked
    assert [tokens for tokens in engine.context.seq_tokens.values() if tokens] == [prompt[:-1]]
    engine.set_grammar(1)
    assert not engine.scheduler.is_blocked
    engine.finish()
    assert engine.outputs[1]


@pytest.mark.parametrize("bypasses_cache", [False, True])
def test_request_does_not_wait_for_the_grammars_of_others(fake: FakeModel, *, bypasses_cache: bool) -> None:
    engine = FakeEngine(fake, with_drafts=False)
    prompt = [1 + i % 9 for i in range(20)]
    for i in range(8):  # as many as there are sequences
        request = protocol.Generate(
            id=i, tokens=[*prompt, i], sampling=GREEDY, max_tokens=3, bypass_cache=bypasses_cache and i % 2 == 0
        )
        engine.add(request, awaits_grammar=True)
    engine.scheduler.step()
    engine.add(protocol.Generate(id=9, tokens=[*prompt, 9], sampling=GREEDY, max_tokens=3, bypass_cache=bypasses_cache))
    for _ in range(10):
        engine.scheduler.step()
    assert list(engine.final) == [9]
    assert engine.scheduler.is_blocked
    engine.set_all_grammars()
    engine.finish()
    assert len(engine.final) == 9


# In a real engine process


class PendingRequest:
    """A submitted request and its output so far."""

    def __init__(self, client: EngineClient, request: protocol.Generate) -> None:
        self.client, self.id = client, request.id
        self.tokens: dict[int, list[int]] = {}
        self.text = ""
        self.has_started = threading.Event()
        self._outcome: queue.SimpleQueue[protocol.AnyEvent | EdgechatError] = queue.SimpleQueue()
        client.submit(request, self._on_event)

    def _on_event(self, event: protocol.AnyEvent | EdgechatError) -> None:
        if isinstance(event, protocol.TokensGenerated):
            self.tokens.setdefault(event.sequence, []).extend(event.tokens)
            self.text += event.text
            self.has_started.set()
        elif isinstance(event, EdgechatError | protocol.RequestFinished):
            self._outcome.put(event)

    def result(self) -> protocol.RequestFinished:
        event = self._outcome.get(timeout=100)
        assert isinstance(event, protocol.RequestFinished), event
        return event


def submit(engine: EngineClient, seed: int, **options: Any) -> PendingRequest:
    rng = random.Random(seed)
    fields: dict[str, Any] = {
        "tokens": [rng.randrange(300, 3000) for _ in range(options.pop("n_prompt", 40))], "max_tokens": 24,
        "ignore_eog": True, "sampling": GREEDY, "speculate": False,
    } | options  # fmt: skip
    return PendingRequest(engine, protocol.Generate(id=engine.next_id(), **fields))


def test_parallel_requests_share_decode_steps(engine: EngineClient) -> None:
    first = submit(engine, 0, max_tokens=1900)
    assert first.has_started.wait(100)
    second = submit(engine, 1, max_tokens=40)
    result = second.result()
    assert result.finish_reason == "length"
    assert len(second.tokens[0]) == result.stats.completion_tokens == 40
    engine.cancel(first.id)
    assert first.result().finish_reason == "cancelled"  # the second one did not wait for the first


def test_cancelling_one_request_leaves_the_others_running(engine: EngineClient) -> None:
    finishing, cancelled = submit(engine, 5, max_tokens=30), submit(engine, 6, max_tokens=1500)
    assert cancelled.has_started.wait(100)
    engine.cancel(cancelled.id)
    assert cancelled.result().finish_reason == "cancelled"
    assert finishing.result().finish_reason == "length"
    assert len(finishing.tokens[0]) == 30


def test_shared_prompt_prefix_is_prefilled_once(engine: EngineClient) -> None:
    shared = [7 + i % 900 for i in range(600)]
    first, second = (submit(engine, seed, tokens=[*shared, 400 + seed, 500], max_tokens=4) for seed in (1, 2))
    assert first.result().stats.cached_tokens < 50
    assert second.result().stats.cached_tokens >= len(shared)


def test_running_and_waiting_requests_can_all_be_cancelled(engine: EngineClient) -> None:
    requests = [submit(engine, seed, max_tokens=1500, n_prompt=300) for seed in range(10)]
    for pending in requests:
        engine.cancel(pending.id)
    assert {pending.result().finish_reason for pending in requests} == {"cancelled"}
    assert submit(engine, 1, max_tokens=3).result().finish_reason == "length"


def test_tokenize_and_stats_do_not_wait_for_a_running_generation(engine: EngineClient) -> None:
    pending = submit(engine, 3, max_tokens=1900)
    assert pending.has_started.wait(100)
    assert engine.tokenize("Hello there")
    assert engine.stats().context_tokens >= 0
    engine.cancel(pending.id)
    assert pending.result().finish_reason == "cancelled"  # it had not ended


def test_requests_that_exceed_the_context_together_are_all_completed(engine: EngineClient) -> None:
    """A context of 2,048 cells, and 3 requests that need 730 tokens each."""
    requests = [submit(engine, seed, n_prompt=650, max_tokens=80) for seed in range(3)]
    assert [pending.result().stats.completion_tokens for pending in requests] == [80] * 3
