"""Messages between a client, which sends requests, and its engine process, which answers with events.

A frame is a 4-byte big-endian length and a msgpack object that is tagged with the name of its type. Each request has an
`id`; all events of the request carry that id, and the last of them is one of `FINAL_EVENTS`.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from edgechat.config import Sampling
from edgechat.errors import EngineError
from edgechat.hardware.gpu import Gpu
from edgechat.planner.load_plan import LoadPlan
from edgechat.planner.memory import LoadOptions
from edgechat.planner.requantize import QuantModel
from edgechat.planner.throughput import KernelSpeeds

MAX_FRAME_BYTES: Final = 64 << 20


class Request(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Base class of requests."""

    id: int


class Load(Request, frozen=True):
    """Load a model and create its context, replacing the loaded model. Events: BackendTesting, LoadProgressed."""

    plan: LoadPlan
    prefix_dir: str = ""
    """Directory of the prefix cache on disk; "" disables the disk cache."""


class ProbeMemory(Request, frozen=True):
    """Measure the size of llama.cpp's buffers without loading weights. Events: BackendTesting."""

    model_path: str
    """A model file; only its header is read, so the rest of the file may be missing."""
    options: LoadOptions


class ListDevices(Request, frozen=True):
    """List the usable GPUs and the measured kernel speeds of the backend. Events: BackendTesting."""

    benchmark: bool = False
    """Run the kernel benchmark if no result is saved; the benchmark takes a few seconds."""
    remeasure: bool = False
    """With `benchmark`, ignore the saved result."""


class ListQuantTypes(Request, frozen=True):
    """List the ggml type that llama.cpp would give each tensor under a quantisation preset."""

    model: QuantModel
    preset: int


class Embed(Request, frozen=True):
    """Compute embeddings with an embedding model."""

    inputs: list[list[int]]
    """Texts to embed, each as a list of tokens."""


class Tokenize(Request, frozen=True):
    """Tokenise text in the same way as a prompt."""

    text: str
    guard: str = ""
    """Guard character of the renderer; see `Generate.guard`."""


class Generate(Request, frozen=True):
    """Generate text after a prompt, which is given as rendered text or as tokens."""

    text: str = ""
    guard: str = ""
    """Character that the renderer inserted into control tokens in user text, so that they are tokenised as plain text.
    The engine removes the character."""
    tokens: list[int] | None = None
    max_tokens: int | None = None
    forced_tokens: list[int] | None = None
    """Tokens to generate regardless of the sampler (for benchmarks)."""
    ignore_eog: bool = False
    """Continue after an end-of-generation token (for benchmarks)."""
    sampling: Sampling = Sampling()
    visible_control_tokens: list[str] = []
    """Control tokens whose text is part of the output, such as the markers around reasoning."""
    n_sequences: int = 1
    """Number of replies to generate in parallel from the same prompt."""
    stop: list[str] = []
    """Stop strings; the output ends before the first one."""
    grammar: str = ""
    """Grammar for the output in the syntax of `edgechat.runtime.grammar`; "" allows any text."""
    logit_bias: dict[int, float] = {}
    """Value to add to a token's logit, by token."""
    n_logprobs: int | None = None
    """Number of most likely tokens to return per position, with the logprob of each; None returns no logprobs."""
    conversation: str = ""
    """Conversation id under which prefixes and drafts may be saved on disk; "" saves nothing."""
    turn_starts: list[int] = []
    """Token positions at which a later prompt may diverge; a model that cannot truncate saves its state there."""
    bypass_cache: bool = False
    """Compute the whole prompt without the prefix cache (for benchmarks and strict mode)."""
    speculate: bool = True
    """Allow speculative decoding, if the engine supports it for the loaded model."""
    attached_texts: list[str] = []
    """Texts of attached files in the prompt, which become a source of drafts for other conversations."""
    ephemeral: bool = False
    """Leave the live sequences unchanged and save nothing, as for a title request."""


class Cancel(Request, frozen=True):
    """Cancel the request `target`, which then ends with its usual final event. Has no event of its own."""

    target: int


