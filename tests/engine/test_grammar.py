"""Grammars and stop strings in a real engine, and the time limits of large grammars."""

from __future__ import annotations

import contextlib
import functools
import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import jsonschema
import numpy as np
import pytest

from edgechat.config import GREEDY, Sampling
from edgechat.engine import protocol
from edgechat.engine.client import EngineClient
from edgechat.errors import EdgechatError, GrammarError
from edgechat.runtime.bindings import Bindings
from edgechat.runtime.grammar import MAX_GRAMMAR_CHARS, Grammar, compile_grammar
from edgechat.runtime.model import Model
from edgechat.runtime.tool_grammar import ToolGrammar, Trigger
from edgechat.runtime.triggered_grammar import TriggeredGrammar, convert_tool_grammar, start_tool_grammar
from tests.fuzzing import scale
from tests.models import write_tiny_llama
from tests.resident_engines import PROMPT as CERTAIN_PROMPT
from tests.unit.engine.test_grammar_compiler import ENDLESS, REFERENCES
from tests.vocabularies import open_vocabulary, vocabulary_parameters
from tests.waiting import until

if TYPE_CHECKING:
    from _pytest.mark.structures import ParameterSet

PROMPT = "<|im_start|>user\nA list of numbers, please.<|im_end|>\n<|im_start|>assistant\n"
N_WALKS = 180
"""Number of random walks through grammars for each vocabulary; see tests/fuzzing.py."""
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
    texts, final = generate(engine, grammars=[NUMBERS], n_sequences=2)
    assert final.finish_reason == "stop"
    for text in texts.values():
        numbers = json.loads(text)
        assert len(numbers) <= 4
        assert all(0 <= n <= 99 for n in numbers)


def test_logprobs_ignore_the_grammar(engine: EngineClient) -> None:
    request = protocol.Generate(
        id=engine.next_id(),
        text=PROMPT,
        max_tokens=5,
        sampling=Sampling(temperature=0),
        n_logprobs=3,
        grammars=[NUMBERS],
    )
    logprobs = [p for e in engine.generate(request) if isinstance(e, protocol.TokensGenerated) for p in e.logprobs]
    assert logprobs[0].token_bytes == b"["
    assert logprobs[0].top_logprobs[0][0] != b"["  # without the grammar, the model prefers another token
    assert logprobs[0].logprob < logprobs[0].top_logprobs[0][1]


def test_invalid_grammar_is_an_error(engine: EngineClient) -> None:
    for grammar in ("start: nothing", "%%%", 'start: %json {"not": {}}'):
        with pytest.raises(GrammarError, match="cannot be enforced"):
            generate(engine, grammars=[grammar])
    with pytest.raises(GrammarError, match="the limit is"):
        generate(engine, grammars=["start: " + '"a" ' * MAX_GRAMMAR_CHARS])
    assert generate(engine, max_tokens=2)[1].stats.completion_tokens == 2


def test_character_that_the_vocabulary_cannot_write_is_named(engine: EngineClient) -> None:
    for character in ("\U00040000", "\U00080000x"):  # their UTF-8 begins with a byte for which the starter has no token
        with pytest.raises(GrammarError, match="does not have"):
            generate(engine, grammars=[f"start: %json {json.dumps({'const': character})}"])
    choice = json.dumps({"enum": ["\U00040000", "a"]})
    assert generate(engine, grammars=[f"start: %json {choice}"])[0] == {0: '"a"'}


def test_large_grammar_is_compiled_or_refused(engine: EngineClient) -> None:
    names = {f"property_{i}": {"type": "string", "pattern": f"^[a-z]{{1,{i % 50 + 1}}}$"} for i in range(4000)}
    grammar = "start: %json " + json.dumps({"type": "object", "properties": names})
    assert MAX_GRAMMAR_CHARS // 2 < len(grammar) < MAX_GRAMMAR_CHARS
    with pytest.raises(GrammarError) as caught:  # the limit is 2,000 alternatives
        generate(engine, grammars=[grammar], max_tokens=4)
    assert len(str(caught.value)) < 500
    generate(
        engine, grammars=["start: %json " + json.dumps({"enum": [f"value {i}" for i in range(15_000)]})], max_tokens=4
    )


@pytest.mark.parametrize("value", [ENDLESS, REFERENCES])
def test_endless_or_crashing_schema_ends_only_its_request(engine: EngineClient, value: object) -> None:
    pid = engine.pid
    reply: list[protocol.RequestFinished] = []
    thread = threading.Thread(target=lambda: reply.append(generate(engine, ignore_eog=True)[1]))
    thread.start()
    with pytest.raises(GrammarError, match="too complex"):
        generate(engine, grammars=[f"start: %json {json.dumps(value)}"])
    thread.join()
    assert reply[0].stats.completion_tokens == 40
    assert engine.pid == pid


