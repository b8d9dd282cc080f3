"""Request body of the OpenAI Responses API, with the fields that edgechat supports.

Unknown fields are ignored, and so are those that only OpenAI's service can use, such as `prompt_cache_key`, `user` and
`service_tier`. Input items are read by `openai_responses_items`, so only their outline is validated here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from edgechat.serve.schemas import (
    Count,
    Flag,
    FunctionName,
    Integer,
    JsonFormat,
    Limit,
    ReasoningOptions,
    TextFormat,
    ToolChoice,
    TopLogprobs,
)

Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]], Meta(max_length=16)
]


class ResponsesFunction(Struct, frozen=True):
    """Function that the model can call, or a custom tool, whose input is a text."""

    type: str
    name: FunctionName | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """JSON schema of the arguments of a function."""
    strict: Flag | None = None
    format: Any = None
    """Format of the input of a custom tool; only free text is supported."""


class ResponsesTool(ResponsesFunction, frozen=True):
    """Tool that the model can call, or a namespace of such tools."""

    tools: list[ResponsesFunction] | None = None
    """Tools of a namespace."""
    external_web_access: Flag | None = None
    """False for a web search that may not access the web. It is left out, because the model loses nothing by that."""


class NamedSchemaFormat(Struct, frozen=True, tag_field="type", tag="json_schema"):
    """Text format: JSON that matches a schema."""

    schema: dict[str, Any] | bool | None = None
    name: str | None = None
    description: str | None = None
    strict: Flag | None = None


class TextOptions(Struct, frozen=True):
    """Format of the text of a response."""

    format: TextFormat | JsonFormat | NamedSchemaFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    """Accepted without effect."""


class ResponsesReasoning(ReasoningOptions, frozen=True):
    """Reasoning options, with the summary that some clients show instead of the reasoning."""

    summary: str | None = None
    generate_summary: str | None = None
    """Earlier name of `summary`."""


class ResponsesRequest(Struct, frozen=True, kw_only=True):
    """Request body of /v1/responses and /v1/responses/input_tokens."""

    input: str | list[dict[str, Any]] | None = None
    """Text of the user, or a list of messages, tool calls, tool results and reasoning."""
    instructions: str | None = None
    """System prompt, which applies to this response only."""
    previous_response_id: str | None = None
    model: str | None = None
    max_output_tokens: Count | None = None
    max_tool_calls: Limit | None = None
    """Limit of hosted tools, which edgechat does not have; accepted without effect."""
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    tools: list[ResponsesTool] | None = None
    tool_choice: str | ToolChoice | None = None
    parallel_tool_calls: Flag | None = None
    text: TextOptions | None = None
    reasoning: ResponsesReasoning | None = None
    stream: Flag | None = None
    store: Flag | None = None
    """False to keep nothing of the response; the default is true."""
    metadata: Metadata | None = None
    truncation: Literal["auto", "disabled"] | None = None
    """`auto` has the same effect as `disabled`: a prompt that does not fit is refused."""
    include: list[str] | None = None
    """`message.output_text.logprobs` and `reasoning.encrypted_content`; other values have no effect."""
    top_logprobs: TopLogprobs | None = None

    # Extensions with the names and meanings of chat completions.
    top_k: Limit | None = None
    min_p: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    seed: Integer | None = None

    # Unsupported fields, which are refused.
    background: Any = None
    conversation: Any = None
    prompt: Any = None

    # Fields of other APIs, which are refused because a response that ignored them would not be what was asked for.
    messages: Any = None
    max_tokens: Any = None
    max_completion_tokens: Any = None
    response_format: Any = None
    reasoning_effort: Any = None
    functions: Any = None
    grammar: Any = None
    json_schema: Any = None
    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    regex: Any = None
