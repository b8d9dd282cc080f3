"""A request that another engine process resumes generates what an undisturbed one generates, from any token on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgechat.config import GREEDY, Sampling
from edgechat.engine import protocol, sequence
from edgechat.engine.client import EngineClient
from edgechat.engine.generation import ThinkingLimit
from edgechat.engine.resumption import RequestRecord
from edgechat.errors import ComputeError, EngineError
from edgechat.hardware.contention import Timing
from edgechat.runtime.bindings import Bindings
from edgechat.runtime.tool_grammar import ToolGrammar, Trigger
from tests.engine.fake_engine import N_VOCAB, FakeEngine
from tests.fake_context import FakeModel, FakeSampler

PENALTIES = Sampling(temperature=0.0, repeat_penalty=1.5, dry_multiplier=0.8)


@pytest.fixture
def fake(native: Bindings, monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    monkeypatch.setattr(sequence, "Sampler", FakeSampler)
    monkeypatch.setattr(sequence, "FLUSH_INTERVAL_S", -1.0)  # an event for each token
    return FakeModel(native, N_VOCAB)


class RecordingEngine(FakeEngine):
    """Fake engine that keeps the events of its requests."""

    events: list[protocol.AnyEvent]

    def on_event(self, event: Any) -> None:
        super().on_event(event)
        self.__dict__.setdefault("events", []).append(event)


class Output:
    """Output of one request, from the events of one or more engines."""

    def __init__(self, events: list[Any]) -> None:
        self.texts: dict[int, str] = {}
        self.prompt_logprobs: list[float] = []
        self.ends: dict[int, tuple[str, float]] = {}
        for event in events:
            if isinstance(event, protocol.TokensGenerated):
                self.texts[event.sequence] = self.texts.get(event.sequence, "") + event.text
            elif isinstance(event, protocol.SequenceFinished):
                assert event.sequence not in self.ends
                mean = event.mean_logprob
                self.ends[event.sequence] = event.finish_reason, round(mean, 6) if mean is not None else 0.0
            elif isinstance(event, protocol.PromptLogprobs):
                self.prompt_logprobs += [token.logprob for token in event.logprobs]


REQUESTS = st.builds(
    protocol.Generate,
    id=st.just(1),
    tokens=st.lists(st.integers(1, N_VOCAB - 1), min_size=1, max_size=9),
    sampling=st.sampled_from([GREEDY, Sampling(temperature=0.0, repeat_penalty=1.5)]),
    max_tokens=st.integers(1, 14),
    n_sequences=st.sampled_from([1, 1, 2, 3]),
    stop=st.lists(st.text("bcdefghijkl", min_size=1, max_size=3), max_size=2),
    mean_logprob=st.booleans(),
    n_logprobs=st.just(0),
    prompt_logprobs=st.booleans(),
)


def run(engine: RecordingEngine, request: protocol.Generate) -> list[Any]:
    engine.events = []
    engine.add(request)
    engine.finish()
    return engine.events


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(request=REQUESTS, n_events=st.integers(0, 50), with_drafts=st.booleans())
def test_resumed_replies_equal_undisturbed_ones(
    fake: FakeModel, request: protocol.Generate, n_events: int, with_drafts: bool
) -> None:
    """After a crash of the first engine at any event."""
    first = RecordingEngine(fake, with_drafts=with_drafts)
    events = run(first, request)
    record, before = RequestRecord(request), events[:n_events]
    for event in before:
        record.add(event)
    second = RecordingEngine(fake, with_drafts=with_drafts)
    after = run(second, record.make_request())
    expected, actual = Output(events), Output([*before, *after])
    assert actual.texts == expected.texts
    assert actual.ends == expected.ends
    assert actual.prompt_logprobs == expected.prompt_logprobs
    final, undisturbed = second.final[1], first.final[1]
    assert isinstance(final, protocol.RequestFinished)
    assert isinstance(undisturbed, protocol.RequestFinished)
    assert final.finish_reason == undisturbed.finish_reason
    assert final.stats.prompt_tokens == undisturbed.stats.prompt_tokens
    assert final.stats.completion_tokens == undisturbed.stats.completion_tokens
    assert not second.cache._leased_seqs


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(requests=st.lists(REQUESTS, min_size=1, max_size=3), n_decodes=st.integers(1, 40))
def test_failed_computation_loses_no_token_and_leaves_nothing_in_the_cache(
    fake: FakeModel, requests: list[protocol.Generate], n_decodes: int
) -> None:
    first, second = RecordingEngine(fake, with_drafts=False), RecordingEngine(fake, with_drafts=False)
    first.events = []
    first.context.failures[n_decodes] = ComputeError  # type: ignore[assignment]
    requests = [msgspec.structs.replace(r, id=i, stop=[]) for i, r in enumerate(requests)]
    for request in requests:
        first.add(request)
    first.finish()
    for request in requests:
        events = [event for event in first.events if event.id == request.id]
        outputs = first.outputs[request.id]
        if isinstance(first.final[request.id], protocol.RequestFailed):
            sent = [e for e in events if isinstance(e, protocol.TokensGenerated)]
            assert sum(len(e.tokens) for e in sent) + len(Output(events).ends) >= sum(map(len, outputs))
            record = RequestRecord(request)
            for event in events:
                record.add(event)
            events += run(second, record.make_request())
        alone = RecordingEngine(fake, with_drafts=False)
        assert Output(events).texts == Output(run(alone, request)).texts
    assert not first.cache._leased_seqs


def test_prefill_speed_is_that_of_the_prompt(fake: FakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that of the resumed tokens, which a step of their own computes."""
    engine = FakeEngine(fake, with_drafts=False)
    stopwatch = SimpleNamespace(stop=lambda: Timing(0.5))
    monkeypatch.setattr(engine.context, "start_stopwatch", lambda: stopwatch)
    engine.add(protocol.Generate(
        id=1, tokens=[1] * 9, max_tokens=9, sampling=GREEDY, resumed=[protocol.ResumedReply(tokens=[2, 3, 4])]
    ))  # fmt: skip
    engine.finish()
    final = engine.final[1]
    assert isinstance(final, protocol.RequestFinished)
    assert final.stats.prefill_tps == 18.0


