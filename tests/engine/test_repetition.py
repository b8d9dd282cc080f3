"""Replies that repeat themselves end at the same token with and without drafts, and in parallel."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgechat.config import GREEDY
from edgechat.engine import protocol
from edgechat.engine.generation import ThinkingLimit
from edgechat.engine.repetition import MIN_REPEATS, MIN_UNIFORM_TOKENS
from edgechat.engine.request import ActiveRequest
from edgechat.runtime.bindings import Bindings
from edgechat.speculation.step_costs import STEP_SIZES, RunningMean
from tests.engine.text_models import SteppedModel
from tests.models import write_tiny

PROMPT = [1, *range(20, 60)]
START = [100 + i % 53 * 3 for i in range(37)]
PERIODS = {1: MIN_UNIFORM_TOKENS, 7: MIN_UNIFORM_TOKENS, 60: 60 * MIN_REPEATS, 350: 350 * MIN_REPEATS}
"""Periods and the expected lengths of the loops when they end."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("models") / "tiny.gguf", "llama")


@pytest.fixture
def open_model(native: Bindings, tiny: Path) -> Callable[..., SteppedModel]:
    return lambda **options: SteppedModel(native, tiny, n_ctx=2048, **options)


def make_loop(period: int, seed: int = 0) -> list[int]:
    passage = random.Random(seed).choices(range(20, 360), k=period)
    return START + (passage * 1500)[:1500]


def ask(model: SteppedModel, forced: list[int], **options: Any) -> tuple[list[int], protocol.FinishReason]:
    fields = {"forced_tokens": forced, "max_tokens": len(forced), "stop_repetition": True} | options
    tokens, final = model.ask(PROMPT, **fields)
    return tokens, final.finish_reason


@pytest.mark.parametrize("period", PERIODS)
@pytest.mark.parametrize("speculate", [False, True])
def test_loop_ends_at_the_same_token_with_and_without_drafts(
    open_model: Callable[..., SteppedModel], period: int, *, speculate: bool
) -> None:
    model = open_model(draft_tokens=5000)
    drafts = model.model._draft_manager
    assert drafts is not None
    drafts._profile.costs.ratios = [
        {n: RunningMean(1.0, 1000) for n in STEP_SIZES} for _ in drafts._profile.costs.ratios
    ]
    forced = make_loop(period)
    tokens, final = model.ask(
        PROMPT, forced_tokens=forced, max_tokens=len(forced), stop_repetition=True, speculate=speculate
    )
    assert final.finish_reason == "repetition"
    assert tokens == forced[: len(START) + PERIODS[period]]
    assert (final.stats.n_accepted > 50) == speculate
    if speculate:
        assert ask(model, forced, stop_repetition=False) == (forced, "length")


def test_forced_loops_end_in_time(open_model: Callable[..., SteppedModel]) -> None:
    model = open_model(draft_tokens=5000)
    generator = random.Random(1)
    for number in range(8):
        period = generator.choice([7, 60])
        start = [generator.randrange(20, 360) for _ in range(generator.randrange(40))]
        passage = generator.choices(range(20, 360), k=period)
        tokens, reason = ask(model, (start + passage * 200)[:1000], speculate=number % 2 == 0)
        assert reason == "repetition"
        assert len(tokens) <= len(start) + PERIODS[period]


def test_each_parallel_reply_ends_for_itself(open_model: Callable[..., SteppedModel]) -> None:
    model = open_model()
    loop, other = make_loop(60), [20 + i * i % 337 for i in range(300)]
    ids = [
        model.start(PROMPT, forced_tokens=forced, max_tokens=300, stop_repetition=True)
        for forced in (loop, other, loop)
    ]
    both = model.start(PROMPT, forced_tokens=loop, max_tokens=300, n_sequences=2, stop_repetition=True)
    model.finish()
    assert [model.final(i).finish_reason for i in ids] == ["repetition", "length", "repetition"]
    assert model.tokens(ids[0]) == model.tokens(ids[2]) == loop[: len(START) + PERIODS[60]]
    reasons = [e.finish_reason for e in model.events if isinstance(e, protocol.SequenceFinished) and e.id == both]
    assert reasons == ["repetition", "repetition"]


def wrap_preempt(preempt: Callable[[ActiveRequest], None], ids: list[int]) -> Callable[[ActiveRequest], None]:
    def record_preemption(request: ActiveRequest) -> None:
        if request.decoding_sequences:
            ids.append(request.params.id)
        preempt(request)

    return record_preemption


