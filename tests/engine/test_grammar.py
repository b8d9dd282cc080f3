"""Answers that a grammar bounds, in a real engine; and what grammars may cost."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from edgechat.config import Sampling
from edgechat.engine import protocol
from edgechat.engine.client import EngineClient
from edgechat.errors import GrammarError
from edgechat.runtime.grammar import MAX_CHARS

PROMPT = "<|im_start|>user\nA list of numbers, please.<|im_end|>\n<|im_start|>assistant\n"
NUMBERS = 'start: %json {"type": "array", "items": {"type": "integer", "maximum": 99, "minimum": 0}, "maxItems": 4}'


def ask(engine: EngineClient, **options: Any) -> tuple[dict[int, str], protocol.RequestFinished]:
    given: dict[str, Any] = {"text": PROMPT, "max_tokens": 40, "sampling": Sampling(temperature=1.0, seed=3)} | options
    texts: dict[int, str] = {}
    for event in engine.generate(protocol.Generate(id=engine.next_id(), **given)):
        if isinstance(event, protocol.TokensGenerated):
            texts[event.sequence] = texts.get(event.sequence, "") + event.text
    assert isinstance(event, protocol.RequestFinished)
    return texts, event


def test_every_answer_is_in_the_grammar(engine: EngineClient) -> None:
    texts, ended = ask(engine, grammar=NUMBERS, n_sequences=2)
    assert ended.finish_reason == "stop"
    for text in texts.values():
        numbers = json.loads(text)
        assert len(numbers) <= 4
        assert all(0 <= n <= 99 for n in numbers)
    assert ask(engine, grammar=NUMBERS)[0][0] == texts[0]


def test_likelihoods_are_the_models_own_whatever_a_grammar_allows(engine: EngineClient) -> None:
    request = protocol.Generate(
        id=engine.next_id(), text=PROMPT, max_tokens=5, sampling=Sampling(temperature=0), n_logprobs=3, grammar=NUMBERS
    )
    found = [p for e in engine.generate(request) if isinstance(e, protocol.TokensGenerated) for p in e.logprobs]
    assert found[0].text == b"["
    assert found[0].top[0][0] != b"["  # that is not what it would have said
    assert found[0].logprob < found[0].top[0][1]


def test_a_grammar_that_is_none_is_told_apart(engine: EngineClient) -> None:
    for grammar in ("start: nothing", "%%%", 'start: %json {"not": {}}'):
        with pytest.raises(GrammarError, match="cannot be enforced"):
            ask(engine, grammar=grammar)
    with pytest.raises(GrammarError, match="over the limit"):
        ask(engine, grammar="start: " + '"a" ' * MAX_CHARS)
    assert ask(engine, max_tokens=2)[1].stats.completion_tokens == 2


def test_the_largest_grammars_take_no_long(engine: EngineClient) -> None:
    ask(engine, grammar=NUMBERS, max_tokens=1)  # the vocabulary is made ready once
    names = {f"property_{i}": {"type": "string", "pattern": f"^[a-z]{{1,{i % 50 + 1}}}$"} for i in range(4000)}
    grammar = "start: %json " + json.dumps({"type": "object", "properties": names})
    assert MAX_CHARS // 2 < len(grammar) < MAX_CHARS
    started = time.monotonic()
    with pytest.raises(GrammarError) as caught:  # there may be 2,000 ways to go on
        ask(engine, grammar=grammar, max_tokens=4)
    assert len(str(caught.value)) < 500
    ask(engine, grammar="start: %json " + json.dumps({"enum": [f"value {i}" for i in range(15_000)]}), max_tokens=4)
    assert time.monotonic() - started < 10  # a bound for a busy machine


def test_stop_texts_end_an_answer_where_they_begin(engine: EngineClient) -> None:
    whole = ask(engine, sampling=Sampling(temperature=0))[0][0]
    for stop in (whole[10:14], whole[5:6], whole[-3:]):
        text, ended = ask(engine, sampling=Sampling(temperature=0), stop=["never said", stop])
        assert text.get(0, "") == whole[: whole.index(stop)]
        assert ended.finish_reason == "stop"
