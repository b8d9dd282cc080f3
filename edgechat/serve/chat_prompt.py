"""Conversion of messages and tools from API objects to chat template input, and of tool calls to API objects."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Final

from edgechat.prompt.renderer import PromptMessage
from edgechat.prompt.reply_parser import ParsedToolCall, ToolCallDelta
from edgechat.prompt.roles import merge_consecutive
from edgechat.prompt.tool_formats import ToolDefinition, format_calls, format_tool_instructions
from edgechat.serve.content import MessageContent, read_content, read_result
from edgechat.serve.decoded_size import count_values
from edgechat.serve.errors import ApiError, decode_json_text
from edgechat.serve.message_schemas import (
    AssistantMessage,
    ChatMessage,
    FunctionCall,
    FunctionMessage,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from edgechat.serve.schemas import Tool

# Length of tool call IDs, in characters. The chat templates of some model families require it.
_ID_LENGTH: Final = 9
_MAX_ARGUMENT_VALUES: Final = 1 << 16
"""Maximum number of JSON values in all tool call arguments of a request; decoded, they take 6 MiB."""

NO_PARAMETERS: Final[dict[str, Any]] = {"type": "object", "properties": {}}
"""JSON schema of the arguments of a tool without `parameters`."""


def make_template_messages(
    messages: Sequence[ChatMessage], tools: Sequence[Tool], *, has_native_tools: bool
) -> list[PromptMessage]:
    """Convert the messages of a request to template input, merging consecutive system or user messages.

    Without `has_native_tools`, an additional system message describes `tools`. Raises ApiError if a message has images,
    audio, files, or tool call arguments that are not valid JSON.
    """
    converter, prompt_messages = _MessageConverter(has_native_tools=has_native_tools), []
    for i, message in enumerate(messages):
        prompt_messages += converter.convert(message, f"messages[{i}]")
    if tools and not has_native_tools:
        prompt_messages.insert(0, PromptMessage("system", format_tool_instructions(make_tool_definitions(tools))))
    return merge_consecutive(prompt_messages, roles=("system", "user"))


def make_tool_definitions(tools: Sequence[Tool]) -> list[ToolDefinition]:
    """Convert the tools of a request to tool definitions. A tool without `parameters` takes no arguments."""
    functions = [tool.function for tool in tools]
    return [ToolDefinition(f.name, f.description or "", f.parameters or NO_PARAMETERS) for f in functions]


class _MessageConverter:
    """Converts the messages of one request to template input."""

    def __init__(self, *, has_native_tools: bool) -> None:
        self._has_native_tools = has_native_tools
        self._n_argument_values = 0
        """Number of JSON values in the tool call arguments that were converted so far."""

    def convert(self, message: ChatMessage, path: str) -> list[PromptMessage]:
        """Convert a message; each tool result in its content becomes a separate message. Raises ApiError."""
        if isinstance(message, (ToolMessage, FunctionMessage)):
            call_id = message.tool_call_id if isinstance(message, ToolMessage) else None
            return [self._make_result(call_id, read_result(message.content, f"{path}.content"))]
        is_reply = isinstance(message, AssistantMessage)
        content = read_content(message.content, f"{path}.content", is_reply=is_reply)
        results = [self._make_result(call_id, text) for call_id, text in content.results]
        if isinstance(message, AssistantMessage):
            return [self._convert_reply(message, content, path), *results]
        if results and not content.text:
            return results
        return [*results, PromptMessage("user" if isinstance(message, UserMessage) else "system", content.text)]

    def _make_result(self, call_id: object, text: str) -> PromptMessage:
        if self._has_native_tools:
            return PromptMessage("tool", text, extra_fields={"tool_call_id": _shorten_id(call_id)})
        return PromptMessage("user", f"<tool_response>\n{text}\n</tool_response>")

    def _convert_reply(self, message: AssistantMessage, content: MessageContent, path: str) -> PromptMessage:
        thoughts = (message.reasoning_content, message.reasoning, content.reasoning)
        reasoning = next((text for text in thoughts if isinstance(text, str) and text), "")
        # Clients that send calls as content parts also send them in `tool_calls`.
        calls, param = message.tool_calls or content.calls, f"{path}.tool_calls"
        if not calls and message.function_call is not None:
            calls, param = [ToolCall(message.function_call)], f"{path}.function_call"
        if not calls:
            return PromptMessage("assistant", content.text, reasoning)
        if not self._has_native_tools:
            call_text = format_calls([(call.function.name, _format_arguments(call.function)) for call in calls])
            return PromptMessage("assistant", content.text + call_text, reasoning)
        template_calls = []
        for i, call in enumerate(calls):
            arguments = self._parse_arguments(call.function, f"{param}[{i}].function.arguments")
            function = {"name": call.function.name, "arguments": arguments}
            template_calls.append({"id": _shorten_id(call.id), "type": "function", "function": function})
        return PromptMessage("assistant", content.text, reasoning, {"tool_calls": template_calls})

    def _parse_arguments(self, function: FunctionCall, param: str) -> dict[str, Any]:
        arguments = function.arguments or {}
        if isinstance(arguments, str):
            arguments = self._decode_arguments(arguments, param)
        # Half of the templates iterate over the arguments, and fail if they are not an object.
        return arguments if isinstance(arguments, dict) else {"arguments": arguments}

    def _decode_arguments(self, arguments: str, param: str) -> Any:
        self._n_argument_values += count_values(arguments.encode("utf-8", "replace"))
        if self._n_argument_values > _MAX_ARGUMENT_VALUES:
            limit = f"more than {_MAX_ARGUMENT_VALUES} JSON values in arguments of tool calls"
            raise ApiError(400, f"messages: {limit}. Send fewer calls.", param="messages")
        return decode_json_text(arguments, param)


def _format_arguments(function: FunctionCall) -> str:
    arguments = function.arguments
    return arguments or "{}" if isinstance(arguments, str | None) else json.dumps(arguments, ensure_ascii=False)


def _shorten_id(call_id: object) -> str:
    return hashlib.blake2b(str(call_id or "").encode("utf-8", "replace"), digest_size=8).hexdigest()[:_ID_LENGTH]


def make_tool_call_objects(calls: Sequence[ParsedToolCall]) -> list[dict[str, Any]]:
    """Convert complete tool calls to response objects."""
    return [
        {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}} for c in calls
    ]  # fmt: skip


def make_tool_call_chunks(deltas: Sequence[ToolCallDelta]) -> list[dict[str, Any]]:
    """Convert new parts of tool calls to stream objects. Only the first part of a call has the name and the ID."""
    objects = []
    for delta in deltas:
        if delta.name:
            function = {"name": delta.name, "arguments": delta.arguments}
            objects.append({"index": delta.call_index, "id": delta.id, "type": "function", "function": function})
        else:
            objects.append({"index": delta.call_index, "function": {"arguments": delta.arguments}})
    return objects
