"""What clients send: the bodies of the OpenAI API, as far as they mean something to a model on this machine.

Fields that are not named here are ignored, as clients send many that only their own services know.
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
"""A text, several, the tokens of one, or those of several."""

# What messages are made of


class TextPart(Struct, frozen=True, tag_field="type", tag="text"):
    """A piece of text."""

    text: str


class RefusalPart(Struct, frozen=True, tag_field="type", tag="refusal"):
    """A piece of an earlier answer that was a refusal."""

    refusal: str


class ImagePart(Struct, frozen=True, tag_field="type", tag="image_url"):
    """A picture; refused, since no model here sees any."""

    image_url: Any = None


class AudioPart(Struct, frozen=True, tag_field="type", tag="input_audio"):
    """A sound; refused."""

    input_audio: Any = None


class FilePart(Struct, frozen=True, tag_field="type", tag="file"):
    """A file; refused."""

    file: Any = None


Part = TextPart | RefusalPart | ImagePart | AudioPart | FilePart
Content = str | list[Part]


class FunctionCall(Struct, frozen=True):
    """What a tool was called with."""

    name: str
    arguments: str = "{}"
    """JSON, as text."""


class ToolCall(Struct, frozen=True):
    """A call in an earlier answer."""

    function: FunctionCall
    id: str = ""
    type: Literal["function"] = "function"


class SystemMessage(Struct, frozen=True, tag_field="role", tag="system"):
    """What the model is told before the conversation."""

    content: Content


class DeveloperMessage(Struct, frozen=True, tag_field="role", tag="developer"):
    """The same under its newer name."""

    content: Content


class UserMessage(Struct, frozen=True, tag_field="role", tag="user"):
    """What the user said."""

    content: Content


class AssistantMessage(Struct, frozen=True, tag_field="role", tag="assistant"):
    """What the model answered; at the end, an answer to go on with."""

    content: Content | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None


class ToolMessage(Struct, frozen=True, tag_field="role", tag="tool"):
    """What a tool said."""

    content: Content = ""
    tool_call_id: str = ""


ChatMessage = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage


# What an answer is to be


class Function(Struct, frozen=True):
    """A tool that the model may call."""

    name: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """A JSON schema."""
    strict: bool | None = None


class Tool(Struct, frozen=True):
    """A function by its only type."""

    function: Function
    type: Literal["function"] = "function"


class NamedFunction(Struct, frozen=True):
    """The name of a function."""

    name: str


class NamedTool(Struct, frozen=True):
    """A function that is to be called."""

    function: NamedFunction
    type: Literal["function"] = "function"


class TextFormat(Struct, frozen=True, tag_field="type", tag="text"):
    """Anything."""


class JsonFormat(Struct, frozen=True, tag_field="type", tag="json_object"):
    """Any JSON object."""


class JsonSchema(Struct, frozen=True):
    """A JSON schema with a name."""

    schema: dict[str, Any] | bool = True
    name: str = ""
    description: str | None = None
    strict: bool | None = None


class SchemaFormat(Struct, frozen=True, tag_field="type", tag="json_schema"):
    """JSON that a schema describes."""

    json_schema: JsonSchema


class StreamOptions(Struct, frozen=True):
    """What a stream holds besides."""

    include_usage: bool | None = None


class GenerationParams(Struct, frozen=True, kw_only=True):
    """How tokens are drawn, and when an answer ends; null is as if it were not there."""

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
    """Go on after the model's last word, as llama-server and vLLM know it: for measurements."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    """Ignored."""


class ChatRequest(GenerationParams, frozen=True, kw_only=True):
    """The body of /v1/chat/completions."""

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
    """Of these `enable_thinking` is looked at."""


class CompletionRequest(GenerationParams, frozen=True, kw_only=True):
    """The body of /v1/completions."""

    prompt: TextInput
    logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    echo: bool | None = None
    suffix: str | None = None


class EmbeddingsRequest(Struct, frozen=True, kw_only=True):
    """The body of /v1/embeddings."""

    input: TextInput
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: PositiveInt | None = None
    user: str | None = None
    """Ignored."""
