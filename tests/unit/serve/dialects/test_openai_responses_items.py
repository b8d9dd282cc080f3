"""Input items of the Responses API: reading, ids, and the messages that they become."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgechat.prompt.renderer import PromptMessage
from edgechat.serve.chat_prompt import make_template_messages
from edgechat.serve.dialects.openai_responses_items import (
    FunctionCallItem,
    Item,
    MessageItem,
    OutputText,
    ReasoningItem,
    encode_reasoning,
    find_reasoning,
    make_item_id,
    make_messages,
    read_items,
    split_item_id,
    with_item_id,
)
from edgechat.serve.errors import ApiError

STORED = MessageItem(role="assistant", content=[OutputText("Stored.")], id="msg_abcx0")


def find_item(item_id: str, path: str) -> Item:
    if item_id != STORED.id:
        raise ApiError(400, f"{path}: not found.", param=path)
    return STORED


def read(*items: Any) -> list[Item]:
    return read_items(items, find_item)


def convert(*items: Any) -> list[PromptMessage]:
    return make_template_messages(make_messages(read(*items)), [], has_native_tools=True)


def test_text_is_a_message_of_the_user() -> None:
    (item,) = read_items("Hi", find_item)
    assert isinstance(item, MessageItem)
    assert (item.role, [part.text for part in item.content]) == ("user", ["Hi"])
    assert read_items(None, find_item) == []


def test_tool_loop_becomes_template_messages() -> None:
    developer, question, reply, *results, last = convert(
        {"role": "developer", "content": "Be brief."},
        {"type": "message", "role": "user", "content": [
            {"type": "input_text", "text": "Weather "}, {"type": "input_text", "text": "in Paris?"},
        ]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [
            {"type": "reasoning_text", "text": "I need it."},
        ]},
        {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [
            {"type": "output_text", "text": "Let me see.", "annotations": []},
        ]},
        {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "get_weather", "arguments": '{"a": 1}'},
        {"type": "custom_tool_call", "call_id": "call_2", "name": "run", "input": "ls"},
        {"type": "function_call_output", "call_id": "call_1", "output": "rain"},
        {"type": "custom_tool_call_output", "call_id": "call_2", "output": [{"type": "input_text", "text": "a.txt"}]},
        {"role": "user", "content": "Thanks."},
    )  # fmt: skip
    assert (developer.role, developer.content) == ("system", "Be brief.")
    assert (question.role, question.content) == ("user", "Weather in Paris?")
    assert (reply.role, reply.content, reply.reasoning) == ("assistant", "Let me see.", "I need it.")
    calls = reply.extra_fields["tool_calls"]
    assert [call["function"] for call in calls] == [
        {"name": "get_weather", "arguments": {"a": 1}}, {"name": "run", "arguments": {"input": "ls"}},
    ]  # fmt: skip
    assert [(result.role, result.content) for result in results] == [("tool", "rain"), ("tool", "a.txt")]
    assert [result.extra_fields["tool_call_id"] for result in results] == [call["id"] for call in calls]
    assert last.content == "Thanks."


def test_replies_that_follow_each_other_stay_separate() -> None:
    first, second, third = convert(
        {"role": "assistant", "content": "A"}, {"role": "assistant", "content": [{"type": "refusal", "refusal": "B"}]},
        {"type": "function_call", "call_id": "1", "name": "f", "arguments": ""},
        {"type": "reasoning", "summary": [
            {"type": "summary_text", "text": "Hm"}, {"type": "summary_text", "text": "m"},
        ]},
    )  # fmt: skip
    assert (first.content, second.content) == ("A", "B")
    assert second.extra_fields["tool_calls"][0]["function"]["arguments"] == {}
    assert (third.content, third.reasoning) == ("", "Hmm")


def test_arguments_of_a_call_that_was_cut_become_text() -> None:
    item = {"type": "function_call", "call_id": "1", "name": "f", "arguments": '{"a', "status": "incomplete"}
    (reply,) = convert(item)
    assert reply.extra_fields["tool_calls"][0]["function"]["arguments"] == {"arguments": '{"a'}
    with pytest.raises(ApiError, match="not valid JSON"):
        convert(item | {"status": "completed"})


def test_encoded_reasoning_is_read_and_foreign_reasoning_is_skipped() -> None:
    text = "Hm é"
    (item,) = read({"type": "reasoning", "summary": [], "encrypted_content": encode_reasoning(text)})
    assert isinstance(item, ReasoningItem)
    assert find_reasoning(item) == text
    for foreign in ("gAAAA", "edgechat:???", "edgechat:/w==", 5):
        (item,) = read({"type": "reasoning", "summary": [{"text": "s"}], "encrypted_content": foreign})
        assert isinstance(item, ReasoningItem)
        assert find_reasoning(item) == "s"


def test_references_are_resolved() -> None:
    assert read({"type": "item_reference", "id": STORED.id}, {"id": STORED.id}) == [STORED, STORED]
    with pytest.raises(ApiError, match=r"input\[0\]\.id: not found"):
        read({"type": "item_reference", "id": "msg_other"})


@pytest.mark.parametrize(
    ("item", "path"),
    [
        ({}, "input[1].type"), ({"type": "computer_call"}, "input[1].type"), ({"type": 5}, "input[1].type"),
        ({"type": ["message"]}, "input[1].type"), ({"role": "tool", "content": "x"}, "input[1].role"),
        ({"role": ["user"], "content": "x"}, "input[1].role"),
        ({"type": "item_reference"}, "input[1].id"), ({"type": "function_call", "call_id": "1"}, "input[1].name"),
        ({"type": "custom_tool_call", "name": "x", "input": 5}, "input[1].input"),
        ({"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": "x"}]},
         "input[1].content[1]"),
        ({"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}, "input[1].content[0]"),
        ({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, "input[1].content[0]"),
        ({"role": "user", "content": [{"type": "tool_result", "content": "x"}]}, "input[1].content"),
        ({"type": "function_call_output", "call_id": "1", "output": [{"type": "input_image", "image_url": "x"}]},
         "input[1].output"),
    ],
)  # fmt: skip
def test_unsupported_items_are_refused_with_their_path(item: Any, path: str) -> None:
    with pytest.raises(ApiError) as caught:
        read({"role": "user", "content": "Hi"}, item)
    assert (caught.value.status, caught.value.param) == (400, path)
    assert str(caught.value).startswith(f"{path}: ")


def test_ids_of_items_lead_to_their_response() -> None:
    item_id = make_item_id(FunctionCallItem, "resp_0a1b", 12)
    assert item_id.startswith("fc_")
    assert split_item_id(item_id) == ("resp_0a1b", 12)
    for other in ("", "msg_", "msg_abc", "msg_x1", "x1", "msg_abcx-1", "msg_abcx²", "msg_abcx" + "9" * 5000):
        assert split_item_id(other) == ("", 0)
    (item,) = read_items("Hi", find_item)
    named = with_item_id(item, "resp_0a1b", 0)
    assert named.id.startswith("msg_0a1b")
    assert split_item_id(named.id)[0] != "resp_0a1b"
    assert with_item_id(named, "resp_other", 5) is named


def test_arguments_and_outputs_may_be_objects() -> None:
    call, result = read(
        {"type": "function_call", "id": "a", "name": "f", "namespace": "x", "arguments": {"a": 1}},
        {"type": "function_call_output", "call_id": "a", "output": {"a": 1}},
    )  # fmt: skip
    assert isinstance(call, FunctionCallItem)
    assert (call.call_id, json.loads(call.arguments)) == ("a", {"a": 1})
    (reply,) = make_template_messages(make_messages([call]), [], has_native_tools=True)
    assert reply.extra_fields["tool_calls"][0]["function"]["name"] == "x.f"
    assert not isinstance(result, (MessageItem, FunctionCallItem))
