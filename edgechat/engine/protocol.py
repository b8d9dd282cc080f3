"""What crosses the pipe between a client and its engine: requests down, events up.

A frame is four bytes of length (big endian) and a msgpack object with its type's name. A request has an
`id`; events that answer it carry the same one, and its last event is one of `FINAL`.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from edgechat.config import Sampling
from edgechat.errors import EngineError
from edgechat.hardware.profile import Gpu
from edgechat.planner.memory import LoadOptions
from edgechat.planner.plan import LoadPlan
from edgechat.planner.requantize import QuantModel
from edgechat.planner.throughput import KernelSpeeds

MAX_FRAME_BYTES: Final = 64 << 20


class Request(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Base of what a client asks."""

    id: int


class Load(Request, frozen=True):
    """Load a model and make a context, in place of what was there. Events: BackendTesting, LoadProgressed."""

    plan: LoadPlan
    prefix_dir: str = ""
    """Where prefixes on disk are; "" writes nothing."""


class ProbeMemory(Request, frozen=True):
    """Ask llama.cpp how large its buffers would be, without loading any weights. Events: BackendTesting."""

    model_path: str
    """A file of which only the header need be there."""
    options: LoadOptions


class ListDevices(Request, frozen=True):
    """Ask which GPUs there are, and how fast the backend was measured to be. Events: BackendTesting.

    With `measure`, speeds are measured if they are not known: that takes seconds.
    """

    benchmark: bool = False
    remeasure: bool = False
    """Measure even what is known."""


class ListQuantTypes(Request, frozen=True):
    """Ask which type each tensor would have under a preset."""

    model: QuantModel
    preset: int


class Embed(Request, frozen=True):
    """Make vectors of texts, with a model that is made for that."""

    inputs: list[list[int]]
    """As tokens."""


class Tokenize(Request, frozen=True):
    """Turn text into tokens as a prompt would be."""

    text: str
    guard: str = ""


class Generate(Request, frozen=True):
    """Continue a prompt, given as rendered text or as tokens."""

    text: str = ""
    guard: str = ""
    """A character that breaks up control tokens in user text; it is removed before tokenising."""
    tokens: list[int] | None = None
    max_tokens: int | None = None
    forced_tokens: list[int] | None = None
    """Say this, whatever is drawn (for measurements)."""
    ignore_eog: bool = False
    """Go on after an end-of-generation token (for measurements)."""
    sampling: Sampling = Sampling()
    visible_control_tokens: list[str] = []
    """Control tokens that are a part of the text: the marks around reasoning."""
    n_sequences: int = 1
    """Answers to the same prompt, made side by side."""
    stop: list[str] = []
    """Texts that end an answer, and are no part of it."""
    grammar: str = ""
    """What an answer may be, in the form that `edgechat.runtime.grammar` takes; "" is anything."""
    logit_bias: dict[int, float] = {}
    """Added to the logits of these tokens."""
    n_logprobs: int | None = None
    """Send how likely each token was, and so many of the likeliest beside it; None sends nothing."""
    conversation: str = ""
    """Whose this is: what is computed may be kept on disk for it; "" keeps nothing there."""
    turn_starts: list[int] = []
    """Positions in the prompt that a later one may come back to: what memory that cannot rewind must remember."""
    bypass_cache: bool = False
    """Compute all of the prompt anew (for measurements)."""
    speculate: bool = True
    """Try drafts for this answer, if the engine does for any."""
    attached_texts: list[str] = []
    """Texts in the prompt that other conversations may repeat: files that were attached."""
    ephemeral: bool = False
    """True for a question beside the conversation: nothing of it is kept."""


class Cancel(Request, frozen=True):
    """Stop the request `target`; it ends with its ordinary final event. Has no event of its own."""

    target: int


class Stats(Request, frozen=True):
    """Ask what the engine holds."""


class Shutdown(Request, frozen=True):
    """Free everything and exit. Has no event of its own."""


