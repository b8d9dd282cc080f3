"""From the messages of a request to what a template is given."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Final

from edgechat.prompt.renderer import PromptMessage
from edgechat.prompt.tool_formats import Call, ToolFormat, explained
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
    found: list[PromptMessage] = []
    if tools and not form.is_native:
        found.append(PromptMessage("system", explained(tools)))
    for i, message in enumerate(messages):
        new = _message(message, f"messages[{i}]", form)
        last = found[-1] if found else None
        if last is not None and last.role == new.role and new.role in {"system", "user"}:
            both = f"{last.content}\n\n{new.content}" if last.content else new.content
            found[-1] = PromptMessage(new.role, both)
        else:
            found.append(new)
    return found


def _message(message: ChatMessage, where: str, form: ToolFormat) -> PromptMessage:
    if isinstance(message, AssistantMessage):
        return _assistant_message(message, where, form)
    text = _text(message.content, where)
    if isinstance(message, ToolMessage):
        if form.is_native:
            return PromptMessage("tool", text, extra={"tool_call_id": _short_id(message.tool_call_id)})
        return PromptMessage("user", f"<tool_response>\n{text}\n</tool_response>")
    return PromptMessage("user" if isinstance(message, UserMessage) else "system", text)


def _assistant_message(message: AssistantMessage, where: str, form: ToolFormat) -> PromptMessage:
    text = _text(message.content or "", where)
    thought = message.reasoning_content or ""
    calls = message.tool_calls or []
    if not calls:
        return PromptMessage("assistant", text, thought)
    if not form.is_native:
        said = form.written([(call.function.name, call.function.arguments) for call in calls])
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


def tool_call_objects(calls: Sequence[Call], start: int | None = None) -> list[dict[str, Any]]:
    """Calls in the shape of the API; with their numbers from `start` on, for a stream."""
    found = []
    for i, call in enumerate(calls):
        sent: dict[str, Any] = {} if start is None else {"index": start + i}
        sent |= {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        found.append(sent)
    return found