def test_prompt_is_processed_while_its_grammar_is_compiled(engine: EngineClient) -> None:
    tokens = engine.tokenize("".join(f"{i}: the fox and the owl\n" for i in range(60)))
    unknown_grammar = f"start: %json {json.dumps(ENDLESS | {'title': 'not checked before'})}"
    request = protocol.Generate(
        id=engine.next_id(), tokens=tokens, max_tokens=2, sampling=GREEDY, grammars=[unknown_grammar]
    )
    events: list[protocol.AnyEvent] = []
    with pytest.raises(GrammarError, match="too complex"):
        events.extend(engine.generate(request))
    assert events == []  # the client can still report the error in place of a reply
    _, finished = generate(engine, tokens=tokens, text="", max_tokens=2)
    assert len(tokens) > 400
    assert finished.stats.cached_tokens > 100
    texts, finished = generate(engine, tokens=tokens, text="", max_tokens=20, grammars=[NUMBERS])
    assert texts[0].startswith("[")
    assert finished.stats.cached_tokens == len(tokens) - 1


def test_request_is_cancelled_while_its_grammar_is_compiled(engine: EngineClient) -> None:
    generate(engine, grammars=[NUMBERS], max_tokens=1)  # starts the process that checks grammars
    request = protocol.Generate(
        id=engine.next_id(), text=PROMPT, grammars=['start: %json {"type": "integer", "multipleOf": 99999971}']
    )
    outcomes: list[protocol.AnyEvent | EdgechatError] = []
    engine.submit(request, outcomes.append)
    engine.cancel(request.id)
    until(lambda: outcomes)
    assert isinstance(outcomes[0], protocol.RequestFinished)
    assert outcomes[0].finish_reason == "cancelled"
    generate(engine, grammars=[NUMBERS], max_tokens=1)


def test_automaton_that_grows_while_decoding_is_limited(native: Bindings, starter: Path) -> None:
    model = Model(native, starter)
    schema = {"type": "string", "pattern": "^(.*a.{20}.*b.{30}c)+$"}
    grammar = compile_grammar(model, "start: %json " + json.dumps(schema))
    rng = np.random.default_rng(0)
    eog_tokens = [t for t in range(model.n_vocab) if model.is_eog(t)]

    def accept_random_token() -> int:
        """Accept and return an allowed token that does not end the text."""
        logits = rng.random(model.n_vocab, dtype=np.float32)
        with grammar.mask_disallowed(logits):
            logits[eog_tokens] = -np.inf
            token = int(logits.argmax())
        grammar.accept(token)
        return token

    tokens: list[int] = []
    with pytest.raises(GrammarError, match=r"exceeds a limit of llguidance\..*too many states: 50000"):
        tokens.extend(accept_random_token() for _ in range(5000))
    assert len(tokens) > 20


def test_reply_ends_before_a_stop_string(engine: EngineClient) -> None:
    options = {"text": CERTAIN_PROMPT, "max_tokens": 20, "sampling": GREEDY}
    whole = generate(engine, **options)[0][0]
    for stop in (whole[10:14], whole[5:6], whole[-3:]):
        text, final = generate(engine, **options, stop=["absent", stop])
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


class _VocabularyModel:
    """A vocabulary without weights, with the part of `Model` that grammars use."""

    def __init__(self, native: Bindings, path: Path) -> None:
        tokenizer = open_vocabulary(native, path)
        self.n_vocab, self.control_tokens = tokenizer.n_vocab, tokenizer.control_tokens
        self.tokenize, self.token_to_piece = tokenizer.tokenize, tokenizer.token_to_piece
        self.is_eog = functools.cache(lambda token: bool(native.llama.llama_vocab_is_eog(tokenizer._vocab, token)))


SCHEMAS: list[dict[str, Any]] = [
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "tags": {"type": "array", "items": {"enum": ["a b", 'c"d', "é—😀"]}, "maxItems": 3},
        },
        "required": ["name", "age", "tags"], "additionalProperties": False,
    },
    {"anyOf": [{"type": "null"}, {"type": "boolean"}, {"type": "number", "minimum": -1, "maximum": 1}]},
    {
        "type": "array", "items": {"type": "string", "pattern": "^[a-z]{1,5}( [a-z]{1,5})?$"},
        "minItems": 2, "maxItems": 2,
    },
]  # fmt: skip


# One vocabulary of each kind; each of the others is of the kind of one of these.
SMALL_VOCABULARIES = ("ggml-vocab-llama-spm", "ggml-vocab-gpt-2", "ggml-vocab-falcon", "no vocabulary")
LARGE_VOCABULARIES = ("ggml-vocab-qwen2", "ggml-vocab-gemma-4")


