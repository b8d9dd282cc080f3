"""Content parts of many clients."""

from __future__ import annotations

from typing import Any

import pytest

from edgechat.prompt.renderer import PromptMessage
from edgechat.prompt.tool_formats import format_calls
from edgechat.serve.chat_prompt import make_template_messages
from edgechat.serve.errors import ApiError
from tests.unit.serve.examples import chat_request


def convert(*messages: Any, has_native_tools: bool = True) -> list[PromptMessage]:
    return make_template_messages(chat_request(messages=messages).messages, (), has_native_tools=has_native_tools)


@pytest.mark.parametrize(
    ("part", "text"),
    [
        ("x", "x"), (None, ""), ({"text": "x"}, "x"), ({"type": None, "text": "x"}, "x"),
        ({"type": "text", "text": None}, ""),
        ({"type": "text"}, ""), ({"type": "text", "content": "x"}, "x"), ({"type": "text", "text": 5}, "5"),
        ({"type": "output_text", "text": "x", "annotations": []}, "x"), ({"type": "input_text", "text": "x"}, "x"),
        ({"type": "refusal", "refusal": "x"}, "x"), ({"type": "note", "text": "x"}, "x"),
        ({"type": 5, "text": "x"}, "x"),
        ({"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}, "x"),
        ({"type": "text", "text": "x", "file": "a.txt"}, "x"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant"])
def test_text_is_read_from_every_part(part: Any, text: str, role: str) -> None:
    for content, suffix in ((part, ""), ([part], ""), ([part, "!"], "!")):
        if isinstance(content, dict | list | str | None):
            (message,) = convert({"role": role, "content": content})
            assert message.content == text + suffix


@pytest.mark.parametrize(
    ("part", "reasoning"),
    [
        ({"type": "thinking", "thinking": "x"}, "x"),
        ({"type": "thinking", "thinking": [{"type": "text", "text": "x"}]}, "x"),
        ({"type": "reasoning", "text": "x"}, "x"), ({"type": "reasoning_text", "text": "x"}, "x"),
        ({"type": "reasoning", "reasoning": "x"}, "x"), ({"type": "summary_text", "text": "x"}, "x"),
        ({"type": "reasoning", "summary": [{"type": "summary_text", "text": "x"}], "encrypted_content": "Zz"}, "x"),
        ({"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "x"}]}, "x"),
        ({"type": "reasoning", "summary": [], "encrypted_content": "Zz"}, ""),
        ({"type": "thinking", "thinking": None}, ""),
        ({"type": "redacted_thinking", "data": "Zz"}, ""), ({"type": "web_search_call", "id": "1"}, ""), ({}, ""),
        ({"type": "file_search_call", "queries": []}, ""), ({"type": "step-start"}, ""),
    ],
)  # fmt: skip
def test_reasoning_is_read_and_what_only_its_service_can_read_is_skipped(part: Any, reasoning: str) -> None:
    (message,) = convert({"role": "assistant", "content": [part, {"type": "text", "text": "Yes."}]})
    assert (message.content, message.reasoning) == ("Yes.", reasoning)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:,"}}, {"type": "image", "source": {}}, {"type": "input_image"},
        {"type": "input_audio", "input_audio": {}}, {"type": "audio_url"}, {"type": "video"}, {"type": "video_url"},
        {"type": "file", "file": {"file_id": "1"}}, {"type": "input_file"}, {"type": "document", "source": {}},
        {"type": "image_file"}, {"image_url": "data:,"}, {"image": "Zz"},
    ],
)  # fmt: skip
@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_media_are_refused(part: Any, role: str) -> None:
    with pytest.raises(ApiError, match=r"^messages\[0\]\.content\[1\]: only text is supported\.$"):
        convert({"role": role, "content": ["See this.", part]})


@pytest.mark.parametrize("part", [{}, {"a": 1}, {"type": "mystery"}, {"type": "text", "text": {"a": 1}}, ["x"]])
def test_unknown_parts_without_text_are_refused_in_messages_of_the_user(part: Any) -> None:
    with pytest.raises(ApiError, match="only text is supported"):
        convert({"role": "user", "content": [part]})


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, ""), ("x", "x"), ([], ""),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "ab"), (["a", "b"], "ab"),
        ({"a": 1}, '{"a": 1}'), ([{"a": 1}], '[{"a": 1}]'), (5, "5"), (True, "true"), ([1, 2], "[1, 2]"), ({}, "{}"),
        ({"type": "text", "text": "é"}, "é"), ({"text": "x"}, "x"),
        ({"text": "x", "score": 1}, '{"text": "x", "score": 1}'),
        ([{"type": "file", "name": "a.txt"}], '[{"type": "file", "name": "a.txt"}]'), ({"é": None}, '{"é": null}'),
        ([{"type": "tool_result", "tool_use_id": "1", "content": "x"}], "x"),
    ],
)  # fmt: skip
def test_results_of_tools_may_be_any_json(content: Any, text: str) -> None:
    for role in ("tool", "function"):
        (message,) = convert({"role": role, "tool_call_id": 5, "name": "f", "content": content})
        assert (message.role, message.content) == ("tool", text)
    with pytest.raises(ApiError, match="only text is supported"):
        convert({"role": "tool", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]})


