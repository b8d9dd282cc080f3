"""Grammars and stop strings in a real engine, and the time limits of large grammars."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgechat.config import Sampling
from edgechat.engine import protocol
from edgechat.engine.client import EngineClient
from edgechat.errors import GrammarError
from edgechat.runtime.bindings import Bindings
from edgechat.runtime.grammar import MAX_GRAMMAR_CHARS, compile_grammar
from edgechat.runtime.model import Model
from tests.models import write_tiny_llama

PROMPT = "<|im_start|>user\nA list of numbers, please.<|im_end|>\n<|im_start|>assistant\n"
NUMBERS = 'start: %json {"type": "array", "items": {"type": "integer", "maximum": 99, "minimum": 0}, "maxItems": 4}'


def generate(engine: EngineClient, **options: Any) -> tuple[dict[int, str], protocol.RequestFinished]:
    fields: dict[str, Any] = {"text": PROMPT, "max_tokens": 40, "sampling": Sampling(temperature=1.0, seed=3)} | options
    texts: dict[int, str] = {}
    for event in engine.generate(protocol.Generate(id=engine.next_id(), **fields)):
        if isinstance(event, protocol.TokensGenerated):
            texts[event.sequence] = texts.get(event.sequence, "") + event.text
    assert isinstance(event, protocol.RequestFinished)
    return texts, event


def test_every_reply_matches_the_grammar(engine: EngineClient) -> None:
    texts, final = generate(engine, grammar=NUMBERS, n_sequences=2)
    assert final.finish_reason == "stop"
    for text in texts.values():
        numbers = json.loads(text)
        assert len(numbers) <= 4
        assert all(0 <= n <= 99 for n in numbers)
    assert generate(engine, grammar=NUMBERS)[0][0] == texts[0]


def test_logprobs_ignore_the_grammar(engine: EngineClient) -> None:
    request = protocol.Generate(
        id=engine.next_id(), text=PROMPT, max_tokens=5, sampling=Sampling(temperature=0), n_logprobs=3, grammar=NUMBERS
    )
    logprobs = [p for e in engine.generate(request) if isinstance(e, protocol.TokensGenerated) for p in e.logprobs]
    assert logprobs[0].token_bytes == b"["
    assert logprobs[0].top_logprobs[0][0] != b"["  # without the grammar, the model prefers another token
    assert logprobs[0].logprob < logprobs[0].top_logprobs[0][1]


def test_invalid_grammar_is_an_error(engine: EngineClient) -> None:
    for grammar in ("start: nothing", "%%%", 'start: %json {"not": {}}'):
        with pytest.raises(GrammarError, match="cannot be enforced"):
            generate(engine, grammar=grammar)
    with pytest.raises(GrammarError, match="the limit is"):
        generate(engine, grammar="start: " + '"a" ' * MAX_GRAMMAR_CHARS)
    assert generate(engine, max_tokens=2)[1].stats.completion_tokens == 2


def test_large_grammars_compile_in_bounded_time(engine: EngineClient) -> None:
    generate(engine, grammar=NUMBERS, max_tokens=1)  # builds the tokenizer of the grammars once
    names = {f"property_{i}": {"type": "string", "pattern": f"^[a-z]{{1,{i % 50 + 1}}}$"} for i in range(4000)}
    grammar = "start: %json " + json.dumps({"type": "object", "properties": names})
    assert MAX_GRAMMAR_CHARS // 2 < len(grammar) < MAX_GRAMMAR_CHARS
    started_at = time.monotonic()
    with pytest.raises(GrammarError) as caught:  # the limit is 2,000 alternatives
        generate(engine, grammar=grammar, max_tokens=4)
    assert len(str(caught.value)) < 500
    generate(
        engine, grammar="start: %json " + json.dumps({"enum": [f"value {i}" for i in range(15_000)]}), max_tokens=4
    )
    assert time.monotonic() - started_at < 10  # generous, for a busy machine


def test_reply_ends_before_a_stop_string(engine: EngineClient) -> None:
    whole = generate(engine, sampling=Sampling(temperature=0))[0][0]
    for stop in (whole[10:14], whole[5:6], whole[-3:]):
        text, final = generate(engine, sampling=Sampling(temperature=0), stop=["absent", stop])
        assert text.get(0, "") == whole[: whole.index(stop)]
        assert final.finish_reason == "stop"


def test_grammar_works_with_a_vocabulary_that_adds_a_space(native: Bindings, tmp_path: Path) -> None:
    model = Model(native, write_tiny_llama(tmp_path / "tiny.gguf"))
    first_token = model.tokenize("{", add_special=False, parse_special=False)[0]
    assert model.token_to_piece(first_token) == b" "  # as in Llama 2, Phi-3 and Mistral 7B
    schema = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]}
    rng = np.random.default_rng(0)
    for _ in range(20):
        grammar, reply = compile_grammar(model, "start: %json " + json.dumps(schema)), b""
        while not grammar.is_complete:
            logits = rng.random(model.n_vocab, dtype=np.float32)
            with grammar.mask_disallowed(logits):
                token = int(logits.argmax())
            if model.is_eog(token):
                break
            reply += model.token_to_piece(token)
            grammar.accept(token)
        assert json.loads(reply)["city"] in ("Rome", "Oslo")
