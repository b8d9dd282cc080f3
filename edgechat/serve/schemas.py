"""Request bodies of the OpenAI API, with the fields that edgechat supports.

Unknown fields are ignored, because many clients send fields that only certain services use.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

MAX_STOPS = 16
MAX_TOP_LOGPROBS = 20

Probability = Annotated[float, Meta(ge=0.0, le=1.0)]
Penalty = Annotated[float, Meta(ge=-2.0, le=2.0)]
PositiveInt = Annotated[int, Meta(ge=1, le=1 << 24)]
Stop = Annotated[str, Meta(max_length=1024)]
TokenId = Annotated[int, Meta(ge=0, le=1 << 31)]
TextInput = str | list[str | TokenId | list[TokenId]]
"""Input of a request: a text, a list of texts, a list of token IDs, or a list of token ID lists."""

# Messages


class TextPart(Struct, frozen=True, tag_field="type", tag="text"):
    """Text content of a message."""

    text: str


class RefusalPart(Struct, frozen=True, tag_field="type", tag="refusal"):
    """Refusal content of an earlier reply."""

    refusal: str


class ImagePart(Struct, frozen=True, tag_field="type", tag="image_url"):
    """Image content of a message; not supported."""

    image_url: Any = None


class AudioPart(Struct, frozen=True, tag_field="type", tag="input_audio"):
    """Audio content of a message; not supported."""

    input_audio: Any = None


class FilePart(Struct, frozen=True, tag_field="type", tag="file"):
    """File content of a message; not supported."""

    file: Any = None


ContentPart = TextPart | RefusalPart | ImagePart | AudioPart | FilePart
Content = str | list[ContentPart]


class FunctionCall(Struct, frozen=True):
    """Function name and arguments of a tool call."""

    name: str
    arguments: str = "{}"
    """Arguments as a JSON object, encoded as text."""


class ToolCall(Struct, frozen=True):
    """Tool call in an earlier reply."""

    function: FunctionCall
    id: str = ""
    type: Literal["function"] = "function"


class SystemMessage(Struct, frozen=True, tag_field="role", tag="system"):
    """System prompt of the conversation."""

    content: Content


class DeveloperMessage(Struct, frozen=True, tag_field="role", tag="developer"):
    """System prompt of the conversation, with the role name that newer versions of the OpenAI API use."""

    content: Content


class UserMessage(Struct, frozen=True, tag_field="role", tag="user"):
    """Message that the user wrote."""

    content: Content


class AssistantMessage(Struct, frozen=True, tag_field="role", tag="assistant"):
    """Earlier reply of the model. If it is the last message of the request, the model continues it."""

    content: Content | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None


class ToolMessage(Struct, frozen=True, tag_field="role", tag="tool"):
    """Result of a tool call."""

    content: Content = ""
    tool_call_id: str = ""


ChatMessage = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage


# Request bodies and their options


class Function(Struct, frozen=True):
    """Function that the model can call."""

    name: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """JSON schema of the arguments."""
    strict: bool | None = None


class Tool(Struct, frozen=True):
    """Tool that the model can call. Functions are the only type of tool."""

    function: Function
    type: Literal["function"] = "function"


class NamedFunction(Struct, frozen=True):
    """Name of a function in `tools`."""

    name: str


class NamedTool(Struct, frozen=True):
    """Tool choice that requires a call of the named function."""

    function: NamedFunction
    type: Literal["function"] = "function"


class TextFormat(Struct, frozen=True, tag_field="type", tag="text"):
    """Response format: free text."""


class JsonFormat(Struct, frozen=True, tag_field="type", tag="json_object"):
    """Response format: any JSON object."""


class JsonSchema(Struct, frozen=True):
    """Named JSON schema of a response format."""

    schema: dict[str, Any] | bool = True
    name: str = ""
    description: str | None = None
    strict: bool | None = None


class SchemaFormat(Struct, frozen=True, tag_field="type", tag="json_schema"):
    """Response format: JSON that matches a schema."""

    json_schema: JsonSchema


class StreamOptions(Struct, frozen=True):
    """Options of a streamed response."""

    include_usage: bool | None = None


class GenerationParams(Struct, frozen=True, kw_only=True):
    """Sampling parameters and length limit of a reply; null values and missing fields have the same meaning."""

    model: str | None = None
    max_tokens: PositiveInt | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Meta(ge=-1, le=1 << 20)] | None = None
    min_p: Probability | None = None
    repeat_penalty: Annotated[float, Meta(ge=0.1, le=10.0)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: int | None = None
    stop: Stop | Annotated[list[Stop], Meta(max_length=MAX_STOPS)] | None = None
    n: PositiveInt | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100.0, le=100.0)]] | None = None
    ignore_eos: bool | None = None
    """True to generate beyond end-of-generation tokens in benchmarks, as in llama-server and vLLM."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    """End-user ID of the OpenAI API; ignored."""


class ChatRequest(GenerationParams, frozen=True, kw_only=True):
    """Request body of /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    max_completion_tokens: PositiveInt | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    response_format: TextFormat | JsonFormat | SchemaFormat | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    """Template variables, of which only `enable_thinking` has an effect."""


class CompletionRequest(GenerationParams, frozen=True, kw_only=True):
    """Request body of /v1/completions."""

    prompt: TextInput
    logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    echo: bool | None = None
    suffix: str | None = None


class EmbeddingsRequest(Struct, frozen=True, kw_only=True):
    """Request body of /v1/embeddings."""

    input: TextInput
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: PositiveInt | None = None
    user: str | None = None
    """End-user ID of the OpenAI API; ignored."""
