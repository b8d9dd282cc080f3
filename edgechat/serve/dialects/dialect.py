"""Base class of dialects, which write the response to one request in the form of one API."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import msgspec

from edgechat.serve.choices import Choice, Delta, UsageTotals
from edgechat.serve.errors import ApiError
from edgechat.serve.response_builder import ResponseBuilder


class Dialect(ABC):
    """Writes the response that `builder` generates in the form of one API.

    A dialect belongs to one response and may have state, such as the content blocks that a stream has opened. It must
    not hold the request body, whose memory is released when the prompt is built. Each `encode_*` method returns the
    parts of the stream that are sent at this moment, which may be none. The stream calls `encode_delta` and
    `encode_ping` any number of times, then `encode_end` or `encode_error` once.
    """

    STREAM_MEDIA_TYPE: ClassVar[str] = "text/event-stream"

    def __init__(self, builder: ResponseBuilder) -> None:
        self.builder = builder

    def close(self) -> None:
        """Release the resources of the response. Called once when the response has ended, even after an error."""
        return

    @abstractmethod
    def make_body(self, choices: list[Choice], totals: UsageTotals) -> dict[str, Any]:
        """Build the JSON object of a complete response."""

    @abstractmethod
    def encode_delta(self, delta: Delta) -> Sequence[bytes]:
        """Encode new output or prefill progress."""

    @abstractmethod
    def encode_ping(self) -> Sequence[bytes]:
        """Encode a keep-alive message, which prevents time-outs of proxies and clients in a silent stream."""

    @abstractmethod
    def encode_error(self, error: ApiError) -> Sequence[bytes]:
        """Encode an error that ends the stream."""

    @abstractmethod
    def encode_end(self, totals: UsageTotals) -> Sequence[bytes]:
        """Encode the end of a stream whose output is complete."""


def encode_event(data: Any) -> bytes:
    """Encode a server-sent event without a name."""
    return b"data: " + msgspec.json.encode(data) + b"\n\n"


def encode_named_event(event_type: str, fields: Mapping[str, Any]) -> bytes:
    """Encode a server-sent event whose name is also the `type` in its data, before `fields`."""
    return f"event: {event_type}\n".encode() + encode_event({"type": event_type, **fields})
