"""Decoding of request bodies."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgechat.config import BOUNDS, Sampling
from edgechat.serve import errors
from edgechat.serve.errors import ApiError
from edgechat.serve.schemas import CompletionRequest
from tests.unit.serve.examples import chat_request


def test_integers_with_a_fraction_of_zero_become_integers() -> None:
    body = chat_request(max_tokens=100.0, seed=7.0, top_k=-1.0, n=2.0, top_logprobs=3.0, max_completion_tokens=-1.0)
    values = [body.max_tokens, body.seed, body.top_k, body.n, body.top_logprobs, body.max_completion_tokens]
    assert values == [100, 7, -1, 2, 3, -1]
    assert all(isinstance(value, int) for value in values)


@pytest.mark.parametrize("value", [1.5, "5", True, -2, -2.0, 1e300, [], {}])
def test_other_values_are_no_length_limits(value: Any) -> None:
    with pytest.raises(ApiError, match="max_tokens"):
        chat_request(max_tokens=value)


def test_null_is_a_missing_value_and_a_byte_order_mark_is_skipped() -> None:
    body = chat_request(max_tokens=None, seed=None, stop=None, tools=None, response_format=None, stream_options=None)
    assert body.max_tokens is body.seed is None
    assert errors.decode_body(b"\xef\xbb\xbf" + json.dumps({"prompt": "a"}).encode(), CompletionRequest).prompt == "a"


@pytest.mark.parametrize("name", ["get_weather\n", "", "a b", "x" * 129, "\n", "é", "a\n\n"])
def test_name_of_a_tool_is_checked_to_its_last_character(name: str) -> None:
    with pytest.raises(ApiError, match="name"):
        chat_request(tools=[{"type": "function", "function": {"name": name}}])


@pytest.mark.parametrize("name", ["mcp:fs/read", "server.tool", "a@b", "x" * 128])
def test_names_of_tools_of_mcp_servers_are_accepted(name: str) -> None:
    tools = chat_request(tools=[{"type": "function", "function": {"name": name}}]).tools
    assert tools is not None
    assert tools[0].function.name == name


def test_booleans_may_be_integers_and_ignored_fields_may_have_any_type() -> None:
    body = chat_request(stream=1, stream_options={"include_usage": 1}, logprobs=0, parallel_tool_calls=0, user=5)
    assert (body.stream, body.logprobs, body.parallel_tool_calls) == (True, False, False)
    assert body.stream_options is not None
    assert body.stream_options.include_usage
    for value in (2, -1, "yes", 1.5):
        with pytest.raises(ApiError, match="stream"):
            chat_request(stream=value)


# The maximum of the temperature is that of the OpenAI API, many clients send -1 for no limit of top_k, and seeds of any
# size are accepted.
WITH_OTHER_BOUNDS = {"temperature", "top_k", "seed"}


@pytest.mark.parametrize("name", sorted(set(Sampling.__struct_fields__) - WITH_OTHER_BOUNDS))
def test_sampler_fields_have_the_bounds_of_the_settings(name: str) -> None:
    low, high = BOUNDS[name]
    for value in (low, high):
        assert getattr(chat_request(**{name: value}), name) == value
    for value in (low - 1, high + 1, float(low) - 1):
        with pytest.raises(ApiError, match=f"{name}: must be at (least|most)"):
            chat_request(**{name: value})
