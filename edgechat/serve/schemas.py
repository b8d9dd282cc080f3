"""Request bodies of the OpenAI API, with the fields that edgechat supports.

Unknown fields are ignored, because many clients send fields that only certain services use. Known fields that request
unsupported features are declared as `Any` here, and refused by `output_format.check_supported`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from msgspec import Meta, Struct, structs

from edgechat.config import BOUNDS
from edgechat.serve.message_schemas import ChatMessage

MAX_STOPS = 16
MAX_TOP_LOGPROBS = 20

PositiveInt = Annotated[int, Meta(ge=1, le=1 << 24)]
MAX_INT: Final = 1 << 53
"""Highest integer of requests: many clients write JSON numbers above it inexactly."""
if TYPE_CHECKING:
    Integer = int
    Limit = int
    Count = int
    TopLogprobs = int
    Flag = bool
    MirostatVersion = int
    DryLength = int
    DryWindow = int
else:
    # Some clients write integers with a fraction, such as 100.0, which `GenerationParams` converts. Some clients write
    # booleans as 0 and 1.

    def _make_bounded_type(ge: float, le: float) -> object:
        return Annotated[int, Meta(ge=ge, le=le)] | Annotated[float, Meta(ge=ge, le=le, multiple_of=1)]

    Integer = int | Annotated[float, Meta(multiple_of=1)]
    Limit = _make_bounded_type(-1, MAX_INT)
    Count = _make_bounded_type(1, 1 << 24)
    TopLogprobs = _make_bounded_type(0, MAX_TOP_LOGPROBS)
    MirostatVersion = _make_bounded_type(*BOUNDS["mirostat"])
    DryLength = _make_bounded_type(*BOUNDS["dry_allowed_length"])
    DryWindow = _make_bounded_type(*BOUNDS["dry_penalty_last_n"])
    Flag = bool | Annotated[int, Meta(ge=0, le=1)]


def _bounds_of(setting: str) -> Meta:
    """Return the bounds of the sampler setting `setting`, which those of the field in requests are, too."""
    low, high = BOUNDS[setting]
    return Meta(ge=low, le=high)


Stop = Annotated[str, Meta(max_length=1024)]
TokenId = Annotated[int, Meta(ge=0, le=1 << 31)]
TextInput = str | list[str | TokenId | list[TokenId]]
"""Input of a request: a string, a list of strings, a list of token IDs, or a list of token ID lists."""


# Function names of the OpenAI API and of MCP servers (`mcp:server/tool`). The pattern excludes a final newline, because
# `$` in Python also matches before it.
_NAME_PATTERN: Final = r"^[a-zA-Z0-9_.:/@-]{1,128}$(?!\n)"
PATTERN_DESCRIPTIONS: Final = {_NAME_PATTERN: "must have 1 to 128 letters, digits or characters of _ . : / @ -"}
"""Descriptions of the regular expressions in this module, for error messages."""
FunctionName = Annotated[str, Meta(pattern=_NAME_PATTERN)]


class Function(Struct, frozen=True):
    """Function that the model can call."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """JSON schema of the arguments."""
    strict: Flag | None = None


class Tool(Struct, frozen=True):
    """Tool that the model can call. Functions are the only type of tool."""

    function: Function
    type: Literal["function"] | None = None


class NamedFunction(Struct, frozen=True):
    """Name of a function in `tools`."""

    name: str


class AllowedTool(Struct, frozen=True):
    """Entry of `allowed_tools`: the name of a function that the model may call."""

    function: NamedFunction | None = None
    name: str | None = None
    """Name of the function in the Responses API."""


class AllowedTools(Struct, frozen=True):
    """Subset of `tools` that the model may call."""

    mode: str | None = None
    """`auto` or `required`."""
    tools: list[AllowedTool] | None = None


class ToolChoice(Struct, frozen=True):
    """Tool choice as an object, in the forms of several APIs."""

    type: str | None = None
    """`auto`, `none`, `any` or `required`; with a name, `function` or `tool`; or `allowed_tools`."""
    function: NamedFunction | None = None
    name: str | None = None
    """Name of the function in the Responses API and in Anthropic's API."""
    allowed_tools: AllowedTools | None = None
    mode: str | None = None
    """Mode of `allowed_tools` in the Responses API."""
    tools: list[AllowedTool] | None = None
    """Functions of `allowed_tools` in the Responses API."""


