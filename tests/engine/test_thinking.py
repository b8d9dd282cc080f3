"""Reasoning that a limit or a request ends: on a fake context, for each format, sampler, draft and grammar."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs

from edgechat.config import GREEDY, Sampling
from edgechat.engine import protocol, sequence
from edgechat.engine.client import EngineClient
from edgechat.engine.generation import ThinkingLimit
from edgechat.engine.request import ActiveRequest
from edgechat.engine.scheduler import Scheduler
from edgechat.prefix.cache import PrefixCache
from edgechat.prompt.output_rules import add_reasoning_rules
from edgechat.prompt.reasoning import REASONING_FORMATS, ReasoningFormat
from edgechat.runtime.bindings import Bindings
from edgechat.runtime.context import Context
from edgechat.runtime.grammar import compile_grammar
from edgechat.runtime.model import Model
from edgechat.speculation.acceptance import Acceptance
from edgechat.speculation.controller import DraftController
from edgechat.speculation.drafter import LiveDrafter
from edgechat.speculation.speculator import Speculator
from edgechat.speculation.step_costs import STEP_SIZES, RunningMean, StepCosts
from tests.fake_context import END, FakeContext, FakeModel, FakeSampler
from tests.models import KINDS, Kind, open_context, write_tiny
from tests.resident_engines import PROMPT
from tests.suffix_reference import PlainIndex

WORDS = ("a", "b", "c ", "d", "\n", "\n\n", "assistant", "final", "analysis", "thought")
FORMATS = [f for f in REASONING_FORMATS if f.start_tag != "<thinking>"]
MESSAGE = "\n\na b"


class ThinkingModel(FakeModel):
    """Fake model whose vocabulary has the tags of all formats, some words and all bytes.

    It never writes the tags that end reasoning, and ends a reply only after `n_reply` tokens without reasoning.
    """

    def __init__(self, bindings: Bindings, reasoning_format: ReasoningFormat) -> None:
        tags = [
            "<|channel|>", "<|message|>", "<|end|>", "<|start|>", "<|channel>", "<channel|>",
            *(tag for f in REASONING_FORMATS[2:] for tag in (f.start_tag, f.end_tag)),
        ]  # fmt: skip
        self.pieces = [b"", *(text.encode() for text in (*tags, *WORDS)), *(bytes([byte]) for byte in range(256))]
        super().__init__(bindings, len(self.pieces), flatness=1.0, end_logit=-100.0)
        self._by_length = sorted(self.pieces[1:], key=len, reverse=True)
        self._likely = [self.pieces.index(text.encode()) for text in WORDS[:6]]
        self._likely += [self.pieces.index(b"\xc3"), self.pieces.index(b"\xa9")]
        self.start_tokens = self.tokenize_continuation(reasoning_format.start_tag)

    def token_to_piece(self, token: int, *, special: bool = False) -> bytes:
        return self.pieces[token]

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return self.tokenize_continuation(text)

    def tokenize_continuation(self, text: str) -> list[int]:
        data, tokens = text.encode(), []
        while data:
            piece = next(p for p in self._by_length if data.startswith(p))
            tokens.append(self.pieces.index(piece))
            data = data[len(piece) :]
        return tokens

    def logits(self, tokens: Sequence[int]) -> list[float]:
        """Prefer a few words and a letter of two bytes, and sometimes start a thought."""
        key = tuple(tokens[-max(3, len(self.start_tokens)) :]), len(tokens) // 40
        if key not in self._logits:
            self._logits[key] = self._compute_logits(tokens)
        return self._logits[key]

    def _compute_logits(self, tokens: Sequence[int]) -> list[float]:
        rng = random.Random(f"{tokens[-3:]} {len(tokens) // 40}")
        row = [-30.0] * self.n_vocab
        for token in self._likely:
            row[token] = rng.gauss(0, 2)
        first_byte, second_byte = self._likely[-2:]
        row[second_byte] = 100.0 if tokens[-1] == first_byte else -30.0
        n_started = next(
            (n for n in range(len(self.start_tokens) - 1, 0, -1) if list(tokens[-n:]) == self.start_tokens[:n]), 0
        )
        row[self.start_tokens[n_started]] = 100.0 if n_started else rng.gauss(-1, 2)
        return row


class Engine:
    """A scheduler on a fake context, which may be too small for its requests, so that it preempts them."""

    def __init__(self, model: ThinkingModel, *, n_ctx: int = 400, with_drafts: bool = False) -> None:
        self.context = FakeContext(model, n_ctx, n_cells=n_ctx)
        self.cache = PrefixCache(self.context)  # type: ignore[arg-type]
        self.scheduler = Scheduler(self.context, self.cache, self._on_finished)  # type: ignore[arg-type]
        self.drafter = LiveDrafter(PlainIndex(10_000)) if with_drafts else None
        self.events: list[protocol.Event] = []
        self.texts: dict[int, str] = {}
        self.final: protocol.RequestFinished | None = None
        self.outputs: list[list[int]] = []

    def _on_finished(self, request: ActiveRequest, event: protocol.Event) -> None:
        assert isinstance(event, protocol.RequestFinished), event
        self.final, self.outputs = event, request.output_tokens

    def _on_event(self, event: protocol.Event) -> None:
        self.events.append(event)
        if isinstance(event, protocol.TokensGenerated):
            self.texts[event.sequence] = self.texts.get(event.sequence, "") + event.text

    def start(self, request: protocol.Generate) -> ActiveRequest:
        speculator = None
        if self.drafter is not None:
            costs = StepCosts()
            costs.ratios = [{n: RunningMean(1.0, 1000) for n in STEP_SIZES} for _ in costs.ratios]
            speculator = Speculator([self.drafter], DraftController(Acceptance(), costs))
        active = ActiveRequest(
            cast("Context", self.context),
            self.cache,
            request,
            request.tokens or [],
            self._on_event,
            0.0,
            (lambda: speculator) if speculator is not None else None,
        )
        for grammar in request.grammars:
            active.grammar = compile_grammar(cast("Model", self.context.model), str(grammar))
        self.scheduler.add(active)
        return active

    def run(self, request: protocol.Generate) -> Engine:
        self.start(request)
        while not self.scheduler.is_idle:
            self.scheduler.step()
        return self


def make_limit(reasoning_format: ReasoningFormat, **options: Any) -> ThinkingLimit:
    return ThinkingLimit(
        start_tags=(reasoning_format.start_tag,),
        end_tags=(reasoning_format.end_tag, "<|end|>"),
        text_after_end=reasoning_format.content_prefix + reasoning_format.separator,
        **({"text_before_end": reasoning_format.padding} | options),
    )


@pytest.fixture
def bindings(native: Bindings, monkeypatch: pytest.MonkeyPatch) -> Bindings:
    monkeypatch.setattr(sequence, "Sampler", FakeSampler)
    return native


def count_until_reply(model: ThinkingModel, tokens: list[int], end_tag: str) -> int:
    """Return the number of tokens up to the first end tag."""
    text = b""
    for n_tokens, token in enumerate(tokens, 1):
        text += model.pieces[token]
        if end_tag.encode() in text:
            return n_tokens
    raise AssertionError(f"no {end_tag} in {text!r}")


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    reasoning_format=st.sampled_from(FORMATS),
    budget=st.integers(0, 60),
    n_sequences=st.sampled_from([1, 1, 1, 3]),
    temperature=st.sampled_from([0.0, 0.8, 1.5]),
    seed=st.integers(0, 1 << 20),
    with_drafts=st.booleans(),
    with_grammar=st.booleans(),
    n_ctx=st.sampled_from([100, 400]),
)
def test_reply_of_a_model_that_thinks_for_ever_begins_within_the_budget_and_eight_tokens(
    bindings: Bindings, *, reasoning_format: ReasoningFormat, budget: int, n_sequences: int, temperature: float,
    seed: int, with_drafts: bool, with_grammar: bool, n_ctx: int,
) -> None:  # fmt: skip
    model = ThinkingModel(bindings, reasoning_format)
    grammar = add_reasoning_rules('"b" /[abd]{2,5}/', reasoning_format, "reasoning", think=True)
    request = protocol.Generate(
        id=1, tokens=[30, 31, 32], max_tokens=90 if n_ctx == 400 else 80 // n_sequences, n_sequences=n_sequences,
        sampling=Sampling(temperature=temperature, seed=seed), grammars=[grammar] if with_grammar else [],
        thinking=make_limit(reasoning_format, is_open=True, max_tokens=budget),
    )  # fmt: skip
    engine = Engine(model, n_ctx=n_ctx, with_drafts=with_drafts).run(request)
    assert engine.final is not None
    max_tokens = request.max_tokens or 0
    for i, tokens in enumerate(engine.outputs):
        text = engine.texts[i]
        if len(tokens) == max_tokens and max_tokens <= budget + 8:
            continue
        n_reply = count_until_reply(model, tokens, reasoning_format.end_tag + reasoning_format.content_prefix)
        assert n_reply <= budget + 8
        assert "\N{REPLACEMENT CHARACTER}" not in text.removesuffix("\N{REPLACEMENT CHARACTER}")
        if with_grammar and engine.final.finish_reason == "stop":
            content = text.partition(reasoning_format.end_tag)[2].removeprefix(reasoning_format.content_prefix)
            assert content.strip().startswith("b")
    plain = Engine(model, n_ctx=n_ctx).run(request)
    assert plain.outputs == engine.outputs
    assert plain.final is not None
    assert plain.final.finish_reason == engine.final.finish_reason
    assert plain.final.stats.reasoning_tokens == engine.final.stats.reasoning_tokens


def test_tokens_that_end_reasoning_are_decoded_in_one_step(bindings: Bindings) -> None:
    model = ThinkingModel(bindings, FORMATS[0])
    limit = make_limit(FORMATS[0], is_open=True, max_tokens=5)
    engine = Engine(model)
    engine.run(protocol.Generate(id=1, tokens=[30], max_tokens=30, thinking=limit, ignore_eog=True))
    n_closing = len(model.tokenize_continuation("<|end|><|start|>assistant<|channel|>final<|message|>"))
    assert engine.context.widths.count(1 + n_closing) >= 1
    assert FORMATS[0].end_tag + FORMATS[0].content_prefix in engine.texts[0]


def test_sentence_is_written_before_the_end(bindings: Bindings) -> None:
    reasoning_format = FORMATS[-1]
    limit = make_limit(reasoning_format, is_open=True, max_tokens=5, text_before_end=f"{MESSAGE}\n")
    engine = Engine(ThinkingModel(bindings, reasoning_format))
    engine.run(protocol.Generate(id=1, tokens=[30], max_tokens=30, thinking=limit))
    assert "a b\n</think>\n\n" in engine.texts[0]


def test_logprobs_cover_the_tokens_that_end_reasoning(bindings: Bindings) -> None:
    reasoning_format = FORMATS[-1]
    limit = make_limit(reasoning_format, is_open=True, max_tokens=5)
    engine = Engine(ThinkingModel(bindings, reasoning_format))
    engine.run(protocol.Generate(id=1, tokens=[30], max_tokens=30, thinking=limit, n_logprobs=0))
    logprobs = [logprob for event in engine.events for logprob in getattr(event, "logprobs", [])]
    assert len(logprobs) == 30
    assert b"</think>" in [token.token_bytes for token in logprobs]


def test_stop_string_in_the_closing_text_ends_the_reply(bindings: Bindings) -> None:
    reasoning_format = FORMATS[-1]
    limit = make_limit(reasoning_format, is_open=True, max_tokens=5)
    engine = Engine(ThinkingModel(bindings, reasoning_format), with_drafts=True)
    engine.run(protocol.Generate(id=1, tokens=[30], max_tokens=40, thinking=limit, stop=["</think>"]))
    assert engine.final is not None
    assert engine.final.finish_reason == "stop"
    assert "</think>" not in engine.texts[0]
    assert not engine.cache._leased_seqs


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    reasoning_format=st.sampled_from(FORMATS),
    is_open=st.booleans(),
    end_at=st.lists(st.integers(0, 50), max_size=3),
    cancel_at=st.one_of(st.none(), st.integers(0, 50)),
    n_sequences=st.sampled_from([1, 1, 2]),
    with_drafts=st.booleans(),
    n_ctx=st.sampled_from([90, 400]),
    seed=st.integers(0, 1 << 20),
)
def test_ending_reasoning_and_cancelling_at_any_moment_lose_no_text(
    bindings: Bindings, *, reasoning_format: ReasoningFormat, is_open: bool, end_at: list[int], cancel_at: int | None,
    n_sequences: int, with_drafts: bool, n_ctx: int, seed: int,
) -> None:  # fmt: skip
    model = ThinkingModel(bindings, reasoning_format)
    request = protocol.Generate(
        id=1, tokens=[30, 31], max_tokens=60 // n_sequences, n_sequences=n_sequences, sampling=Sampling(seed=seed),
        thinking=make_limit(reasoning_format, is_open=is_open),
    )  # fmt: skip
    engine = Engine(model, n_ctx=n_ctx, with_drafts=with_drafts)
    active = engine.start(request)
    for step in range(1000):
        if engine.scheduler.is_idle:
            break
        n_tokens = [s.n_tokens for s in active.sequences]
        if step in end_at:
            assert engine.scheduler.end_thinking(1)
        if step == cancel_at:
            engine.scheduler.cancel({1})
        else:
            engine.scheduler.step()
        assert all(s.n_tokens >= n for s, n in zip(active.sequences, n_tokens, strict=False))
    assert not engine.scheduler.end_thinking(1)
    assert engine.final is not None
    for i, tokens in enumerate(engine.outputs):
        text = b"".join(model.pieces[token] for token in tokens).decode("utf-8", "replace")
        assert engine.texts.get(i, "") == text
        if end_at and cancel_at is None and len(tokens) < (request.max_tokens or 0):
            assert text.count(reasoning_format.end_tag) >= int(is_open)
    assert END not in [token for tokens in engine.outputs for token in tokens]
    assert not engine.cache._leased_seqs


@pytest.mark.parametrize("kind", KINDS)
def test_models_of_all_kinds_decode_the_end_of_the_reasoning(kind: Kind, native: Bindings, tmp_path: Path) -> None:
    """Models with recurrent states can roll back only a few tokens, or none, and need several steps for the end."""
    model = Model(native, write_tiny(tmp_path / "tiny.gguf", kind))
    context = open_context(model, n_ctx=512, n_threads=1, n_batch=64, n_ubatch=64, n_seqs=2, n_rs_seq=3)
    cache, outputs, texts = PrefixCache(context), [], []
    scheduler = Scheduler(context, cache, lambda request, _event: outputs.extend(request.output_tokens))
    limit = structs.replace(OPEN_THOUGHT, max_tokens=20)
    request = protocol.Generate(id=1, tokens=[40, 41, 42], max_tokens=60, ignore_eog=True, thinking=limit)
    scheduler.add(ActiveRequest(
        context, cache, request, [40, 41, 42], lambda event: texts.append(getattr(event, "text", "")), 0.0
    ))  # fmt: skip
    while not scheduler.is_idle:
        scheduler.step()
    assert len(outputs[0]) == 60
    closing = model.tokenize_continuation("\n</think>\n\n")
    assert any(outputs[0][i : i + len(closing)] in (closing, closing[1:]) for i in range(20, 24))
    assert "</think>\n\n" in "".join(texts)
    assert list(context.tokens(0)) == [40, 41, 42, *outputs[0][:-1]]
    context.close()


OPEN_THOUGHT = ThinkingLimit(
    start_tags=("<think>",), end_tags=("</think>",), text_before_end="\n", text_after_end="\n\n", is_open=True
)


def generate_open_thought(
    client: EngineClient, request_id: int, limit: ThinkingLimit, *, speculate: bool = True
) -> Iterator[protocol.AnyEvent]:
    return client.generate(protocol.Generate(
        id=request_id, tokens=client.tokenize(PROMPT), max_tokens=40, sampling=GREEDY, ignore_eog=True, thinking=limit,
        speculate=speculate,
    ))  # fmt: skip


def collect_text(events: Iterable[protocol.AnyEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, protocol.TokensGenerated))


def test_engine_ends_thinking_at_the_budget(engine: EngineClient) -> None:
    events = list(generate_open_thought(engine, engine.next_id(), structs.replace(OPEN_THOUGHT, max_tokens=20)))
    thought, _, reply = collect_text(events).partition("\n</think>\n\n")
    assert thought
    assert reply
    assert isinstance(events[-1], protocol.RequestFinished)
    assert events[-1].stats.completion_tokens == 40
    n_end_tag = len(engine.tokenize("\n</think>"))
    assert 20 < (events[-1].stats.reasoning_tokens or 0) <= 20 + n_end_tag + 1


@pytest.mark.parametrize("speculate", [True, False])
def test_end_of_thinking_can_be_requested_at_any_moment(engine: EngineClient, *, speculate: bool) -> None:
    full_text = collect_text(generate_open_thought(engine, engine.next_id(), OPEN_THOUGHT))
    assert "</think>" not in full_text
    early_id = engine.next_id()
    engine.end_thinking(early_id)  # arrives before the request
    assert collect_text(generate_open_thought(engine, early_id, OPEN_THOUGHT)).startswith("\n</think>\n\n")
    engine.end_thinking(early_id)  # has ended
    engine.end_thinking(1 << 40)  # never exists
    running_id, texts = engine.next_id(), []
    for event in generate_open_thought(engine, running_id, OPEN_THOUGHT, speculate=speculate):
        texts.append(collect_text([event]))
        if len(list(filter(None, texts))) == 1:
            engine.end_thinking(running_id)
    text = "".join(texts)
    thought, _, reply = text.partition("\n</think>\n\n")
    assert reply or thought == full_text  # the whole reply can be generated before the request arrives
    assert full_text.startswith(thought)
