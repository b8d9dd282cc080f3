"""Options of chat completions: tool choice and reasoning."""

from __future__ import annotations

import time
from typing import Any

import pytest

from edgechat.serve.chat import is_reasoning_enabled, select_tools
from edgechat.serve.errors import ApiError
from tests.unit.serve.examples import chat_request


def test_tool_choice_selects_tools() -> None:
    named_tool = {"type": "function", "function": {"name": "get_weather"}}
    for choice, n_tools, must_call in (
        (None, 1, False),
        ("auto", 1, False),
        ("none", 0, False),
        ("required", 1, True),
        (named_tool, 1, True),
    ):
        tools, is_required = select_tools(chat_request(tool_choice=choice))
        assert (len(tools), is_required) == (n_tools, must_call)
    for options in (
        {"tool_choice": "required", "tools": []},
        {"tool_choice": {"type": "function", "function": {"name": "x"}}},
    ):
        with pytest.raises(ApiError):
            select_tools(chat_request(**options))


def test_reasoning_follows_the_request_then_the_setting() -> None:
    assert is_reasoning_enabled(chat_request(), default=None)
    assert not is_reasoning_enabled(chat_request(), default=False)
    assert not is_reasoning_enabled(chat_request(reasoning_effort="none"), default=True)
    assert is_reasoning_enabled(chat_request(reasoning_effort="high"), default=False)
    assert not is_reasoning_enabled(
        chat_request(chat_template_kwargs={"enable_thinking": False}, reasoning_effort="high"), default=True
    )


@pytest.mark.parametrize(
    ("options", "is_enabled"),
    [
        ({"enable_thinking": False}, False), ({"thinking": {"type": "disabled"}}, False), ({"thinking": True}, True),
        ({"thinking": {"type": "enabled", "budget_tokens": 100}}, True), ({"reasoning": {"enabled": False}}, False),
        ({"reasoning": {"effort": "none"}}, False), ({"reasoning": {"effort": "high"}}, True),
        ({"reasoning_effort": "max"}, True), ({"chat_template_kwargs": {"thinking": False}}, False),
        ({"enable_thinking": None, "thinking": None, "reasoning": None, "reasoning_effort": "minimal"}, False),
    ],
)  # fmt: skip
def test_reasoning_switches_of_other_servers_are_followed(options: Any, *, is_enabled: bool) -> None:
    for default in (None, True, False):
        assert is_reasoning_enabled(chat_request(**options), default=default) == is_enabled
    assert not is_reasoning_enabled(chat_request(reasoning_effort="default"), default=False)


def test_many_tools_are_checked_in_linear_time() -> None:
    request = chat_request(tools=[{"type": "function", "function": {"name": f"tool_{i}"}} for i in range(40_000)])
    started_at = time.monotonic()
    assert len(select_tools(request)[0]) == 40_000
    assert time.monotonic() - started_at < 5  # a comparison of all pairs takes over 20 s