class Event(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Base of what an engine says."""

    id: int


class BackendTesting(Event, frozen=True):
    """A backend is being tried, which takes about a second and happens once per machine."""

    message: str


class BackendChosen(Event, frozen=True):
    """This module computes from here on; a crash is its fault."""

    backend: str


class LoadProgressed(Event, frozen=True):
    """A part of the weights is loaded, from 0 to 1."""

    fraction: float


class Loaded(Event, frozen=True):
    """The model is ready."""

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
    """Texts of the control tokens, longest first: what user text must never turn into."""
    can_truncate: bool
    """False if a prompt can only be gone on from where another one ended: then `turn_starts` are of use."""
    load_s: float
    is_embedding: bool = False
    """True if it makes vectors, not texts."""
    n_embd: int = 0
    """Numbers of a vector."""
    max_draft: int = 0
    """Most tokens that can be tried with a step; 0 if nothing is drafted."""


class MemoryProbed(Event, frozen=True):
    """Bytes by ggml buffer type, of a Probe."""

    backend: str
    memory: dict[str, dict[str, int]]


class DevicesListed(Event, frozen=True):
    """What there is to compute with."""

    backend: str
    gpus: list[Gpu]
    speeds: KernelSpeeds | None
    """None if nothing was measured yet."""
    problems: list[str] = []
    """Why a device is not among them, in words."""


class QuantTypesListed(Event, frozen=True):
    """ggml's numbers of types, in the order of the tensors; empty if llama.cpp has no rules for such a model."""

    types: list[int]


class Embedded(Event, frozen=True):
    """The vectors of an Embed, each of length 1."""

    embeddings: list[list[float]]


class Tokenized(Event, frozen=True):
    """The tokens of a Tokenize."""

    tokens: list[int]


class PrefillProgressed(Event, frozen=True):
    """A part of the prompt is computed."""

    done_tokens: int
    total_tokens: int


class TokenLogprobs(msgspec.Struct, frozen=True):
    """How likely a token was, before sampling; natural logarithms."""

    text: bytes
    """What it stands for, perhaps a part of a character."""
    logprob: float
    top: list[tuple[bytes, float]]
    """The likeliest ones, best first."""


class TokensGenerated(Event, frozen=True):
    """More of the answer, always whole characters."""

    text: str
    tokens: list[int]
    sequence: int = 0
    """Which of the answers."""
    logprobs: list[TokenLogprobs] = []
    """One for each of `tokens`, if they were asked for."""


FinishReason = Literal["stop", "length", "cancelled"]


class GenerationStats(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer cost."""

    prompt_tokens: int
    cached_tokens: int
    """Tokens of the prompt that did not have to be computed; the next two say which of them were not live."""
    cached_ram_tokens: int = 0
    cached_disk_tokens: int = 0
    completion_tokens: int
    ttft_s: float
    """From the request's arrival in the engine to the first token handed out."""
    prefill_tps: float
    """Computed prompt tokens per second; 0 if none were computed."""
    decode_tps: float
    """Tokens per second after the first one; 0 if there was none."""
    n_drafts: int = 0
    """Steps in which drafted tokens were tried."""
    n_drafted: int = 0
    n_accepted: int = 0
    mean_acceptance_length: float = 1.0
    """Tokens that such a step brought, the one that it would have brought anyway included."""
    speculation_gain: float = 1.0
    """Estimated speed in times of decoding token by token."""


class SequenceFinished(Event, frozen=True):
    """One of several answers ended."""

    sequence: int
    finish_reason: FinishReason
    completion_tokens: int


class RequestFinished(Event, frozen=True):
    """The answer ended, or all of them: by the model, at a length limit, or by Cancel."""

    finish_reason: FinishReason
    """Of the first one."""
    stats: GenerationStats
    """Of all of them together."""
    context_tokens: int
    """Tokens in the context after this turn."""


class EngineStats(Event, frozen=True):
    """What the engine holds."""

    backend: str
    model: str
    n_ctx: int
    context_tokens: int
    peak_rss_bytes: int
    memory: dict[str, dict[str, int]]
    """Bytes by ggml buffer type."""
    step_costs: dict[int, float] = {}
    """Of a decode step of so many tokens, in steps of one, at the present depth; those that were measured."""


class RequestFailed(Event, frozen=True):
    """The request failed; the engine lives. After a failed Load it holds no model."""

    error_type: str
    """Name of a class in edgechat.errors."""
    message: str


AnyRequest = Load | ProbeMemory | ListDevices | ListQuantTypes | Embed | Tokenize | Generate | Cancel | Stats | Shutdown
AnyEvent = (
    BackendTesting | BackendChosen | LoadProgressed | Loaded | MemoryProbed | DevicesListed | QuantTypesListed | Embedded | Tokenized | PrefillProgressed
    | TokensGenerated | SequenceFinished | RequestFinished | EngineStats | RequestFailed
)  # fmt: skip
FINAL_EVENTS: Final = (
    Loaded,
    MemoryProbed,
    DevicesListed,
    QuantTypesListed,
    Embedded,
    Tokenized,
    RequestFinished,
    EngineStats,
    RequestFailed,
)

_encoder = msgspec.msgpack.Encoder()
_requests: msgspec.msgpack.Decoder[AnyRequest] = msgspec.msgpack.Decoder(AnyRequest)
_events: msgspec.msgpack.Decoder[AnyEvent] = msgspec.msgpack.Decoder(AnyEvent)


def encode(message: Request | Event) -> bytes:
    """A whole frame. Raises EngineError if the message is over `MAX_FRAME_BYTES`."""
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise EngineError(f"a message of {len(body)} bytes is over the limit of {MAX_FRAME_BYTES} between processes")
    return frame(body)


def frame(body: bytes) -> bytes:
    """`body` with its length before it."""
    return len(body).to_bytes(4, "big") + body


def decode_request(body: bytes) -> AnyRequest:
    """The request in a frame's body. Raises EngineError if it is none."""
    request: AnyRequest = _decode(_requests, body)
    return request


def decode_event(body: bytes) -> AnyEvent:
    """The event in a frame's body. Raises EngineError if it is none."""
    event: AnyEvent = _decode(_events, body)
    return event


def _decode(decoder: msgspec.msgpack.Decoder[Any], body: bytes) -> Any:
    try:
        return decoder.decode(body)
    except msgspec.MsgspecError as error:
        raise EngineError(f"the other process sent something that is not a message: {error}") from error
