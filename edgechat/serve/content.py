"""Message content: reads text, reasoning, tool calls and tool results from the content parts of several APIs.

Supports the parts of the OpenAI, Anthropic, Mistral and Vercel APIs. Images, audio, video and files are refused,
because a reply that ignored them would not be what the client asked for. Skips parts of earlier replies that only the
service that generated them can read, such as encrypted reasoning.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from edgechat.serve.errors import ApiError
from edgechat.serve.message_schemas import FunctionCall, ToolCall

_TEXT_TYPES: Final = frozenset(("text", "input_text", "output_text"))
_REASONING_TYPE: Final = re.compile("thinking|reasoning|thought|summary_text")
_CALL_TYPES: Final = frozenset(("tool_use", "tool-call", "tool_call", "function_call"))
_RESULT_TYPES: Final = frozenset(("tool_result", "tool-result", "function_call_output"))
_MEDIA_TYPE: Final = re.compile(
    "(input_|output_)?(image|audio|video|file|document|media|pdf|blob)([_-](url|file|data))?"
)
# Fields that distinguish media parts from data, such as the tool result {"type": "file", "name": "a.txt"}.
_MEDIA_FIELDS: Final = frozenset((
    "image_url", "input_audio", "audio_url", "video_url", "image", "audio", "video", "file_data", "file_id", "source",
    "data", "blob", "mimeType", "mime_type", "media_type", "inline_data",
))  # fmt: skip
_TEXT_FIELDS: Final = ("text", "thinking", "reasoning", "content", "summary", "refusal")


class MessageContent(NamedTuple):
    """Content of one message, by kind."""

    text: str
    reasoning: str
    calls: list[ToolCall]
    results: list[tuple[object, str]]
    """Tool call ID and text of each tool result."""


def read_content(content: Any, path: str, *, is_reply: bool) -> MessageContent:
    """Read the content of a message that is not a tool result; `path` is its location in the request.

    Raises ApiError for media, and for other parts that contain no text. In replies of the model (`is_reply`), parts of
    unknown types that contain no text are skipped instead.
    """
    texts, thoughts, calls, results = [], [], [], []
    parts = content if isinstance(content, list) else [content]
    for i, part in enumerate(parts):
        part_path = f"{path}[{i}]" if isinstance(content, list) else path
        part_type = _get_type(part)
        if not isinstance(part, dict) or part_type in _TEXT_TYPES:
            texts.append(_read_text(part, part_path))
        elif part_type in _CALL_TYPES:
            calls.append(_read_call(part, part_path))
        elif part_type in _RESULT_TYPES:
            call_id = _get_first(part, "tool_use_id", "toolCallId", "call_id", "id")
            result = _get_first(part, "content", "output", "result")
            results.append((call_id, read_result(result, part_path)))
        elif _REASONING_TYPE.search(part_type):
            thoughts.append(_find_text(part))
        elif _is_media(part, part_type):
            raise _make_content_error(part_path)
        elif "text" in part or "refusal" in part:
            texts.append(_read_text(part, part_path))
        elif not is_reply:
            raise _make_content_error(part_path)
    return MessageContent("".join(texts), "".join(thoughts), calls, results)


def read_result(content: Any, path: str) -> str:
    """Return the text of a tool result: its text parts, or else the result as JSON. Raises ApiError for media."""
    parts = content if isinstance(content, list) else [content]
    for part in parts:
        if isinstance(part, dict) and _is_media(part, _get_type(part)) and not _MEDIA_FIELDS.isdisjoint(part):
            raise _make_content_error(path)
    if all(_is_result_text(part) for part in parts):
        return "".join(_find_text(part) for part in parts)
    if isinstance(content, list) and all(_get_type(part) in _RESULT_TYPES for part in content):
        return "".join(text for _, text in read_content(content, path, is_reply=False).results)
    return json.dumps(content, ensure_ascii=False)


def _is_result_text(part: Any) -> bool:
    if isinstance(part, dict):
        return isinstance(part.get("text"), str | None) and (_get_type(part) in _TEXT_TYPES or part.keys() == {"text"})
    return isinstance(part, str | None)


def _read_call(part: Mapping[str, Any], path: str) -> ToolCall:
    name = _get_first(part, "name", "toolName")
    if not isinstance(name, str):
        raise ApiError(400, f"{path}: a tool call needs the name of the tool.", param=path)
    arguments = _get_first(part, "input", "args", "arguments")
    return ToolCall(FunctionCall(name, arguments), _get_first(part, "call_id", "toolCallId", "id"))


def _read_text(part: Any, path: str) -> str:
    """Return the text of a content part. Raises ApiError if its text field is an object or a list."""
    text = _get_first(part, "text", "content", "refusal") if isinstance(part, dict) else part
    if isinstance(text, (dict, list)):
        raise _make_content_error(path)
    return text if isinstance(text, str) else "" if text is None else json.dumps(text)


def _find_text(value: Any) -> str:
    """Return the text of a reasoning part or a result part; join the texts of a list."""
    if isinstance(value, list):
        return "".join(map(_find_text, value))
    if isinstance(value, dict):
        return next((text for name in _TEXT_FIELDS if (text := _find_text(value.get(name)))), "")
    return value if isinstance(value, str) else ""


def _get_type(part: Any) -> str:
    part_type = part.get("type") if isinstance(part, dict) else None
    return part_type if isinstance(part_type, str) else ""


def _get_first(part: Mapping[str, Any], *names: str) -> Any:
    return next((part[name] for name in names if part.get(name) is not None), None)


def _is_media(part: Mapping[str, Any], part_type: str) -> bool:
    names = [part_type] if part_type or "text" in part else part
    return any(map(_MEDIA_TYPE.fullmatch, names))


def _make_content_error(path: str) -> ApiError:
    return ApiError(400, f"{path}: only text is supported.", param=path, code="unsupported_content")
