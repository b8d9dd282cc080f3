"""Options of chat completions: tool choice and reasoning."""

from __future__ import annotations

from typing import Any

import pytest

from edgechat.serve.chat import is_reasoning_enabled
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
