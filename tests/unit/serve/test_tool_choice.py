"""Tool choice of a request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from edgechat.serve.errors import ApiError
from edgechat.serve.tool_choice import find_tool_choice, select_tools
from tests.step_count import takes_linear_time
from tests.unit.serve.examples import chat_request


def test_tool_choice_selects_tools() -> None:
    named_tool = {"type": "function", "function": {"name": "get_weather"}}
    for choice, n_tools, must_call in (
        (None, 1, False),
        ("auto", 1, False),
        ("none", 0, False),
        ("required", 1, True),
        (named_tool, 1, True),
        ("", 1, False),
        ("any", 1, True),
        ({"type": "auto"}, 1, False),
        ({"type": "none"}, 0, False),
        ({"type": "any"}, 1, True),
        ({"type": "function", "name": "get_weather"}, 1, True),
        ({"type": "tool", "name": "get_weather"}, 1, True),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [named_tool]}}, 1, False),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named_tool]}}, 1, True),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "get_weather"}]},
            1,
            True,
        ),
    ):
        tools, is_required = select_tools(chat_request(tool_choice=choice))
        assert (len(tools), is_required) == (n_tools, must_call)
    invalid_options: list[dict[str, Any]] = [
        {"tool_choice": "required", "tools": []},
        {"tool_choice": {"type": "function", "function": {"name": "x"}}},
        {"tool_choice": "get_weather"},
        {"tool_choice": {"type": "function"}},
        {"tool_choice": {"type": "allowed_tools", "allowed_tools": {}}},
        {"tool_choice": {"type": "allowed_tools"}},
        {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}},
        {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"type": "function"}]}}},
        {"tool_choice": {"type": "allowed_tools", "mode": "all", "tools": [{"name": "get_weather"}]}},
        {"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"name": "x"}]}},
        {"tool_choice": {}},
    ]
    for options in invalid_options:
        with pytest.raises(ApiError, match="tool_choice: "):
            select_tools(chat_request(**options))


def test_many_tools_are_checked_in_linear_time() -> None:
    def prepare(n_tools: int) -> Callable[[], object]:
        request = chat_request(tools=[{"type": "function", "function": {"name": f"tool_{i}"}} for i in range(n_tools)])
        return lambda: select_tools(request)

    assert takes_linear_time(prepare)


def test_allowed_tools_are_those_that_the_model_can_call() -> None:
    tools = [{"type": "function", "function": {"name": name}} for name in "abc"]
    allowed = [{"type": "function", "function": {"name": name}} for name in "ca"]
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": allowed}}
    request = chat_request(tools=tools, tool_choice=choice)
    selected, is_required = select_tools(request)
    assert [tool.function.name for tool in selected] == ["a", "c"]
    assert is_required
    assert find_tool_choice(request).allow_parallel
