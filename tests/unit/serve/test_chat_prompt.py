"""Conversion of request messages and tools to template input."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from edgechat.prompt.renderer import Renderer
from edgechat.prompt.tool_formats import format_calls, make_template_tools
from edgechat.serve.chat_prompt import make_template_messages, make_tool_definitions
from edgechat.serve.errors import ApiError
from tests.unit.serve.examples import chat_request

TOOL_TEMPLATE = (
    "{% for t in tools %}{{ t.function.name }} {{ t | tojson }};{% endfor %}"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% for c in m.tool_calls %}"
    "<tool_call>{{ c.function.name }}({{ c.function.arguments.city }}){{ c.id | length }}{% endfor %}"
    "{{ m.tool_call_id }}\n{% endfor %}"
)


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    renderer = Renderer()
    yield renderer
    renderer.close()


def test_template_with_tool_support_receives_tools_and_calls(renderer: Renderer) -> None:
    body = chat_request()
    messages = make_template_messages(body.messages, body.tools or (), has_native_tools=True)
    assert [m.role for m in messages] == ["system", "user", "assistant", "tool"]
    assert messages[1].content == "Weather?\n\nIn Paris."
    rendered = renderer.render(
        TOOL_TEMPLATE, messages, bos="", eos="", control_tokens=["<|user|>"],
        variables={"tools": make_template_tools(make_tool_definitions(body.tools or ()))},
    )  # fmt: skip
    assert "<tool_call>get_weather(Paris)9" in rendered.text
    assert rendered.guard  # control tokens in the description of a tool are guarded
    assert rendered.text.count("<|user|>") == 1
    ids = {m.extra_fields["tool_call_id"] for m in messages if m.role == "tool"}
    assert ids == {messages[2].extra_fields["tool_calls"][0]["id"]}


def test_template_without_tool_support_gets_tools_in_the_system_prompt() -> None:
    body = chat_request()
    messages = make_template_messages(body.messages, body.tools or (), has_native_tools=False)
    assert [m.role for m in messages] == ["system", "user", "assistant", "user"]
    assert "get_weather" in messages[0].content
    assert messages[0].content.endswith("Be brief.")
    assert messages[2].content == format_calls([("get_weather", '{"city": "Paris"}')])
    assert "rain" in messages[3].content


def test_call_arguments_that_are_not_json_are_refused() -> None:
    call = {"id": "x", "type": "function", "function": {"name": "f", "arguments": "{"}}
    body = chat_request(messages=[{"role": "assistant", "tool_calls": [call]}])
    with pytest.raises(ApiError, match=r"messages\[0\]\.tool_calls\[0\]\.function\.arguments"):
        make_template_messages(body.messages, (), has_native_tools=True)


def test_many_values_in_texts_of_call_arguments_are_refused_before_they_are_decoded() -> None:
    text = f'{{"x": [{",".join(["{}"] * 20_000)}]}}'
    call = {"id": "x", "type": "function", "function": {"name": "f", "arguments": text}}
    few, many = (chat_request(messages=[{"role": "assistant", "tool_calls": [call] * n}]).messages for n in (1, 4))
    assert make_template_messages(few, (), has_native_tools=True)
    assert make_template_messages(many, (), has_native_tools=False)  # the texts are not decoded
    with pytest.raises(ApiError, match="more than 65536 JSON values in arguments of tool calls"):
        make_template_messages(many, (), has_native_tools=True)


def test_messages_of_other_clients_are_accepted() -> None:
    call: dict[str, Any] = {
        "id": None,
        "type": None,
        "function": {"name": "get_weather", "arguments": {"city": "Zürich"}},
    }
    body = chat_request(messages=[
        {"role": "system", "content": None},
        {"role": "user",
         "content": ["Weather ", {"type": "text", "text": "in "}, {"type": "input_text", "text": "Zürich?"}]},
        {"role": "assistant",
         "content": [{"type": "thinking", "thinking": "Hm."}, {"type": "output_text", "text": "Wait."}]},
        {"role": "assistant", "reasoning": "Look.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": None, "content": None},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": [{"type": "text", "text": "So."}]}]},
    ])  # fmt: skip
    messages = make_template_messages(body.messages, (), has_native_tools=True)
    assert [(m.role, m.content, m.reasoning) for m in messages] == [
        ("system", "", ""), ("user", "Weather in Zürich?", ""), ("assistant", "Wait.", "Hm."),
        ("assistant", "", "Look."), ("tool", "", ""), ("assistant", "", "So."),
    ]  # fmt: skip
    assert messages[3].extra_fields["tool_calls"][0]["function"]["arguments"] == {"city": "Zürich"}
    assert messages[3].extra_fields["tool_calls"][0]["id"] == messages[4].extra_fields["tool_call_id"]
    for arguments, text in (({"city": "Zürich"}, '{"city": "Zürich"}'), (None, "{}"), ("", "{}")):
        call["function"] = {"name": "get_weather", "arguments": arguments}
        body = chat_request(messages=[{"role": "assistant", "tool_calls": [call]}])
        (message,) = make_template_messages(body.messages, (), has_native_tools=False)
        assert message.content == format_calls([("get_weather", text)])


@pytest.mark.parametrize("part_type", ["image_url", "input_audio", "file", "video"])
def test_content_other_than_text_is_refused(part_type: str) -> None:
    with pytest.raises(ApiError, match=r"messages\[0\]\.content\[0\]"):
        make_template_messages(
            chat_request(messages=[{"role": "user", "content": [{"type": part_type}]}]).messages,
            (),
            has_native_tools=False,
        )
