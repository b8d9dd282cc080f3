"""Several replies of one request: ending single ones, and their mean logprobs."""

from __future__ import annotations

import math
import queue
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgechat.config import GREEDY, Sampling
from edgechat.engine import protocol, sequence
from edgechat.engine.client import EngineClient
from edgechat.runtime.bindings import Bindings
from tests.engine.fake_engine import N_VOCAB, FakeEngine
from tests.engine.text_models import SteppedModel
from tests.fake_context import FakeModel, FakeSampler
from tests.models import write_tiny_llama


@pytest.fixture
def fake(native: Bindings, monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    monkeypatch.setattr(sequence, "Sampler", FakeSampler)
    return FakeModel(native, N_VOCAB)


REQUESTS = st.lists(
    st.tuples(
        st.lists(st.integers(1, N_VOCAB - 1), min_size=1, max_size=6),
        st.integers(1, 3),  # n_sequences
        st.dictionaries(st.integers(0, 3), st.integers(0, 20), max_size=3),  # step in which a sequence is ended
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(specs=REQUESTS)
def test_ending_single_replies_leaves_the_others_unchanged(fake: FakeModel, specs: list[Any]) -> None:
    """With so few cells that requests wait, and are preempted and resumed."""
    together = FakeEngine(fake, with_drafts=False)
    ended: set[tuple[int, int]] = set()
    requests = [
        protocol.Generate(
            id=i, tokens=prompt, sampling=Sampling(temperature=2.0, seed=i), max_tokens=9, n_sequences=n
        )
        for i, (prompt, n, _) in enumerate(specs)
    ]  # fmt: skip
    for request in requests:
        together.add(request)
    for step in range(31):
        for i, (_, _, ends) in enumerate(specs):
            indexes = [index for index, end in ends.items() if end == step]
            if indexes:
                together.scheduler.cancel_sequences(i, indexes)
                ended |= {(i, index) for index in indexes}
        together.scheduler.step()
    together.finish()
    assert len(together.final) == len(requests)
    for request in requests:
        alone = FakeEngine(fake, with_drafts=False)
        alone.add(request)
        alone.finish()
        for index, (partial, whole) in enumerate(
            zip(together.outputs[request.id], alone.outputs[request.id], strict=True)
        ):
            assert partial == (whole[: len(partial)] if (request.id, index) in ended else whole)
    assert not together.cache._leased_seqs


def test_request_ends_when_all_its_replies_are_ended(native: Bindings, tmp_path: Path) -> None:
    model = SteppedModel(native, write_tiny_llama(tmp_path / "m.gguf"), n_ctx=1024)
    request_id = model.start(list(range(5, 25)), n_sequences=3, max_tokens=200, sampling=Sampling(seed=1))

    def on_step(step: int) -> None:
        if step in {5, 9}:
            model.model.cancel_sequences(request_id, [1] if step == 5 else [0, 2])

    model.finish(on_step)
    finished = [e for e in model.events if isinstance(e, protocol.SequenceFinished)]
    assert [e.sequence for e in finished] == [1, 0, 2]
    assert {e.finish_reason for e in finished} == {"cancelled"}
    assert finished[0].completion_tokens < finished[1].completion_tokens < 200
    assert isinstance(model.events[-1], protocol.RequestFinished)
    model.model.cancel_sequences(request_id, [0])  # has ended


@pytest.mark.parametrize("fields", [{}, {"speculate": True}, {"n_sequences": 2}, {"max_tokens": 1}])
def test_mean_logprob_is_that_of_the_reported_logprobs(engine: EngineClient, fields: dict[str, Any]) -> None:
    tokens = engine.tokenize("One two three one two three one two")
    request = protocol.Generate(
        id=engine.next_id(), tokens=tokens, sampling=Sampling(seed=3, temperature=0.8), n_logprobs=0, mean_logprob=True,
        bypass_cache=True, **{"max_tokens": 40, "speculate": False} | fields,
    )  # fmt: skip
    logprobs: dict[int, list[float]] = {}
    means: dict[int, float | None] = {}
    for event in engine.generate(request):
        if isinstance(event, protocol.TokensGenerated):
            logprobs.setdefault(event.sequence, []).extend(token.logprob for token in event.logprobs)
        elif isinstance(event, protocol.SequenceFinished):
            means[event.sequence] = event.mean_logprob
    assert sorted(means) == list(range(request.n_sequences))
    for index, values in logprobs.items():
        assert means[index] == pytest.approx(math.fsum(values) / len(values), abs=1e-4)


def test_end_token_does_not_count_in_the_mean_logprob(engine: EngineClient) -> None:
    prompt = engine.tokenize("<|im_start|>user\nSay hi<|im_end|>\n<|im_start|>assistant\n")
    [end_token] = engine.tokenize("<|im_end|>")
    request = protocol.Generate(
        id=engine.next_id(), tokens=prompt, sampling=GREEDY, n_logprobs=0, mean_logprob=True, max_tokens=100,
        # The model's own reply depends on the CPU, and may not end: end it as soon as the grammar allows that.
        grammars=['start: "hi there" /x*/'], logit_bias={end_token: 100.0},
    )  # fmt: skip
    events = list(engine.generate(request))
    [finished] = [e for e in events if isinstance(e, protocol.SequenceFinished)]
    assert finished.finish_reason == "stop"
    logprobs = [p.logprob for e in events if isinstance(e, protocol.TokensGenerated) for p in e.logprobs]
    assert len(logprobs) == finished.completion_tokens - 1
    assert finished.mean_logprob == pytest.approx(math.fsum(logprobs) / len(logprobs), abs=1e-4)


def test_reply_without_tokens_has_no_mean_logprob() -> None:
    score = sequence.MeanLogprob()
    assert score.value is None
    score.add(-2.0)
    score.add(-4.0)
    assert score.value == -3.0
    score.add(-math.inf)
    score.remove_last()
    assert score.value == -3.0


def test_client_ends_one_reply_while_the_others_continue(engine: EngineClient) -> None:
    request = protocol.Generate(
        id=engine.next_id(), tokens=list(range(400, 440)), n_sequences=2, max_tokens=1500, ignore_eog=True,
        sampling=Sampling(seed=1),
    )  # fmt: skip
    outcomes: queue.SimpleQueue[object] = queue.SimpleQueue()
    engine.cancel_sequences(request.id, [0])  # before the request exists
    engine.submit(request, outcomes.put)
    finished: list[int] = []
    while not isinstance(event := outcomes.get(timeout=60), protocol.RequestFinished):
        if isinstance(event, protocol.TokensGenerated) and not finished:
            engine.cancel_sequences(request.id, [1, 7])
        if isinstance(event, protocol.SequenceFinished):
            assert event.finish_reason == "cancelled"
            finished.append(event.sequence)
            if len(finished) == 1:
                engine.cancel_sequences(request.id, [0, 1])
    assert finished[0] == 1
    assert sorted(finished) == [0, 1]
    assert engine.stats().context_tokens > 0