class TextFormat(Struct, frozen=True, tag_field="type", tag="text"):
    """Response format: free text."""


class JsonFormat(Struct, frozen=True, tag_field="type", tag="json_object"):
    """Response format: any JSON object, or an object that matches `schema`."""

    schema: dict[str, Any] | None = None
    """Extension of llama.cpp, llama-cpp-python and Together."""


class JsonSchema(Struct, frozen=True):
    """Named JSON schema of a response format."""

    schema: dict[str, Any] | bool | None = None
    name: str | None = None
    description: str | None = None
    strict: Flag | None = None


class SchemaFormat(Struct, frozen=True, tag_field="type", tag="json_schema"):
    """Response format: JSON that matches a schema."""

    json_schema: JsonSchema | None = None
    schema: dict[str, Any] | bool | None = None
    """Extension of llama.cpp: the schema without a name."""


class StructuredOutputs(Struct, frozen=True):
    """Output format in the API of vLLM; requests set one of the fields."""

    json: dict[str, Any] | str | None = None
    """JSON schema as an object or as a string."""
    regex: str | None = None
    choice: list[str] | None = None
    json_object: Flag | None = None
    grammar: Any = None
    structural_tag: Any = None


class ReasoningOptions(Struct, frozen=True):
    """Reasoning options of OpenRouter."""

    effort: str | None = None
    max_tokens: Limit | None = None
    """Maximum number of tokens of reasoning; -1 for no limit."""
    enabled: Flag | None = None


class ThinkingOptions(Struct, frozen=True):
    """Reasoning options of Anthropic, DeepSeek and GLM."""

    type: Literal["enabled", "disabled", "adaptive", "auto"] = "enabled"
    """`disabled` for no reasoning; the other values enable reasoning."""
    budget_tokens: Limit | None = None
    """Maximum number of tokens of reasoning; -1 for no limit."""


class StreamOptions(Struct, frozen=True):
    """Options of a streamed response."""

    include_usage: Flag | None = None


_INTEGER_FIELDS: Final = (
    "max_tokens", "max_completion_tokens", "top_k", "seed", "n", "logprobs", "top_logprobs", "best_of",
    "mirostat", "dry_allowed_length", "dry_penalty_last_n",
)  # fmt: skip


