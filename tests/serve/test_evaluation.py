"""Logprobs of a prompt (`echo` with `logprobs`), with which evaluation programs score continuations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest

from tests.serve.client import ServerProcess

PROMPT = "The capital of France is Paris, and the capital of Italy is Rome."


def complete(server: ServerProcess, prompt: Any, **options: Any) -> Any:
    body = {"prompt": prompt, "max_tokens": 1, "temperature": 0} | options
    status, answer, _ = server.request("/v1/completions", body)
    assert status == 200, answer
    return answer


def score(server: ServerProcess, context: list[int], continuation: list[int]) -> float:
    """Return the log-likelihood of a continuation as lm-evaluation-harness computes it."""
    answer = complete(server, [context + continuation], max_tokens=1, logprobs=1, echo=True, seed=1234)
    logprobs = answer["choices"][0]["logprobs"]
    return float(sum(logprobs["token_logprobs"][len(context) : -1]))


@pytest.fixture(scope="module")
def vocabulary(starter: Path) -> dict[str, int]:
    """Return the IDs of the tokens of ordinary English text."""
    texts = gguf.GGUFReader(starter).fields["tokenizer.ggml.tokens"].contents()
    return {text.replace("Ġ", " "): token for token, text in enumerate(texts)}


@pytest.fixture(scope="module")
def tokens(server: ServerProcess, vocabulary: dict[str, int]) -> list[int]:
    """Return the tokens of `PROMPT`."""
    pieces = complete(server, PROMPT, max_tokens=0, echo=True, logprobs=0)["choices"][0]["logprobs"]["tokens"]
    assert "".join(pieces) == PROMPT
    return [vocabulary[piece] for piece in pieces]


def test_logprobs_of_a_prompt_are_those_of_its_tokens_one_by_one(server: ServerProcess, tokens: list[int]) -> None:
    answer = complete(server, tokens, echo=True, logprobs=3)
    choice, logprobs = answer["choices"][0], answer["choices"][0]["logprobs"]
    assert choice["text"].startswith(PROMPT)
    assert "".join(logprobs["tokens"]) == choice["text"]
    assert answer["usage"]["prompt_tokens"] == len(tokens)
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert len(logprobs["tokens"]) == len(tokens) + 1
    assert logprobs["token_logprobs"][0] is logprobs["top_logprobs"][0] is None
    assert logprobs["text_offset"] == [len("".join(logprobs["tokens"][:i])) for i in range(len(tokens) + 1)]
    for n_before in range(1, len(tokens)):
        single = complete(server, tokens[:n_before], logprobs=3)["choices"][0]["logprobs"]
        best, value = max(single["top_logprobs"][0].items(), key=lambda item: item[1])
        assert logprobs["top_logprobs"][n_before][best] == pytest.approx(value, abs=0.3)
        if logprobs["tokens"][n_before] in single["top_logprobs"][0]:
            value = single["top_logprobs"][0][logprobs["tokens"][n_before]]
            assert logprobs["token_logprobs"][n_before] == pytest.approx(value, abs=0.3)


def test_likely_continuation_has_the_higher_score(server: ServerProcess, vocabulary: dict[str, int]) -> None:
    context = [vocabulary[piece] for piece in ("The", " capital", " of", " France", " is")]
    assert score(server, context, [vocabulary[" Paris"]]) > score(server, context, [vocabulary[" seven"]])


def test_long_prompts_several_prompts_and_streams_have_all_logprobs(server: ServerProcess) -> None:
    prompts = [PROMPT * 12, PROMPT, "a"]
    answer = complete(server, prompts, max_tokens=0, echo=True, logprobs=1)
    for prompt, choice in zip(prompts, answer["choices"], strict=True):
        assert choice["text"] == "".join(choice["logprobs"]["tokens"]) == prompt
        assert choice["finish_reason"] == "length"
        assert [value is None for value in choice["logprobs"]["token_logprobs"]].count(True) == 1
    # In the reply to this prompt, only the first two tokens are far ahead of others.
    body = {"prompt": PROMPT, "max_tokens": 2, "temperature": 0, "echo": True, "logprobs": 1}
    whole = complete(server, PROMPT, max_tokens=2, echo=True, logprobs=1)["choices"][0]
    events = [event for event in server.stream(body, "/v1/completions") if event != "[DONE]"]
    choices = [event["choices"][0] for event in events]
    assert "".join(choice["text"] for choice in choices) == whole["text"]
    for name in ("tokens", "text_offset"):
        assert [value for choice in choices for value in choice["logprobs"][name]] == whole["logprobs"][name]
    assert json.dumps(choices[0]["logprobs"]["token_logprobs"]).startswith("[null, ")


def test_scoring_leaves_the_prompt_cache_alone(server: ServerProcess) -> None:
    story = "Once upon a time there was a little girl who lived in a village near the forest. " * 6
    complete(server, story)
    complete(server, story, echo=True, logprobs=1)
    answer = complete(server, story + "She")
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] > 90


def test_echo_without_logprobs_uses_the_cache(server: ServerProcess, tokens: list[int]) -> None:
    assert complete(server, PROMPT, echo=True, max_tokens=0)["choices"][0]["text"] == PROMPT
    assert complete(server, tokens, echo=True, max_tokens=0)["choices"][0]["text"] == PROMPT
    repeated = complete(server, PROMPT, echo=True)
    assert repeated["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert repeated["choices"][0]["logprobs"] is None