def test_all_or_no_replies_are_resumed(fake: FakeModel) -> None:
    request = protocol.Generate(id=1, tokens=[1], n_sequences=2, resumed=[protocol.ResumedReply(tokens=[1])])
    with pytest.raises(EngineError, match="1 of 2"):
        FakeEngine(fake, with_drafts=False).add(request)


# In a real engine process

NUMBERS = 'start: %json {"type": "array", "items": {"type": "integer", "minimum": 10, "maximum": 99}, "minItems": 8}'
# A call that begins with what the model writes anyway.
CALL = ToolGrammar(gbnf='root ::= "2." [a-c ]+ "!"', triggers=[Trigger("2.")])
THINKING = ThinkingLimit(start_tags=("<think>",), end_tags=("</think>",), is_open=True, max_tokens=8)


def generate(engine: EngineClient, request: protocol.Generate) -> tuple[str, list[int], list[Any], Any]:
    text, tokens, logprobs = "", list[int](), list[Any]()
    *events, last = engine.generate(msgspec.structs.replace(request, id=engine.next_id()))
    for event in events:
        if isinstance(event, protocol.TokensGenerated):
            text, tokens, logprobs = text + event.text, tokens + event.tokens, logprobs + event.logprobs
    return text, tokens, [p.token_bytes for p in logprobs], last


@pytest.mark.parametrize(
    "options",
    [
        {"grammars": [NUMBERS]},
        {"grammars": [CALL]},
        {"thinking": THINKING},
        {"n_logprobs": 2, "stop": [" 5,"]},
        {"sampling": PENALTIES},
    ],
    ids=["grammar", "tool call", "thinking", "logprobs", "penalties"],
)  # fmt: skip
def test_reply_goes_on_within_grammars_and_reasoning(engine: EngineClient, options: dict[str, Any]) -> None:
    tokens = engine.tokenize("<|im_start|>user\nCount from 1 to 20.<|im_end|>\n<|im_start|>assistant\n")
    fields: dict[str, Any] = {"tokens": tokens, "max_tokens": 30, "sampling": GREEDY} | options
    request = protocol.Generate(id=0, **fields)
    text, generated, pieces, final = generate(engine, request)
    assert len(generated) > 9
    for count in (1, 5, 8, 9, len(generated) - 1):
        record = RequestRecord(request)
        record.add(protocol.TokensGenerated(id=0, text="", tokens=generated[:count]))
        whole_text, rest_tokens, rest_pieces, rest_final = generate(engine, record.make_request())
        assert rest_tokens == generated[count:]
        assert whole_text == text  # no text was sent before
        assert rest_pieces == pieces[count:]
        assert rest_final.finish_reason == final.finish_reason
        assert rest_final.stats.completion_tokens == final.stats.completion_tokens


@pytest.mark.parametrize("begun", ["", "\nTime is"])
@pytest.mark.parametrize("by_time", [True, False])
def test_reasoning_that_was_to_end_does_not_start_anew(engine: EngineClient, begun: str, by_time: bool) -> None:
    """At its time limit, or at the user's command; the failed engine may have begun the text that ends it."""
    thinking = ThinkingLimit(
        start_tags=("<think>",), end_tags=("</think>",), text_before_end="\nTime is up.\n", is_open=True, max_s=3600.0
    )
    tokens = engine.tokenize("<|im_start|>user\nCount from 1 to 20.<|im_end|>\n<|im_start|>assistant\n")
    request = protocol.Generate(id=0, tokens=tokens, max_tokens=30, sampling=GREEDY, thinking=thinking)
    sent = "I should count"
    record = RequestRecord(request)
    generated = engine.tokenize(sent + begun, add_special=False)
    record.add(
        protocol.TokensGenerated(id=0, text="", tokens=generated, thinking_s=3600.0 if by_time else 0.0)
    )  # fmt: skip
    if not by_time:
        record.end_thinking()
    text, *_ = generate(engine, record.make_request())
    assert text.startswith(f"{sent}\nTime is up.\n</think>")
    assert text.count("Time is up") == 1


def test_reply_goes_on_within_a_character(engine: EngineClient) -> None:
    text = "Grüße 😀🧭 aus Zürich"
    forced = engine.tokenize(text, add_special=False)
    request = protocol.Generate(
        id=0, tokens=engine.tokenize("Hello"), sampling=GREEDY, forced_tokens=forced, max_tokens=len(forced)
    )
    for count in range(1, len(forced)):
        sent = b"".join(engine.detokenize(forced[:count])).decode(errors="ignore")
        record = RequestRecord(request)
        record.add(protocol.TokensGenerated(id=0, text=sent, tokens=forced[:count]))
        rest, *_ = generate(engine, record.make_request())
        assert rest == text[len(sent) :]
