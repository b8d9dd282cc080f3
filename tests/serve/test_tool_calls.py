"""Tool calls of a real model over HTTP: its own template describes the tools, and its calls are understood."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.development_model import require_model
from tests.fuzzing import shorten
from tests.serve.client import ServerProcess, user

pytestmark = pytest.mark.long

CITIES = ("Paris", "Oslo", "Lima", "Cairo", "Tokyo", "Rome", "Delhi", "Quito", "Bern", "Accra")
PROMPTS = [
    pattern.format(city=city)
    for city in CITIES
    for pattern in (
        "What is the weather in {city}?",
        "Is it raining in {city} now? Use the tool.",
        "What time is it in {city}?",
        "Call get_time for {city}. Answer with JSON only.",
        "I fly to {city} tomorrow. Do I need a coat? Look up the weather in fahrenheit.",
    )
][:: shorten(1, 9)]
PARAMETERS: dict[str, dict[str, Any]] = {
    "get_weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 40}, "unit": {"enum": ["celsius", "fahrenheit"]},
        },
        "required": ["city"], "additionalProperties": False,
    },
    "get_time": {
        "type": "object", "properties": {"city": {"type": "string", "maxLength": 40}},
        "required": ["city"], "additionalProperties": False,
    },
}  # fmt: skip
TOOLS = [
    {"type": "function", "function": {"name": name, "description": f"{name} of a city", "parameters": schema}}
    for name, schema in PARAMETERS.items()
]


@pytest.fixture(scope="module")
def qwen(server_home: Path) -> Iterator[ServerProcess]:
    server = ServerProcess(server_home, "-m", str(require_model()), "--ctx", "2048")
    yield server
    server.close()


def ask(server: ServerProcess, prompt: str, **fields: Any) -> dict[str, Any]:
    body = {"messages": user(prompt), "tools": TOOLS, "max_tokens": 120, "temperature": 0} | fields
    status, reply = server.chat(body)
    assert status == 200, reply
    message: dict[str, Any] = reply["choices"][0]["message"]
    return message


def check_calls(message: dict[str, Any]) -> None:
    for call in message["tool_calls"]:
        jsonschema.validate(json.loads(call["function"]["arguments"]), PARAMETERS[call["function"]["name"]])


def find_call_in_text(content: str) -> str | None:
    """Return the name of a tool that a text calls in bare JSON, which should have been a call."""
    try:
        value = json.loads(content.strip().removeprefix("```json").removeprefix("```").removesuffix("```"))
    except ValueError:
        return None
    is_call = isinstance(value, dict) and isinstance(value.get("arguments", value.get("parameters")), dict)
    return value["name"] if is_call and value.get("name") in PARAMETERS else None


def test_every_call_that_the_model_makes_is_understood(qwen: ServerProcess) -> None:
    n_calls = 0
    for prompt in PROMPTS:
        message = ask(qwen, prompt)
        n_calls += "tool_calls" in message
        assert find_call_in_text(message["content"] or "") is None, (prompt, message)
        assert "<tool_call>" not in (message["content"] or ""), (prompt, message)
    assert n_calls > len(PROMPTS) // 5  # enough for the test to mean something


def test_every_required_call_is_valid(qwen: ServerProcess) -> None:
    for prompt in PROMPTS:
        message = ask(qwen, prompt, tool_choice="required")
        assert message["tool_calls"], prompt
        check_calls(message)


def test_reply_beside_tools_has_the_output_format(qwen: ServerProcess) -> None:
    schema = {
        "type": "object", "properties": {"sum": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["sum"], "additionalProperties": False,
    }  # fmt: skip
    response_format = {"type": "json_schema", "json_schema": {"name": "sum", "schema": schema}}
    for prompt in ("What is 2 + 3? Do not use a tool.", "What is the weather in Paris?"):
        message = ask(qwen, prompt, response_format=response_format)
        if "tool_calls" in message:
            check_calls(message)
        else:
            jsonschema.validate(json.loads(message["content"]), schema)
