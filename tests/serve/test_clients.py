"""Requests in the forms that clients of other servers send."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from tests.serve.client import ServerProcess, user

PERSON = {
    "type": "object", "additionalProperties": False, "required": ["name", "age"],
    "properties": {"name": {"type": "string", "maxLength": 12},
                   "age": {"type": "integer", "minimum": 0, "maximum": 99}},
}  # fmt: skip


def test_length_limit_of_minus_one_is_the_end_of_the_context(server: ServerProcess, tiny_server: ServerProcess) -> None:
    body = {"prompt": "One, two, three,", "max_tokens": -1, "ignore_eos": True, "temperature": 0}
    status, answer, _ = tiny_server.request("/v1/completions", body)
    assert status == 200, answer
    assert answer["usage"]["total_tokens"] >= tiny_server.request("/v1/models")[1]["data"][0]["max_model_len"]
    assert answer["choices"][0]["finish_reason"] == "length"
    for options in ({"max_tokens": -1}, {"max_completion_tokens": -1}, {"max_tokens": None}):
        status, answer = server.chat({"messages": "Say hi.", "stop": [" ", "."], "temperature": 0} | options)
        assert status == 200, answer
        assert answer["choices"][0]["finish_reason"] == "stop"
    status, answer, _ = server.request("/v1/completions", {"prompt": "One", "max_tokens": 0})
    assert status == 200, answer
    assert answer["choices"][0]["text"] == ""


@pytest.mark.parametrize(
    "options",
    [
        {"response_format": {"type": "json_object", "schema": PERSON}},
        {"response_format": {"type": "json_schema", "schema": PERSON}},
        {"json_schema": PERSON}, {"guided_json": PERSON}, {"structured_outputs": {"json": PERSON}},
    ],
)  # fmt: skip
def test_reply_matches_the_schema_of_each_field(server: ServerProcess, options: dict[str, Any]) -> None:
    status, answer = server.chat({"messages": "Describe a person.", "max_tokens": 100, "temperature": 0} | options)
    assert status == 200, answer
    assert answer["choices"][0]["finish_reason"] == "stop"
    jsonschema.validate(json.loads(answer["choices"][0]["message"]["content"]), PERSON)


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        ({"guided_choice": ["maybe/not", 'a "b"']}, {"maybe/not", 'a "b"'}),
        ({"guided_regex": "x{3}/\\/é"}, {"xxx//é"}),
        ({"structured_outputs": {"regex": "[ab]"}}, {"a", "b"}),
    ],
)  # fmt: skip
def test_reply_is_a_choice_or_matches_a_regular_expression(
    server: ServerProcess, options: dict[str, Any], texts: set[str]
) -> None:
    status, answer = server.chat({"messages": "Choose.", "max_tokens": 20, "temperature": 0} | options)
    assert status == 200, answer
    assert answer["choices"][0]["message"]["content"] in texts
    status, answer, _ = server.request("/v1/completions", {"prompt": "Choose:", "max_tokens": 20} | options)
    assert status == 200, answer
    assert answer["choices"][0]["text"] in texts


def test_messages_with_null_fields_objects_and_other_parts_are_answered(server: ServerProcess) -> None:
    call = {"id": None, "function": {"name": "get_weather", "arguments": {"city": "Paris"}}}
    messages = [
        {"role": "system", "content": None},
        {"role": "user", "content": ["What is ", {"type": "input_text", "text": "the weather?"}]},
        {
            "role": "assistant",
            "content": [{"type": "thinking", "thinking": "Hm."}, {"type": "output_text", "text": "-"}],
        },
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": None, "content": None},
    ]
    tool = {"type": "function", "function": {"name": "get_weather"}}
    status, answer = server.chat({"messages": messages, "tools": [tool], "max_tokens": 4.0, "seed": 1.0})
    assert status == 200, answer


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"grammar": 'root ::= "a"'}, "grammar"), ({"functions": [{"name": "f"}]}, "functions"),
        ({"guided_grammar": "x"}, "guided_grammar"), ({"guided_regex": "("}, None),
        ({"response_format": {"type": "json_schema", "json_schema": PERSON}}, "response_format.json_schema.schema"),
        ({"response_format": {"type": "grammar"}}, "response_format.type"), ({"max_tokens": 0}, "max_tokens"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
    ],
)  # fmt: skip
def test_request_that_cannot_be_answered_as_asked_is_refused(
    server: ServerProcess, options: dict[str, Any], param: str | None
) -> None:
    status, answer = server.chat({"messages": user("Hi")} | options)
    assert status == 400, answer
    assert answer["error"]["param"] == param


def test_context_length_is_named_as_clients_read_it(server: ServerProcess) -> None:
    _, models, _ = server.request("/v1/models")
    assert models["data"][0]["max_model_len"] == models["data"][0]["context_length"] == 2048
    _, answer = server.chat({"messages": "x " * 4000})
    # litellm looks for the first words, LangChain for the code.
    assert "exceeds the available context size (context_length_exceeded)" in answer["error"]["message"]