def mark_vocabularies() -> list[ParameterSet]:
    """Return the vocabularies of text models as test parameters, the large ones and similar ones as long tests."""
    parameters = []
    for parameter in vocabulary_parameters():
        marks = [*parameter.marks]
        if parameter.id not in SMALL_VOCABULARIES:
            marks.append(pytest.mark.long)
        if parameter.id not in SMALL_VOCABULARIES + LARGE_VOCABULARIES:
            marks.append(pytest.mark.exhaustive)
        if "bert" not in str(parameter.id):  # a vocabulary of embedding models, which generate no text
            parameters.append(pytest.param(*parameter.values, id=parameter.id, marks=marks))
    return parameters


@pytest.mark.parametrize("path", mark_vocabularies())
def test_random_walks_through_grammars_give_valid_json(native: Bindings, path: Path) -> None:
    model = cast("Model", _VocabularyModel(native, path))
    rng = np.random.default_rng(0)
    noise = rng.random(model.n_vocab, dtype=np.float32)
    for schema in SCHEMAS:
        compiled = compile_grammar(model, "start: %json " + json.dumps(schema))
        for _ in range(scale(N_WALKS) // len(SCHEMAS)):
            grammar, reply = compiled.copy(), b""
            while not grammar.is_complete:
                logits = np.roll(noise, int(rng.integers(model.n_vocab)))
                with grammar.mask_disallowed(logits):
                    token = int(logits.argmax())
                if model.is_eog(token):
                    break
                reply += model.token_to_piece(token)
                grammar.accept(token)
            jsonschema.validate(json.loads(reply), schema)


CALL = ToolGrammar(gbnf='root ::= "<call>" "{" [0-9]+ "}"', triggers=[Trigger("<call>")])


def allowed_texts(grammar: Grammar | TriggeredGrammar, model: Model) -> set[bytes]:
    logits = np.zeros(model.n_vocab, dtype=np.float32)
    with grammar.mask_disallowed(logits):
        return {model.token_to_piece(t) for t in np.flatnonzero(logits == 0).tolist()}


def compile_tool_grammar(model: Model, grammar: ToolGrammar) -> Grammar | TriggeredGrammar:
    """Compile the grammar of tool calls and return the state of a new output."""
    return start_tool_grammar(model, compile_grammar(model, convert_tool_grammar(grammar)), grammar, ())


def tokenize_continuation(model: Model, text: str) -> list[int]:
    """Return the tokens of a text in the middle of an output, which gets no space before its first word."""
    tokens = model.tokenize(f"\x01{text}", add_special=False, parse_special=False)
    return tokens[len(model.tokenize("\x01", add_special=False, parse_special=False)) :]


def test_tool_grammar_begins_with_the_call(native: Bindings, tmp_path: Path) -> None:
    with contextlib.closing(Model(native, write_tiny_llama(tmp_path / "tiny.gguf"))) as model:
        tokenize = functools.partial(tokenize_continuation, model)
        grammar = compile_tool_grammar(model, CALL)
        for token in tokenize("Hello <cal"):
            assert len(allowed_texts(grammar, model)) > 100
            grammar.accept(token)
        assert grammar.can_end
        draft = tokenize("l>{1x")
        n_allowed = len(tokenize("l>{1"))
        assert grammar.count_allowed(draft) == n_allowed  # also across the beginning of the call
        other = grammar.copy()
        for token in draft[:n_allowed]:
            grammar.accept(token)
        assert not grammar.can_end
        assert allowed_texts(grammar, model) <= {*(str(n).encode() for n in range(1000)), b"}"}
        assert len(allowed_texts(other, model)) > 100  # a copy has a state of its own
        for token in tokenize("}"):
            grammar.accept(token)
        assert grammar.is_complete


def test_required_call_follows_the_reasoning(native: Bindings, tmp_path: Path) -> None:
    with contextlib.closing(Model(native, write_tiny_llama(tmp_path / "tiny.gguf"))) as model:
        for prompt_end, output in (
            ("", "<call>{1}"),
            ("", "<think>a<call>b</think>\n<call>{1}"),
            ("<think>\n", "a</think><call>{1}"),
        ):
            required = ToolGrammar(
                gbnf=CALL.gbnf, prompt_end=prompt_end, thinking_start="<think>", thinking_ends=["</think>"]
            )
            grammar = compile_tool_grammar(model, required)
            tokens = tokenize_continuation(model, output)
            assert grammar.count_allowed(tokens) == len(tokens), output
            text = tokenize_continuation(model, "Hello")
            assert (grammar.count_allowed(text) == len(text)) == bool(prompt_end)
