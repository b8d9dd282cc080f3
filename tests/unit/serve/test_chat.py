"""Options of chat completions: tool choice and reasoning."""

from __future__ import annotations

from typing import Any

import pytest

from edgechat.config import Settings
from edgechat.serve.errors import ApiError
from edgechat.serve.reasoning import choose_thinking, is_reasoning_enabled
from tests.unit.serve.examples import chat_request


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
        ({"reasoning_effort": "max"}, True), ({"enable_thinking": 0}, False),
        ({"thinking": {"budget_tokens": 1}}, True),
        ({"reasoning_effort": "", "reasoning": {"effort": "none"}}, False),
        ({"chat_template_kwargs": {"thinking": False}}, False),
        ({"enable_thinking": None, "thinking": None, "reasoning": None, "reasoning_effort": "minimal"}, False),
    ],
)  # fmt: skip
def test_reasoning_switches_of_other_servers_are_followed(options: Any, *, is_enabled: bool) -> None:
    for default in (None, True, False):
        assert is_reasoning_enabled(chat_request(**options), default=default) == is_enabled
    for effort in ("default", "", None):
        assert not is_reasoning_enabled(chat_request(reasoning_effort=effort), default=False)


@pytest.mark.parametrize(
    ("options", "thinking"),
    [
        ({}, "medium"), ({"reasoning_effort": "low"}, "low"), ({"reasoning_effort": "none"}, "off"),
        ({"reasoning_effort": "xhigh"}, "on"), ({"reasoning_effort": "default"}, "medium"),
        ({"reasoning": {"effort": "high"}}, "high"), ({"thinking": {"type": "enabled", "budget_tokens": 300}}, 300),
        ({"thinking": {"budget_tokens": 300.0}, "reasoning_effort": "low"}, 300),
        ({"thinking": {"budget_tokens": -1}}, None), ({"reasoning": {"max_tokens": 200}}, 200),
        ({"thinking": {"budget_tokens": 0}}, 0), ({"enable_thinking": True}, "medium"),
    ],
)  # fmt: skip
def test_request_limits_reasoning_before_the_setting(options: Any, thinking: str | int | None) -> None:
    assert choose_thinking(chat_request(**options), Settings(thinking="medium")) == thinking


def test_request_can_turn_on_reasoning_that_the_setting_turns_off() -> None:
    settings = Settings(thinking="off")
    assert choose_thinking(chat_request(), settings) == "off"
    assert choose_thinking(chat_request(chat_template_kwargs={"enable_thinking": True}), settings) is None


@pytest.mark.parametrize("options", [{"reasoning_effort": "ultra"}, {"reasoning": {"effort": "ultra"}}])
def test_error_for_an_unknown_effort_names_the_known_ones(options: Any) -> None:
    message = "must be one of none, minimal, low, medium, high, xhigh, max, got 'ultra'"
    with pytest.raises(ApiError, match=message) as info:
        is_reasoning_enabled(chat_request(**options), default=None)
    assert info.value.status == 400
