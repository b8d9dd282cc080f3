"""Request bodies of the Ollama API. Unknown fields and options are ignored, as Ollama does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta, Struct

from edgechat.config import BOUNDS
from edgechat.serve.message_schemas import Content
from edgechat.serve.schemas import MAX_STOPS, Flag, Integer, MirostatVersion, Stop, Tool, ToolChoice, TopLogprobs


def _bounds_of(setting: str) -> Meta:
    low, high = BOUNDS[setting]
    return Meta(ge=low, le=high)


ThinkLevel = Literal["low", "medium", "high", "max"]
OutputSchema = dict[str, Any] | str | None
"""Output format: `json`, a JSON schema as an object or as a string, or "" for free text."""
if TYPE_CHECKING:
    Think = bool | ThinkLevel
else:
    Think = bool | ThinkLevel | None


class OllamaOptions(Struct, frozen=True, kw_only=True):
    """Sampling options under Ollama's names. Options that configure Ollama's process, such as `num_gpu`, are ignored.

    The context grows by itself, so that `num_ctx` has no effect, and penalties always count the last 64 tokens.
    """

    num_ctx: Any = None
    num_predict: Integer | None = None
    """Maximum number of generated tokens; 0 or less for as many as fit in the context."""
    temperature: Annotated[float, _bounds_of("temperature")] | None = None
    top_k: Integer | None = None
    top_p: Annotated[float, _bounds_of("top_p")] | None = None
    min_p: Annotated[float, _bounds_of("min_p")] | None = None
    typical_p: Annotated[float, _bounds_of("typical_p")] | None = None
    repeat_last_n: Integer | None = None
    """0 turns all penalties off; other values have no effect."""
    repeat_penalty: Annotated[float, _bounds_of("repeat_penalty")] | None = None
    presence_penalty: Annotated[float, _bounds_of("presence_penalty")] | None = None
    frequency_penalty: Annotated[float, _bounds_of("frequency_penalty")] | None = None
    mirostat: MirostatVersion | None = None
    mirostat_tau: Annotated[float, _bounds_of("mirostat_tau")] | None = None
    mirostat_eta: Annotated[float, _bounds_of("mirostat_eta")] | None = None
    seed: Integer | None = None
    stop: Stop | Annotated[list[Stop], Meta(max_length=MAX_STOPS)] | None = None


class OllamaFunctionCall(Struct, frozen=True):
    """Function name and arguments of a tool call."""

    name: str
    arguments: Any = None


class OllamaToolCall(Struct, frozen=True):
    """Tool call in an earlier reply."""

    function: OllamaFunctionCall
    id: str | None = None


class OllamaMessage(Struct, frozen=True):
    """Message of a conversation."""

    role: str
    content: Content = None
    thinking: str | None = None
    images: list[Any] | None = None
    tool_calls: list[OllamaToolCall] | None = None
    tool_name: str | None = None
    """Name of the tool whose result the message contains."""
    name: str | None = None
    """Same as `tool_name`, under the name that older clients use."""
    tool_call_id: str | None = None


class OllamaGenerationParams(Struct, frozen=True, kw_only=True):
    """Fields that chats and completions have in common; null values and missing fields have the same meaning."""

    model: str | None = None
    stream: Flag | None = None
    """Whether the response is a stream; true by default."""
    format: OutputSchema = None
    options: OllamaOptions | None = None
    think: Think | None = None
    """True or false, or the amount of reasoning."""
    keep_alive: float | str | None = None
    """Accepted without an effect: a served model stays loaded."""
    logprobs: Flag | None = None
    top_logprobs: TopLogprobs | None = None


class OllamaChatRequest(OllamaGenerationParams, frozen=True, kw_only=True):
    """Request body of /api/chat."""

    messages: list[OllamaMessage] | None = None
    tools: list[Tool] | None = None
    tool_choice: str | ToolChoice | None = None
    """Extension: as in the OpenAI API. Ollama has no such field."""


class OllamaGenerateRequest(OllamaGenerationParams, frozen=True, kw_only=True):
    """Request body of /api/generate."""

    prompt: str | None = None
    system: str | None = None
    raw: Flag | None = None
    """True to give `prompt` to the model without the chat template."""
    context: Any = None
    """Ignored: earlier tokens, which newer versions of Ollama do not use either."""

    # Unsupported fields, which are refused.
    suffix: str | None = None
    template: str | None = None
    images: list[Any] | None = None


class OllamaEmbedRequest(Struct, frozen=True, kw_only=True):
    """Request body of /api/embed."""

    model: str | None = None
    input: str | list[str] | None = None
    truncate: Flag | None = None
    """False to refuse inputs that are longer than the context, instead of truncating them."""
    dimensions: Annotated[int, Meta(ge=0, le=1 << 24)] | None = None
    """Number of values of each embedding; 0 for all."""
    keep_alive: float | str | None = None
    options: dict[str, Any] | None = None


class OllamaEmbeddingsRequest(Struct, frozen=True, kw_only=True):
    """Request body of /api/embeddings."""

    model: str | None = None
    prompt: str | None = None
    keep_alive: float | str | None = None
    options: dict[str, Any] | None = None


class OllamaModelRequest(Struct, frozen=True, kw_only=True):
    """Request body of /api/show and /api/pull."""

    model: str | None = None
    name: str | None = None
    """Same as `model`, under the name that older clients use."""
    verbose: Flag | None = None
    stream: Flag | None = None

    @property
    def model_name(self) -> str:
        return self.model or self.name or ""
