"""Limits of reasoning over HTTP, with the official Python client and a model that thinks for ever."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.serve.client import ServerProcess, user

N_END_TAG = len("\n</think>\n\n")
"""Maximum number of tokens that end the reasoning: the vocabulary has no token for the tag."""


@pytest.fixture(scope="module")
def client(thinking_server: ServerProcess) -> Iterator[OpenAI]:
    with OpenAI(base_url=thinking_server.url, api_key="none", max_retries=0) as client:
        yield client


def chat(client: OpenAI, **options: Any) -> Any:
    defaults: dict[str, Any] = {
        "model": "", "messages": user("Hi"), "max_tokens": 100, "temperature": 0, "extra_body": {"ignore_eos": True}
    }  # fmt: skip
    options["extra_body"] = defaults["extra_body"] | options.get("extra_body", {})
    return client.chat.completions.create(**(defaults | options))


def count_reasoning(answer: Any) -> int:
    return int(answer.usage.completion_tokens_details.reasoning_tokens)


@pytest.mark.parametrize(
    ("options", "budget"),
    [
        ({"reasoning_effort": "low"}, 256 // 16),
        ({"reasoning_effort": "medium"}, 256 // 8),
        ({"reasoning_effort": "high"}, 256 // 4),
        ({"extra_body": {"thinking": {"type": "enabled", "budget_tokens": 10}}}, 10),
        ({"extra_body": {"reasoning": {"max_tokens": 12}}}, 12),
        ({"extra_body": {"thinking": {"budget_tokens": 10}}, "n": 2}, 20),
    ],
)
def test_reply_begins_at_the_limit(client: OpenAI, options: dict[str, Any], budget: int) -> None:
    answer = chat(client, **options)
    n_choices = options.get("n", 1)
    assert budget <= count_reasoning(answer) <= budget + n_choices * (N_END_TAG + 3)
    for choice in answer.choices:
        assert choice.message.content.strip()
        assert choice.message.reasoning_content.strip()
        assert choice.message.reasoning == choice.message.reasoning_content
        assert "think>" not in choice.message.content + choice.message.reasoning_content


@pytest.mark.parametrize("effort", ["none", "minimal"])
def test_no_effort_is_no_reasoning(client: OpenAI, effort: str) -> None:
    answer = chat(client, reasoning_effort=effort)
    assert answer.choices[0].message.content
    assert count_reasoning(answer) == 0
    assert not getattr(answer.choices[0].message, "reasoning_content", "")


@pytest.mark.parametrize("options", [{"reasoning_effort": "xhigh"}, {"reasoning_effort": "max"}, {}])
def test_without_a_limit_reasoning_takes_the_whole_reply(client: OpenAI, options: dict[str, Any]) -> None:
    answer = chat(client, **options)
    assert count_reasoning(answer) == 100
    assert not answer.choices[0].message.content


def test_template_variable_turns_reasoning_off(client: OpenAI) -> None:
    answer = chat(client, extra_body={"chat_template_kwargs": {"enable_thinking": False}})
    assert (count_reasoning(answer), bool(answer.choices[0].message.content)) == (0, True)


def test_unknown_effort_is_an_error_that_names_the_known_ones(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="none, minimal, low, medium, high, xhigh, max") as info:
        chat(client, reasoning_effort="ultra")
    assert info.value.param == "reasoning_effort"


def test_limit_and_schema_work_together(client: OpenAI) -> None:
    schema = {"name": "x", "schema": {"const": "yes"}, "strict": True}
    answer = chat(
        client, reasoning_effort="low", response_format={"type": "json_schema", "json_schema": schema},
        extra_body={"ignore_eos": False},
    )  # fmt: skip
    assert answer.choices[0].message.content.strip() == '"yes"'
    assert answer.choices[0].finish_reason == "stop"


def end_thinking(server: ServerProcess, response_id: str) -> tuple[int, Any]:
    status, body, _ = server.request(f"/v1/chat/completions/{response_id}/end_thinking", method="POST")
    return status, body


def test_reasoning_of_a_running_request_can_be_ended(client: OpenAI, thinking_server: ServerProcess) -> None:
    for _ in range(20):  # the tiny model can be faster than the request
        reasoning, content, response_id, status = "", "", "", 0
        for chunk in chat(client, stream=True, max_tokens=200):
            delta = chunk.choices[0].delta
            reasoning += getattr(delta, "reasoning_content", None) or ""
            assert getattr(delta, "reasoning", None) == getattr(delta, "reasoning_content", None)
            content += delta.content or ""
            if not response_id:
                response_id = chunk.id
                status, body = end_thinking(thinking_server, response_id)
        if status == 200 and content.strip():  # random weights can end a reply at once
            break
    assert body["id"] == response_id
    assert content.strip()
    assert "think>" not in reasoning + content
    status, body = end_thinking(thinking_server, response_id)
    assert status == 404
    assert "is being generated" in body["error"]["message"]
