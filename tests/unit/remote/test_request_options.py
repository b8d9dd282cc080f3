"""Fields of requests to remotes that follow from the settings."""

from __future__ import annotations

from typing import Any

import pytest

from edgechat.config import Settings
from edgechat.remote.request_options import make_options


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {}),
        ({"temperature": 0.0, "top_k": 5, "max_tokens": 7}, {"temperature": 0.0, "top_k": 5, "max_tokens": 7}),
        ({"repeat_penalty": 1.2}, {"repeat_penalty": 1.2, "repetition_penalty": 1.2}),
        ({"thinking": "low"}, {"reasoning_effort": "low"}),
        ({"thinking": "off"}, {"chat_template_kwargs": {"enable_thinking": False}}),
        ({"thinking": "500"}, {"chat_template_kwargs": {"enable_thinking": True}}),
        ({"reasoning": False}, {"chat_template_kwargs": {"enable_thinking": False}}),
        ({"reasoning": True}, {"chat_template_kwargs": {"enable_thinking": True}}),
        ({"system_prompt": "Secret", "n_ctx": 512, "budget": "4GB"}, {}),
    ],
)
def test_only_changed_settings_are_sent(settings: dict[str, Any], expected: dict[str, Any]) -> None:
    assert make_options(Settings(**settings)) == expected


def test_parallel_replies_have_different_seeds() -> None:
    assert make_options(Settings(seed=(1 << 32) - 1), seed_offset=2)["seed"] == 1


def test_schema_becomes_a_response_format() -> None:
    schema = {"type": "object"}
    response_format = make_options(Settings(), schema)["response_format"]
    assert response_format["json_schema"]["schema"] == schema
    assert make_options(Settings(), schema=True)["response_format"] == {"type": "json_object"}
