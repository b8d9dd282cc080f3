"""Conversion of messages and tools from API objects to chat template input, and of tool calls to API objects."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Final

from edgechat.prompt.renderer import PromptMessage
from edgechat.prompt.reply_parser import ToolCall, ToolCallDelta
from edgechat.prompt.roles import merge_consecutive
from edgechat.prompt.tool_formats import ToolDefinition, format_calls, format_tool_instructions
from edgechat.serve.decoded_size import count_values
from edgechat.serve.errors import ApiError, decode_json_text
from edgechat.serve.schemas import (
    AssistantMessage,
    ChatMessage,
    Content,
    FunctionCall,
    InputTextPart,
    OutputTextPart,
    RefusalPart,
    TextPart,
    ThinkingPart,
    Tool,
    ToolMessage,
    UserMessage,
)

# Length of tool call IDs, in characters. The templates of some model families require this length.
_ID_LENGTH: Final = 9
_MAX_ARGUMENT_VALUES: Final = 1 << 16
"""Maximum number of JSON values in the texts of all tool call arguments; they take 6 MiB when they are decoded."""


def make_template_messages(
    messages: Sequence[ChatMessage], tools: Sequence[Tool], *, has_native_tools: bool
) -> list[PromptMessage]:
    """Convert the messages of a request to template input, merging consecutive system or user messages.

    If the template has no native tools, an additional system message describes `tools`. Raises ApiError if a message
    has images, audio, files, or tool call arguments that are not valid JSON.
    """
    if has_native_tools:
        _check_arguments(messages)
    prompt_messages = [
        _convert_message(message, f"messages[{i}]", has_native_tools) for i, message in enumerate(messages)
    ]
    if tools and not has_native_tools:
        prompt_messages.insert(0, PromptMessage("system", format_tool_instructions(make_tool_definitions(tools))))
    return merge_consecutive(prompt_messages, roles=("system", "user"))


def make_tool_definitions(tools: Sequence[Tool]) -> list[ToolDefinition]:
    """Convert the tools of a request to tool definitions. A tool without `parameters` takes no arguments."""
    functions = [tool.function for tool in tools]
    no_parameters = {"type": "object", "properties": {}}
    return [ToolDefinition(f.name, f.description or "", f.parameters or no_parameters) for f in functions]


def _convert_message(message: ChatMessage, path: str, has_native_tools: bool) -> PromptMessage:  # noqa: FBT001
    if isinstance(message, AssistantMessage):
        return _convert_assistant_message(message, path, has_native_tools)
    text, _ = _split_content(message.content, path)
    if isinstance(message, ToolMessage):
        if has_native_tools:
            return PromptMessage("tool", text, extra_fields={"tool_call_id": _shorten_id(message.tool_call_id)})
        return PromptMessage("user", f"<tool_response>\n{text}\n</tool_response>")
    return PromptMessage("user" if isinstance(message, UserMessage) else "system", text)


def _convert_assistant_message(message: AssistantMessage, path: str, has_native_tools: bool) -> PromptMessage:  # noqa: FBT001
    text, thinking = _split_content(message.content, path)
    reasoning = message.reasoning_content or message.reasoning or thinking
    calls = message.tool_calls or []
    if not calls:
        return PromptMessage("assistant", text, reasoning)
    if not has_native_tools:
        call_text = format_calls([(call.function.name, _format_arguments(call.function)) for call in calls])
        return PromptMessage("assistant", text + call_text, reasoning)
    template_calls = []
    for i, call in enumerate(calls):
        arguments = _parse_arguments(call.function, f"{path}.tool_calls[{i}].function.arguments")
        function = {"name": call.function.name, "arguments": arguments}
        template_calls.append({"id": _shorten_id(call.id), "type": "function", "function": function})
    return PromptMessage("assistant", text, reasoning, {"tool_calls": template_calls})


def _format_arguments(function: FunctionCall) -> str:
    arguments = function.arguments
    return json.dumps(arguments, ensure_ascii=False) if isinstance(arguments, dict) else arguments or "{}"


def _parse_arguments(function: FunctionCall, param: str) -> Any:
    if isinstance(function.arguments, dict):
        return function.arguments
    return decode_json_text(function.arguments or "{}", param)


def _check_arguments(messages: Sequence[ChatMessage]) -> None:
    """Raise ApiError if the texts of tool call arguments have too many JSON values together."""
    calls = [call for m in messages if isinstance(m, AssistantMessage) for call in m.tool_calls or ()]
    texts = [call.function.arguments for call in calls if isinstance(call.function.arguments, str)]
    if sum(count_values(text.encode("utf-8", "replace")) for text in texts) > _MAX_ARGUMENT_VALUES:
        message = (
            f"messages: more than {_MAX_ARGUMENT_VALUES} JSON values in arguments of tool calls. Send fewer calls."
        )
        raise ApiError(400, message, param="messages")


def _split_content(content: Content, path: str) -> tuple[str, str]:
    """Return the text of a message and the reasoning in it. Raises ApiError for content other than text."""
    if content is None or isinstance(content, str):
        return content or "", ""
    texts, thoughts = [], []
    for i, part in enumerate(content):
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, (TextPart, InputTextPart, OutputTextPart)):
            texts.append(part.text)
        elif isinstance(part, RefusalPart):
            texts.append(part.refusal)
        elif isinstance(part, ThinkingPart):
            thinking = part.thinking
            thoughts.append(thinking if isinstance(thinking, str) else "".join(item.text for item in thinking))
        else:
            param = f"{path}.content[{i}]"
            raise ApiError(400, f"{param}: only text is supported.", param=param, code="unsupported_content")
    return "".join(texts), "".join(thoughts)


def _shorten_id(call_id: str | None) -> str:
    return hashlib.blake2b((call_id or "").encode("utf-8", "replace"), digest_size=8).hexdigest()[:_ID_LENGTH]


def make_tool_call_objects(calls: Sequence[ToolCall]) -> list[dict[str, Any]]:
    """Convert complete tool calls to response objects."""
    return [
        {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}} for c in calls
    ]  # fmt: skip


def make_tool_call_chunks(deltas: Sequence[ToolCallDelta]) -> list[dict[str, Any]]:
    """Convert new parts of tool calls to objects of a stream. Only the first part of a call has its name and ID."""
    objects = []
    for delta in deltas:
        if delta.name:
            function = {"name": delta.name, "arguments": delta.arguments}
            objects.append({"index": delta.call_index, "id": delta.id, "type": "function", "function": function})
        else:
            objects.append({"index": delta.call_index, "function": {"arguments": delta.arguments}})
    return objects