def test_calls_and_results_in_content_parts_become_calls_and_messages() -> None:
    call = {"type": "tool_use", "id": "call_1", "name": "f", "input": {"a": 1}}
    result = {"type": "tool_result", "tool_use_id": "call_1", "content": [{"type": "text", "text": "rain"}]}
    expected_call = {"name": "f", "arguments": {"a": 1}}
    for parts in ([call], [{"type": "tool-call", "toolCallId": "call_1", "toolName": "f", "args": {"a": 1}}]):
        reply, answer, question = convert(
            {"role": "assistant", "content": [{"type": "text", "text": "Wait."}, *parts]},
            {"role": "user", "content": [result, {"type": "text", "text": "And now?"}]},
        )
        assert reply.content == "Wait."
        assert reply.extra_fields["tool_calls"][0]["function"] == expected_call
        assert (answer.role, answer.content) == ("tool", "rain")
        assert answer.extra_fields["tool_call_id"] == reply.extra_fields["tool_calls"][0]["id"]
        assert (question.role, question.content) == ("user", "And now?")
    assert [m.role for m in convert({"role": "user", "content": [result]})] == ["tool"]
    assert [m.role for m in convert({"role": "assistant", "content": [call, result]})] == ["assistant", "tool"]
    both = {"role": "assistant", "content": [call], "tool_calls": [{"id": "call_1", "function": expected_call}]}
    assert len(convert(both)[0].extra_fields["tool_calls"]) == 1
    with pytest.raises(ApiError, match=r"messages\[0\]\.content\[0\]: a tool call needs the name of the tool"):
        convert({"role": "assistant", "content": [{"type": "tool_use", "input": {}}]})
    reply, answer = convert(
        {"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}, has_native_tools=False
    )
    assert reply.content == format_calls([("f", '{"a": 1}')])
    assert answer.content == "<tool_response>\nrain\n</tool_response>"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [([1, 2], {"arguments": [1, 2]}), (5, {"arguments": 5}), ({"a": [1]}, {"a": [1]}), ("[1]", {"arguments": [1]}),
     ("", {}), (None, {})],
)  # fmt: skip
def test_arguments_of_calls_may_be_any_json(arguments: Any, expected: dict[str, Any]) -> None:
    function = {"name": "f", "arguments": arguments}
    for message in ({"tool_calls": [{"id": 5, "type": "x", "function": function}]}, {"function_call": function}):
        (reply,) = convert({"role": "assistant"} | message)
        assert reply.extra_fields["tool_calls"][0]["function"] == {"name": "f", "arguments": expected}
        assert convert({"role": "assistant"} | message, has_native_tools=False)[0].content


def test_content_may_be_missing() -> None:
    messages = convert({"role": "system"}, {"role": "user"}, {"role": "assistant"}, {"role": "tool"})
    assert [m.content for m in messages] == [""] * 4
