"""Frames of the pipes between a client and an engine process: each contains a message as a msgpack object."""

from __future__ import annotations

from typing import Any

import msgspec

from edgechat.engine.pipe import MAX_FRAME_BYTES, make_frame
from edgechat.engine.protocol import AnyEvent, AnyRequest, Event, Request
from edgechat.errors import EngineError

_encoder = msgspec.msgpack.Encoder()
_request_decoder: msgspec.msgpack.Decoder[AnyRequest] = msgspec.msgpack.Decoder(AnyRequest)
_event_decoder: msgspec.msgpack.Decoder[AnyEvent] = msgspec.msgpack.Decoder(AnyEvent)


def encode(message: Request | Event) -> bytes:
    """Encode a message as a frame. Raises EngineError if the message exceeds `MAX_FRAME_BYTES`."""
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise EngineError(
            f"The message to another edgechat process has {len(body)} bytes; the limit is {MAX_FRAME_BYTES}. "
            "Send a shorter prompt or fewer inputs at once."
        )
    return make_frame(body)


def decode_request(body: bytes) -> AnyRequest:
    """Decode the body of a frame. Raises EngineError if the body is not a valid request."""
    request: AnyRequest = _decode(_request_decoder, body)
    return request


def decode_event(body: bytes) -> AnyEvent:
    """Decode the body of a frame. Raises EngineError if the body is not a valid event."""
    event: AnyEvent = _decode(_event_decoder, body)
    return event


def _decode(decoder: msgspec.msgpack.Decoder[Any], body: bytes) -> Any:
    try:
        return decoder.decode(body)
    except msgspec.MsgspecError as error:
        raise EngineError(
            f"Received an invalid message from another edgechat process. Restart edgechat. ({error})"
        ) from error