class GenerationParams(Struct, frozen=True, kw_only=True):
    """Sampling parameters and length limit of a reply; null values and missing fields have the same meaning."""

    model: str | None = None
    max_tokens: Limit | None = None
    """Maximum number of generated tokens; -1 for as many as fit in the context."""
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] | None = None
    """The maximum is that of the OpenAI API; the setting allows more."""
    top_p: Annotated[float, _bounds_of("top_p")] | None = None
    top_k: Limit | None = None
    min_p: Annotated[float, _bounds_of("min_p")] | None = None
    typical_p: Annotated[float, _bounds_of("typical_p")] | None = None
    top_n_sigma: Annotated[float, _bounds_of("top_n_sigma")] | None = None
    xtc_probability: Annotated[float, _bounds_of("xtc_probability")] | None = None
    xtc_threshold: Annotated[float, _bounds_of("xtc_threshold")] | None = None
    dynatemp_range: Annotated[float, _bounds_of("dynatemp_range")] | None = None
    dynatemp_exponent: Annotated[float, _bounds_of("dynatemp_exponent")] | None = None
    mirostat: MirostatVersion | None = None
    mirostat_tau: Annotated[float, _bounds_of("mirostat_tau")] | None = None
    mirostat_eta: Annotated[float, _bounds_of("mirostat_eta")] | None = None
    repeat_penalty: Annotated[float, _bounds_of("repeat_penalty")] | None = None
    presence_penalty: Annotated[float, _bounds_of("presence_penalty")] | None = None
    frequency_penalty: Annotated[float, _bounds_of("frequency_penalty")] | None = None
    dry_multiplier: Annotated[float, _bounds_of("dry_multiplier")] | None = None
    dry_base: Annotated[float, _bounds_of("dry_base")] | None = None
    dry_allowed_length: DryLength | None = None
    dry_penalty_last_n: DryWindow | None = None
    """Number of recent tokens that are searched for repetitions; -1 for all."""
    seed: Integer | None = None
    stop: Stop | Annotated[list[Stop], Meta(max_length=MAX_STOPS)] | None = None
    n: Count | None = None
    best_of: Count | None = None
    """Number of replies of which the best `n` are returned: those with the highest mean logprob, unless `pick` is set.
    Not part of the OpenAI API for chat completions."""
    pick: Literal["agree", "likely", "judge"] | None = None
    """Extension: how to pick one of `best_of` replies: the most frequent answer, the highest mean logprob, or the
    model's own comparison."""
    logit_bias: dict[str, Annotated[float, Meta(ge=-100.0, le=100.0)]] | None = None
    stop_repetition: Flag | None = None
    """True to end reasoning and replies that repeat the same passage over and over."""
    ignore_eos: Flag | None = None
    """True to generate beyond end-of-generation tokens in benchmarks, as in llama-server and vLLM."""
    stream: Flag | None = None
    stream_options: StreamOptions | None = None
    user: Any = None
    """End-user ID of the OpenAI API; ignored."""
    return_progress: Flag | None = None
    """True to add chunks with the prefill progress to a stream, as in llama-server."""
    sse_ping_interval: Annotated[float, Meta(ge=-1.0, le=86400.0)] | None = None
    """Seconds between keep-alive comments in a silent stream, as in llama-server; -1 for no comments."""

    # Output formats of llama.cpp (`json_schema`), vLLM and SGLang (`regex`).
    json_schema: dict[str, Any] | bool | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    regex: str | None = None

    # Unsupported fields, which are refused.
    grammar: Any = None
    guided_grammar: Any = None
    ebnf: Any = None
    prompt_logprobs: Any = None
    use_beam_search: Any = None

    def __post_init__(self) -> None:
        """Convert floats without a fraction to integers."""
        for name in _INTEGER_FIELDS:
            value = getattr(self, name, None)
            if isinstance(value, float):
                structs.force_setattr(self, name, int(value))


class ChatRequest(GenerationParams, frozen=True, kw_only=True):
    """Request body of /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    max_completion_tokens: Limit | None = None
    logprobs: Flag | None = None
    top_logprobs: TopLogprobs | None = None
    response_format: TextFormat | JsonFormat | SchemaFormat | None = None
    tools: list[Tool] | None = None
    tool_choice: str | ToolChoice | None = None
    """`auto`, `none`, `required`, or the function that must be called."""
    parallel_tool_calls: Flag | None = None
    reasoning_effort: str | None = None
    """`none` or `minimal` for no reasoning, `low`, `medium` or `high` for a limit, `xhigh` or `max` for no limit."""
    reasoning: ReasoningOptions | None = None
    thinking: ThinkingOptions | Flag | None = None
    enable_thinking: Flag | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    """Template variables, of which only `enable_thinking` and `thinking` have an effect."""
    add_generation_prompt: Flag | None = None
    """False to end the prompt of /apply-template after the last message. Without effect on chat completions."""
    continue_final_message: Flag | None = None
    """Has no effect: a final message of the assistant is always continued."""

    # Unsupported fields, which are refused.
    functions: Any = None
    audio: Any = None
    modalities: Any = None
    web_search_options: Any = None


class CompletionRequest(GenerationParams, frozen=True, kw_only=True):
    """Request body of /v1/completions."""

    prompt: TextInput
    logprobs: TopLogprobs | None = None
    echo: Flag | None = None
    suffix: str | None = None


class EmbeddingsRequest(Struct, frozen=True, kw_only=True):
    """Request body of /v1/embeddings."""

    input: TextInput
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: PositiveInt | None = None
    user: Any = None
    """End-user ID of the OpenAI API; ignored."""
