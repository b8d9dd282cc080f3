"""Request bodies of the Anthropic Messages API, with the fields that edgechat supports.

Unknown fields such as `metadata` and `cache_control` are ignored: caching is automatic. Content blocks are read by
`edgechat.serve.content`, so only the outline of a message is validated here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from edgechat.serve.schemas import MAX_STOPS, Count, Flag, FunctionName, Limit, Stop

Blocks = str | list[dict[str, Any]]
"""Content of a message: a text, or a list of content blocks."""


class InputMessage(Struct, frozen=True):
    """Message of the conversation. If the last message is from the assistant, the model continues it."""

    role: Literal["user", "assistant", "system"]
    content: Blocks


class AnthropicTool(Struct, frozen=True):
    """Tool that the model can call."""

    name: FunctionName
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    """JSON schema of the arguments. Tools that Anthropic defines have none, and are refused."""
    type: str | None = None
    strict: Flag | None = None


class AnthropicToolChoice(Struct, frozen=True):
    """Tools that the model may or must call."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: Flag | None = None


class ThinkingConfig(Struct, frozen=True):
    """Whether the model reasons before it replies, and the limit of the reasoning."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: Count | None = None
    """Maximum number of tokens of reasoning."""


class JsonOutputFormat(Struct, frozen=True):
    """Output format: JSON that matches a schema."""

    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(Struct, frozen=True):
    """Output format, and the effort that the model puts into its reasoning."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: JsonOutputFormat | None = None


class CountTokensRequest(Struct, frozen=True, kw_only=True):
    """Request body of /v1/messages/count_tokens."""

    messages: Annotated[list[InputMessage], Meta(min_length=1)]
    model: str | None = None
    system: Blocks | None = None
    tools: list[AnthropicTool] | None = None
    tool_choice: AnthropicToolChoice | None = None
    thinking: ThinkingConfig | None = None
    output_config: OutputConfig | None = None
    output_format: JsonOutputFormat | None = None
    """Output format in an earlier form of the API."""
    mcp_servers: Any = None
    """Unsupported; refused unless it is empty."""


class MessagesRequest(CountTokensRequest, frozen=True, kw_only=True):
    """Request body of /v1/messages."""

    max_tokens: Count
    stop_sequences: Annotated[list[Stop], Meta(max_length=MAX_STOPS)] | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    top_k: Limit | None = None
    top_p: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    stream: Flag | None = None
