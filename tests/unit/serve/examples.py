"""Example tools and a chat request for the tests of this folder."""

from __future__ import annotations

import json
from typing import Any

from edgechat.serve import errors
from edgechat.serve.schemas import ChatRequest, Function, Tool

WEATHER = Tool(Function("get_weather", "The weather", {"type": "object", "properties": {"city": {"type": "string"}}}))
TIME = Tool(Function("get_time", None, None))


def chat_request(**overrides: Any) -> ChatRequest:
    """Decode a chat request with one tool, and a call of it with the result in the conversation."""
    call = {
        "id": "call_123456",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
    }
    body = {
        "messages": [
            {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
            {"role": "user", "content": "Weather?"}, {"role": "user", "content": "In Paris."},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_123456", "content": "rain"},
        ],
        "tools": [{"type": "function", "function": {"name": "get_weather", "parameters": {"title": "<|user|>"}}}],
    } | overrides  # fmt: skip
    return errors.decode_body(json.dumps(body).encode(), ChatRequest)


class FakeQueue:
    """Model queue without an engine."""

    name = "model"

    def choose_response_name(self, requested_name: str | None) -> str:
        return self.name
