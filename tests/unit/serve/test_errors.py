"""Errors of request decoding."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from edgechat.serve import errors
from edgechat.serve.errors import ApiError
from edgechat.serve.schemas import ChatRequest, CompletionRequest, EmbeddingsRequest


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"), ({"messages": [], "n": 1}, "messages"),
        ({"messages": [{"role": "user", "content": "x"}], "top_p": 2}, "top_p"),
    ],
)  # fmt: skip
def test_error_names_the_invalid_field(body: Any, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        errors.decode_body(json.dumps(body).encode(), ChatRequest)
    assert caught.value.param == param
    assert caught.value.body()["error"]["type"] == "invalid_request_error"


VALUES: list[Any] = [None, True, 3, 1.5, -7, "x y", [], ["x"], [1], [None], [{}], {}, {"a": 1}]
PYTHON_OR_MSGSPEC = re.compile(
    r"\b(str|int|float|bool|dict|list|NoneType|None|matching regex|Expected|Object)\b|`|[\^$*\\]"
)


def test_messages_use_the_words_of_json() -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    chat: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}]}
    bodies: list[tuple[type[Any], Any]] = []
    for value in VALUES:
        bodies += [(ChatRequest, value), (ChatRequest, chat | {"tools": [value]})]
        bodies += [(ChatRequest, chat | {name: value}) for name in ChatRequest.__struct_fields__]
        bodies += [(CompletionRequest, {"prompt": "x", name: value}) for name in CompletionRequest.__struct_fields__]
        bodies += [(EmbeddingsRequest, {"input": "x", name: value}) for name in EmbeddingsRequest.__struct_fields__]
        bodies += [
            (ChatRequest, chat | {"tools": [tool | {"function": {"name": "f"} | {name: value}}]})
            for name in ("name", "parameters", "strict", "description")
        ]
        bodies += [(ChatRequest, {"messages": [{"role": role, "content": value}]}) for role in ("user", "king", value)]
        bodies += [
            (ChatRequest, chat | {"response_format": {"type": "json_schema", "json_schema": {"schema": value}}}),
            (ChatRequest, chat | {"logit_bias": {"5": value}}), (ChatRequest, chat | {"stop": [value]}),
            (ChatRequest, chat | {"tool_choice": {"type": value, "function": {"name": value}}}),
        ]  # fmt: skip
    messages = []
    for body_type, body in bodies:
        try:
            errors.decode_body(json.dumps(body).encode(), body_type)
        except ApiError as error:
            messages.append(str(error).replace("[...]", "").replace("base64 or float", ""))
    assert [message for message in messages if PYTHON_OR_MSGSPEC.search(message)] == []
    assert len(messages) > 400


@pytest.mark.parametrize(
    ("body_type", "options", "message"),
    [
        (ChatRequest, {"pick": "banana"}, "pick: must be agree, judge or likely, not 'banana'."),
        (
            ChatRequest, {"thinking": {"type": "banana"}},
            "thinking.type: must be adaptive, auto, disabled or enabled, not 'banana'.",
        ),
        (
            ChatRequest, {"messages": [{"role": "king"}]},
            "messages[0].role: must be system, developer, user, assistant, tool or function, not 'king'.",
        ),
        (
            ChatRequest, {"response_format": {"type": "xml"}},
            "response_format.type: must be text, json_object or json_schema, not 'xml'.",
        ),
        (
            ChatRequest, {"tools": [{"type": "x", "function": {"name": "f"}}]},
            "tools[0].type: must be function, not 'x'.",
        ),
        (EmbeddingsRequest, {"encoding_format": "y"}, "encoding_format: must be base64 or float, not 'y'."),
    ],
)  # fmt: skip
def test_word_outside_a_closed_set_is_refused_with_the_allowed_words(
    body_type: type[Any], options: dict[str, Any], message: str
) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "input": "x"} | options
    with pytest.raises(ApiError) as caught:
        errors.decode_body(json.dumps(body).encode(), body_type)
    assert (str(caught.value), caught.value.status) == (message, 400)


def test_name_of_a_function_with_other_characters_is_refused_in_plain_words() -> None:
    tools = [{"type": "function", "function": {"name": "a"}}, {"type": "function", "function": {"name": "a b"}}]
    with pytest.raises(ApiError) as caught:
        errors.decode_body(json.dumps({"messages": [{"role": "user"}], "tools": tools}).encode(), ChatRequest)
    assert "tools[1].function.name: must have 1 to 128 letters" in str(caught.value)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"model": "caf\xe9"}', "its byte 14 of 17 is 0xe9, which is not UTF-8"),
        (rb'{"messages": [{"role": "user", "content": "\ud800"}]}', "it contains half of a surrogate pair"),
        (b'{"messages": ', "it ends too early, after 13 bytes"),
    ],
)
def test_body_that_is_not_json_is_described_in_plain_words(body: bytes, reason: str) -> None:
    with pytest.raises(ApiError) as caught:
        errors.decode_body(body, ChatRequest)
    assert str(caught.value).startswith(f"The body is not valid JSON: {reason}")
    assert caught.value.status == 400
