"""From the messages of a request to what a template is given."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Final

from edgechat.prompt.renderer import PromptMessage
from edgechat.prompt.roles import merge_consecutive
from edgechat.prompt.tool_formats import ParsedToolCall, ToolDefinition, ToolFormat, tool_instructions
from edgechat.serve.errors import ApiError
from edgechat.serve.schemas import (
    AssistantMessage,
    ChatMessage,
    Content,
    RefusalPart,
    TextPart,
    Tool,
    ToolMessage,
    UserMessage,
)

# Templates of some families insist on ids of this length.
_ID_LENGTH: Final = 9


def template_messages(messages: Sequence[ChatMessage], tools: Sequence[Tool], form: ToolFormat) -> list[PromptMessage]:
    """Messages as a template takes them: turns that follow each other with the same role are one. Raises ApiError."""
    converted = [_message(message, f"messages[{i}]", form) for i, message in enumerate(messages)]
    if tools and not form.template_supports_tools:
        converted.insert(0, PromptMessage("system", tool_instructions(tool_definitions(tools))))
    return merge_consecutive(converted, roles=("system", "user"))


def tool_definitions(tools: Sequence[Tool]) -> list[ToolDefinition]:
    """Convert the tools of a request."""
    functions = [tool.function for tool in tools]
    no_parameters = {"type": "object", "properties": {}}
    return [ToolDefinition(f.name, f.description or "", f.parameters or no_parameters) for f in functions]


def _message(message: ChatMessage, where: str, form: ToolFormat) -> PromptMessage:
    if isinstance(message, AssistantMessage):
        return _assistant_message(message, where, form)
    text = _text(message.content, where)
    if isinstance(message, ToolMessage):
        if form.template_supports_tools:
            return PromptMessage("tool", text, extra={"tool_call_id": _short_id(message.tool_call_id)})
        return PromptMessage("user", f"<tool_response>\n{text}\n</tool_response>")
    return PromptMessage("user" if isinstance(message, UserMessage) else "system", text)


def _assistant_message(message: AssistantMessage, where: str, form: ToolFormat) -> PromptMessage:
    text = _text(message.content or "", where)
    thought = message.reasoning_content or ""
    calls = message.tool_calls or []
    if not calls:
        return PromptMessage("assistant", text, thought)
    if not form.template_supports_tools:
        said = form.format_calls([(call.function.name, call.function.arguments) for call in calls])
        return PromptMessage("assistant", text + said, thought)
    given = []
    for j, call in enumerate(calls):
        try:
            arguments = json.loads(call.function.arguments or "{}")
        except (ValueError, RecursionError) as error:  # ValueError: also numbers of thousands of digits
            path = f"{where}.tool_calls[{j}].function.arguments"
            raise ApiError(400, f"{path} is not JSON: {error}", param=path) from error
        function = {"name": call.function.name, "arguments": arguments}
        given.append({"id": _short_id(call.id), "type": "function", "function": function})
    return PromptMessage("assistant", text, thought, {"tool_calls": given})


def _text(content: Content, where: str) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for i, part in enumerate(content):
        if isinstance(part, TextPart):
            texts.append(part.text)
        elif isinstance(part, RefusalPart):
            texts.append(part.refusal)
        else:
            path = f"{where}.content[{i}]"
            raise ApiError(400, f"{path}: this model reads text only", param=path, code="unsupported_content")
    return "".join(texts)


def _short_id(call_id: str) -> str:
    return hashlib.blake2b(call_id.encode("utf-8", "replace"), digest_size=8).hexdigest()[:_ID_LENGTH]


def tool_call_objects(calls: Sequence[ParsedToolCall], start: int | None = None) -> list[dict[str, Any]]:
    """Calls in the shape of the API; with their numbers from `start` on, for a stream."""
    found = []
    for i, call in enumerate(calls):
        sent: dict[str, Any] = {} if start is None else {"index": start + i}
        sent |= {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        found.append(sent)
    return found
