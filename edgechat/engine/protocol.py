"""What crosses the pipe between a client and its engine: requests down, events up.

A frame is four bytes of length (big endian) and a msgpack object with its type's name. A request has an
`id`; events that answer it carry the same one, and its last event is one of `FINAL`.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from edgechat.config import Sampling
from edgechat.errors import EngineError

MAX_FRAME_BYTES: Final = 64 << 20


class Request(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Base of what a client asks."""

    id: int


class Load(Request, frozen=True):
    """Load a model and make a context, in place of what was there. Events: BackendTesting, LoadProgressed."""

    path: str
    n_ctx: int
    n_threads: int
    n_batch: int = 512
    n_ubatch: int = 512
    use_mmap: bool = True
    use_extra_bufts: bool = True


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
    ignore_eog: bool = False
    """Go on after an end-of-generation token (for measurements)."""
    sampling: Sampling = Sampling()
    shown_tokens: list[str] = []
    """Control tokens that are a part of the text: the marks around reasoning."""


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

    words: str


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
    size_bytes: int
    chat_template: str | None
    bos: str
    eos: str
    control_tokens: list[str]
    """Texts of the control tokens, longest first: what user text must never turn into."""
    can_rewind: bool
    """False if a prompt that is not a continuation of the last one has to be computed from its beginning."""
    load_s: float


class Tokenized(Event, frozen=True):
    """The tokens of a Tokenize."""

    tokens: list[int]


class PrefillProgressed(Event, frozen=True):
    """A part of the prompt is computed."""

    done_tokens: int
    total_tokens: int


class TokensGenerated(Event, frozen=True):
    """More of the answer, always whole characters."""

    text: str
    tokens: list[int]


class GenerationStats(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer cost."""

    prompt_tokens: int
    cached_tokens: int
    """Tokens of the prompt that did not have to be computed."""
    completion_tokens: int
    ttft_s: float
    """From the request's arrival in the engine to the first token handed out."""
    prefill_tps: float
    """Computed prompt tokens per second; 0 if none were computed."""
    decode_tps: float
    """Tokens per second after the first one; 0 if there was none."""
    n_drafted: int = 0
    n_accepted: int = 0


class TurnFinished(Event, frozen=True):
    """The answer ended: by the model, at a length limit, or by Cancel."""

    finish_reason: Literal["stop", "length", "cancelled"]
    stats: GenerationStats
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


class Failed(Event, frozen=True):
    """The request failed; the engine lives. After a failed Load it holds no model."""

    error: str
    """Name of a class in edgechat.errors."""
    message: str


AnyRequest = Load | Tokenize | Generate | Cancel | Stats | Shutdown
AnyEvent = (
    BackendTesting | BackendChosen | LoadProgressed | Loaded | Tokenized | PrefillProgressed
    | TokensGenerated | TurnFinished | EngineStats | Failed
)  # fmt: skip
FINAL: Final = (Loaded, Tokenized, TurnFinished, EngineStats, Failed)

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
