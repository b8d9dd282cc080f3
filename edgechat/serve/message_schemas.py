"""Messages of chat requests.

Clients send many variants of content parts and tool calls, so only the outline of a message is validated here.
`edgechat.serve.content` reads the parts.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

Content = Annotated[
    str | list[Any] | dict[str, Any] | None,
    Meta(description="A string, a content part, or a list of strings and content parts. Only text is supported."),
]
ResultContent = Annotated[Any, Meta(description="A string, a list of content parts, or any other JSON value.")]


class FunctionCall(Struct, frozen=True):
    """Function name and arguments of a tool call."""

    name: str
    arguments: Any = None
    """Arguments as a JSON object or, in the OpenAI API, as a string that contains a JSON object."""


class ToolCall(Struct, frozen=True):
    """Tool call in an earlier reply."""

    function: FunctionCall
    id: Any = None
    type: Any = None


class SystemMessage(Struct, frozen=True, tag_field="role", tag="system"):
    """System prompt of the conversation."""

    content: Content = None


class DeveloperMessage(Struct, frozen=True, tag_field="role", tag="developer"):
    """System prompt of the conversation, with the role name that newer versions of the OpenAI API use."""

    content: Content = None


class UserMessage(Struct, frozen=True, tag_field="role", tag="user"):
    """Message that the user wrote."""

    content: Content = None


class AssistantMessage(Struct, frozen=True, tag_field="role", tag="assistant"):
    """Earlier reply of the model. If it is the last message of the request, the model continues it."""

    content: Content = None
    reasoning_content: Any = None
    reasoning: Any = None
    """Same as `reasoning_content`, under the name that OpenRouter and newer versions of vLLM use."""
    tool_calls: list[ToolCall] | None = None
    function_call: FunctionCall | None = None
    """Tool call of older versions of the OpenAI API."""


class ToolMessage(Struct, frozen=True, tag_field="role", tag="tool"):
    """Result of a tool call."""

    content: ResultContent = None
    tool_call_id: Any = None


class FunctionMessage(Struct, frozen=True, tag_field="role", tag="function"):
    """Result of a tool call in older versions of the OpenAI API."""

    content: ResultContent = None


ChatMessage = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage | FunctionMessage
