"""`best_of` and `pick`: several replies, of which the best are returned."""

from __future__ import annotations

import math
from typing import Any

import pytest
from openai import OpenAI

from edgechat.serve.errors import ApiError
from edgechat.serve.pick_options import PickOptions, find_pick_options
from edgechat.serve.schemas import ChatRequest, CompletionRequest
from tests.serve.client import ServerProcess

MESSAGES = [{"role": "user", "content": "What is 3 + 4? Reply with the number."}]


def chat(server: ServerProcess, **fields: Any) -> tuple[int, dict[str, Any]]:
    return server.chat({"messages": MESSAGES, "seed": 7, "max_tokens": 24} | fields)


def complete(server: ServerProcess, **fields: Any) -> tuple[int, dict[str, Any]]:
    body = {"prompt": "One two three", "seed": 7, "max_tokens": 12} | fields
    status, reply, _ = server.request("/v1/completions", body)
    return status, reply


def mean_logprob(choice: dict[str, Any]) -> float:
    logprobs = choice["logprobs"]["token_logprobs"]
    return math.fsum(logprobs) / len(logprobs)


def test_best_of_returns_the_most_likely_completions(server: ServerProcess) -> None:
    # No reply ends before the limit: one that does would come first.
    status, best = complete(server, n=2, best_of=5, logprobs=0, ignore_eos=True)
    assert status == 200
    assert [c["index"] for c in best["choices"]] == [0, 1]
    assert sorted(map(mean_logprob, best["choices"]), reverse=True) == [mean_logprob(c) for c in best["choices"]]
    for choice in best["choices"]:
        assert choice["pick"]["mean_logprob"] == pytest.approx(mean_logprob(choice), abs=1e-3)
        assert choice["pick"]["n_started"] == 5
    n_returned = sum(len(choice["logprobs"]["tokens"]) for choice in best["choices"])
    assert best["usage"]["completion_tokens"] >= n_returned + 3  # all five replies count
    _, single = complete(server)
    assert best["usage"]["prompt_tokens"] == single["usage"]["prompt_tokens"]


def test_best_of_more_than_the_model_generates_at_once(server: ServerProcess) -> None:
    status, best = complete(server, best_of=11)
    assert status == 200
    assert len(best["choices"]) == 1
    assert best["choices"][0]["pick"]["n_started"] == 11
    assert best["usage"]["prompt_tokens"] < 10


def test_best_of_applies_to_each_prompt(server: ServerProcess) -> None:
    status, best = complete(server, prompt=["One two", "A b c"], best_of=2, echo=True, logprobs=0)
    assert status == 200
    assert [c["text"][:5] for c in best["choices"]] == ["One t", "A b c"]


def test_vote_over_http(server: ServerProcess) -> None:
    status, reply = chat(server, best_of=5, pick="agree", max_tokens=60)
    assert status == 200
    [choice] = reply["choices"]
    pick = choice["pick"]
    assert pick["method"] == "agree"
    assert 3 <= pick["n_started"] <= 5
    assert pick["n_agreeing"] <= pick["n_counted"] <= 5
    assert choice["message"]["content"]


def test_vote_on_constrained_replies_is_decided_early(server: ServerProcess) -> None:
    status, reply = chat(server, best_of=9, pick="agree", guided_choice=["7"])
    assert status == 200
    assert reply["choices"][0]["pick"]["result"] == "5 of 5 agree"
    assert reply["choices"][0]["pick"]["answer"] == "7"
    assert reply["choices"][0]["message"]["content"] == "7"


def test_judge_over_http(server: ServerProcess) -> None:
    status, reply = chat(server, best_of=3, pick="judge", guided_regex="[0-9]")
    assert status == 200
    assert reply["choices"][0]["pick"]["method"] == "judge"
    assert reply["choices"][0]["message"]["content"].isdigit()


def test_most_likely_chat_reply(server: ServerProcess) -> None:
    status, reply = chat(server, best_of=3, temperature=1.5)
    assert status == 200
    assert reply["choices"][0]["pick"]["result"] == "most likely of 3"


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"best_of": 5, "stream": True}, "best_of", "cannot be streamed"),
        ({"best_of": 1, "n": 2}, "best_of", "at least n, which is 2, got 1"),
        ({"best_of": 65}, "best_of", "at most 64, got 65"),
        ({"pick": "agree"}, "pick", "needs best_of"),
        ({"pick": "judge", "best_of": 5, "n": 2}, "pick", "Set n to 1"),
    ],
)
def test_invalid_combinations_are_refused(fields: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(ApiError, match=message) as caught:
        find_pick_options(CompletionRequest(prompt="x", **fields))
    assert caught.value.status == 400
    assert caught.value.param == param


def test_equal_numbers_need_no_pick() -> None:
    assert find_pick_options(CompletionRequest(prompt="x", n=3, best_of=3, stream=True)) is None
    assert find_pick_options(CompletionRequest(prompt="x")) is None
    request = ChatRequest(messages=[], n=2, best_of=4)
    assert find_pick_options(request) == PickOptions("likely", 4, 2)


def test_server_refuses_what_it_cannot_pick(server: ServerProcess) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    for status, body in (
        chat(server, best_of=3, stream=True), chat(server, best_of=3, tools=[tool]),
        chat(server, best_of=3, pick="vote"), complete(server, best_of=3, pick="judge"),
    ):  # fmt: skip
        assert status == 400
        assert body["error"]["param"] in {"best_of", "pick"}, body


def test_official_client_reads_the_pick(server: ServerProcess) -> None:
    with OpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
        completion = client.completions.create(
            model="starter", prompt="One two three", max_tokens=8, n=1, best_of=3, temperature=0.9
        )
        assert len(completion.choices) == 1
        assert (completion.choices[0].model_extra or {})["pick"]["n_started"] == 3
        reply = client.chat.completions.create(
            model="starter", messages=[{"role": "user", "content": "Say 7."}], max_tokens=16,
            extra_body={"best_of": 3, "pick": "agree"},
        )  # fmt: skip
        assert (reply.choices[0].model_extra or {})["pick"]["method"] == "agree"