def test_preempted_reply_ends_at_the_same_token(native: Bindings, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = SteppedModel(native, tiny, n_ctx=512, prefix_ram_bytes=0)
    forced = make_loop(60)
    first = model.start(PROMPT, forced_tokens=[20 + i * i % 337 for i in range(300)], max_tokens=300)
    second = model.start([*PROMPT, 60], forced_tokens=forced, max_tokens=600, stop_repetition=True)
    preempted: list[int] = []
    monkeypatch.setattr(ActiveRequest, "preempt", wrap_preempt(ActiveRequest.preempt, preempted))
    model.finish()
    assert second in preempted
    assert model.final(first).finish_reason == "length"
    assert model.final(second).finish_reason == "repetition"
    assert model.tokens(second) == forced[: len(START) + PERIODS[60]]


def test_other_reasons_at_the_same_token_win(open_model: Callable[..., SteppedModel]) -> None:
    model = open_model()
    forced = make_loop(60)
    n_tokens = len(START) + PERIODS[60]
    assert ask(model, forced, max_tokens=n_tokens) == (forced[:n_tokens], "length")
    assert ask(model, forced, max_tokens=n_tokens + 1) == (forced[:n_tokens], "repetition")


def test_stop_string_ends_a_loop_before_it_is_noticed(open_model: Callable[..., SteppedModel]) -> None:
    model = open_model()
    forced = make_loop(60)
    request = model.start(PROMPT, forced_tokens=forced, max_tokens=400, stop_repetition=True, sampling=GREEDY)
    model.finish()
    text = "".join(e.text for e in model.events if isinstance(e, protocol.TokensGenerated) and e.id == request)
    tokens, reason = ask(model, forced, stop=[text[120:130]])
    assert reason == "stop"
    assert len(tokens) < len(START) + PERIODS[60]


def test_array_of_equal_values_that_a_grammar_requires_is_complete(open_model: Callable[..., SteppedModel]) -> None:
    model = open_model()
    grammar = 'start: "[" "0, "{300} "0]"\n'
    request = model.start(PROMPT, grammars=[grammar], max_tokens=2000, stop_repetition=True, ignore_eog=False)
    model.finish()
    text = "".join(e.text for e in model.events if isinstance(e, protocol.TokensGenerated) and e.id == request)
    assert model.final(request).finish_reason == "stop"
    assert text == "[" + "0, " * 300 + "0]"


THINKING = ThinkingLimit(start_tags=("<think>",), end_tags=("</think>",), text_after_end="\n", is_open=True)
FIRST_LETTER = 3 + 256 + ord("a") - ord("!")


def make_text_loop(n_tokens: int) -> list[int]:
    passage = [FIRST_LETTER + i * 7 % 26 for i in range(26)] + [FIRST_LETTER + i * i % 26 for i in range(34)]
    return (passage * n_tokens)[:n_tokens]


@pytest.mark.parametrize("speculate", [False, True])
def test_loop_in_reasoning_ends_only_the_reasoning(open_model: Callable[..., SteppedModel], *, speculate: bool) -> None:
    model = open_model(draft_tokens=5000)
    forced = make_text_loop(900)
    request = model.start(
        PROMPT, forced_tokens=forced, max_tokens=900, thinking=THINKING, stop_repetition=True, speculate=speculate
    )
    model.finish()
    text = "".join(e.text for e in model.events if isinstance(e, protocol.TokensGenerated) and e.id == request)
    thought, reply = text.split("</think>\n")
    assert (len(thought), len(reply)) == (60 * MIN_REPEATS, 60 * MIN_REPEATS)
    assert model.final(request).finish_reason == "repetition"


def test_loop_in_reasoning_that_a_grammar_surrounds_ends_the_reasoning(
    open_model: Callable[..., SteppedModel],
) -> None:
    model = open_model()
    grammar = 'start: thoughts "\\n" "done"\nthoughts[lazy]: /(.|\\n)*/ "</think>"\n'
    request = model.start(
        PROMPT, grammars=[grammar], max_tokens=900, thinking=THINKING, stop_repetition=True, ignore_eog=False,
        logit_bias={FIRST_LETTER: 100.0},
    )  # fmt: skip
    model.finish()
    text = "".join(e.text for e in model.events if isinstance(e, protocol.TokensGenerated) and e.id == request)
    assert text == "a" * MIN_UNIFORM_TOKENS + "</think>\ndone"
    assert model.final(request).finish_reason == "stop"