class Stats(Request, frozen=True):
    """Report the loaded model, memory use and step costs."""


class Shutdown(Request, frozen=True):
    """Free all resources and exit. Has no event."""


class Event(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Base class of events."""

    id: int


class BackendTesting(Event, frozen=True):
    """A backend self-test is running; it takes about a second, once per machine."""

    message: str


class BackendChosen(Event, frozen=True):
    """The engine chose a backend module; later crashes count against this module."""

    backend: str


class LoadProgressed(Event, frozen=True):
    """Progress of Load: the fraction of the weights that is loaded, from 0 to 1."""

    fraction: float


class Loaded(Event, frozen=True):
    """The model is loaded and ready."""

    backend: str
    n_ctx: int
    n_ctx_train: int
    n_threads: int
    n_params: int
    n_vocab: int
    size_bytes: int
    chat_template: str | None
    bos: str
    eos: str
    control_tokens: list[str]
    """Texts of the control tokens, longest first; user text must never be tokenised to one of them."""
    can_truncate: bool
    """False if a sequence can only continue at its end or at a saved state; such models need `Generate.turn_starts`."""
    load_s: float
    is_embedding: bool = False
    n_embd: int = 0
    """Dimension of an embedding; 0 for a text model."""
    max_draft: int = 0
    """Maximum number of drafted tokens per step; 0 disables speculative decoding."""


class MemoryProbed(Event, frozen=True):
    """Result of ProbeMemory: bytes by ggml buffer type, split into model, context and compute."""

    backend: str
    memory: dict[str, dict[str, int]]


class DevicesListed(Event, frozen=True):
    """Result of ListDevices: the backend, its GPUs and its speed."""

    backend: str
    gpus: list[Gpu]
    speeds: KernelSpeeds | None
    """Result of the kernel benchmark; None before its first run."""
    problems: list[str] = []
    """One message per GPU that cannot be used."""


class QuantTypesListed(Event, frozen=True):
    """Result of ListQuantTypes: ggml type numbers in tensor order; empty if llama.cpp cannot quantise the model."""

    types: list[int]


class Embedded(Event, frozen=True):
    """Result of Embed: one unit vector per input."""

    embeddings: list[list[float]]


class Tokenized(Event, frozen=True):
    """Result of Tokenize, including special tokens."""

    tokens: list[int]


class PrefillProgressed(Event, frozen=True):
    """Prefill progress of a request, in prompt tokens."""

    done_tokens: int
    total_tokens: int


class TokenLogprobs(msgspec.Struct, frozen=True):
    """Logprobs at one token position, before sampling; natural logarithms."""

    text: bytes
    """Text of the generated token; may be part of a UTF-8 character."""
    logprob: float
    top: list[tuple[bytes, float]]
    """The most likely tokens and their logprobs, most likely first."""


class TokensGenerated(Event, frozen=True):
    """Newly generated text, always in whole characters."""

    text: str
    tokens: list[int]
    sequence: int = 0
    """Index of the reply, from 0 to `Generate.n_sequences` - 1."""
    logprobs: list[TokenLogprobs] = []
    """One item per token, if `Generate.n_logprobs` is set."""


FinishReason = Literal["stop", "length", "cancelled"]


class GenerationStats(msgspec.Struct, frozen=True, kw_only=True):
    """Token counts and timings of one request."""

    prompt_tokens: int
    cached_tokens: int
    """Prompt tokens that the prefix cache supplied, from live sequences, RAM and disk together."""
    cached_ram_tokens: int = 0
    cached_disk_tokens: int = 0
    completion_tokens: int
    ttft_s: float
    """Time to first token, from the arrival of the request in the engine."""
    prefill_tps: float
    """Computed prompt tokens per second; 0 if none were computed."""
    decode_tps: float
    """Generated tokens per second after the first one; 0 without a second token."""
    n_drafts: int = 0
    """Number of steps with drafted tokens."""
    n_drafted: int = 0
    """Number of drafted tokens."""
    n_accepted: int = 0
    """Number of drafted tokens that were accepted."""
    mean_acceptance_length: float = 1.0
    """Mean number of tokens generated per step with a draft, including the sampled one."""
    speculation_gain: float = 1.0
    """Estimated speed-up over decoding one token per step."""


class SequenceFinished(Event, frozen=True):
    """One of several parallel replies ended."""

    sequence: int
    finish_reason: FinishReason
    completion_tokens: int


class RequestFinished(Event, frozen=True):
    """A Generate request ended: all replies hit a stop condition or a length limit, or Cancel arrived."""

    finish_reason: FinishReason
    """Finish reason of the first reply."""
    stats: GenerationStats
    """Totals over all replies."""
    context_tokens: int
    """Tokens in the context at the end of the first reply."""


class EngineStats(Event, frozen=True):
    """Result of Stats: memory use and step costs."""

    backend: str
    model: str
    n_ctx: int
    context_tokens: int
    peak_rss_bytes: int
    memory: dict[str, dict[str, int]]
    """Bytes by ggml buffer type, split into model, context and compute."""
    step_costs: dict[int, float] = {}
    """Cost of a decode step by number of tokens, relative to one token, at the current depth; measured sizes only."""


class RequestFailed(Event, frozen=True):
    """The request failed, and the engine continues. After a failed Load no model is loaded."""

    error_type: str
    """Name of a class in `edgechat.errors`."""
    message: str


AnyRequest = Load | ProbeMemory | ListDevices | ListQuantTypes | Embed | Tokenize | Generate | Cancel | Stats | Shutdown
AnyEvent = (
    BackendTesting | BackendChosen | LoadProgressed | Loaded | MemoryProbed | DevicesListed | QuantTypesListed
    | Embedded | Tokenized | PrefillProgressed | TokensGenerated | SequenceFinished | RequestFinished | EngineStats
    | RequestFailed
)  # fmt: skip
FINAL_EVENTS: Final = (
    Loaded, MemoryProbed, DevicesListed, QuantTypesListed, Embedded, Tokenized, RequestFinished, EngineStats,
    RequestFailed,
)  # fmt: skip

OUT_OF_MEMORY: Final = "The engine ran out of memory. Close other programs, or set a smaller context with --ctx."


def failure(request_id: int, error: Exception) -> RequestFailed:
    """Create the final event of a request that raised an EdgechatError or a MemoryError."""
    if isinstance(error, MemoryError):
        return RequestFailed(id=request_id, error_type="PlanError", message=OUT_OF_MEMORY)
    return RequestFailed(id=request_id, error_type=type(error).__name__, message=str(error))


_encoder = msgspec.msgpack.Encoder()
_requests: msgspec.msgpack.Decoder[AnyRequest] = msgspec.msgpack.Decoder(AnyRequest)
_events: msgspec.msgpack.Decoder[AnyEvent] = msgspec.msgpack.Decoder(AnyEvent)


def encode(message: Request | Event) -> bytes:
    """Encode a message as a frame. Raises EngineError if it exceeds `MAX_FRAME_BYTES`."""
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise EngineError(
            f"A message between processes has {len(body)} bytes; the limit is {MAX_FRAME_BYTES}. Send less at once."
        )
    return frame(body)


def frame(body: bytes) -> bytes:
    """Prefix `body` with its length."""
    return len(body).to_bytes(4, "big") + body


def decode_request(body: bytes) -> AnyRequest:
    """Decode the body of a frame. Raises EngineError if it is not a request."""
    request: AnyRequest = _decode(_requests, body)
    return request


def decode_event(body: bytes) -> AnyEvent:
    """Decode the body of a frame. Raises EngineError if it is not an event."""
    event: AnyEvent = _decode(_events, body)
    return event


def _decode(decoder: msgspec.msgpack.Decoder[Any], body: bytes) -> Any:
    try:
        return decoder.decode(body)
    except msgspec.MsgspecError as error:
        raise EngineError(f"Received an invalid message from another process of edgechat: {error}") from error
