"""Messages between a client and its render process: one `RenderRequest` per frame, answered by one `RenderReply`."""

from __future__ import annotations

from typing import Any

import msgspec

from edgechat.engine.protocol import frame


class RenderRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A chat template, and the variables to render it with."""

    template: str
    """Jinja source."""
    messages: list[dict[str, Any]]
    bos: str
    eos: str
    variables: dict[str, Any] = {}


class RenderReply(msgspec.Struct, frozen=True, kw_only=True):
    """The rendered text, or an error message."""

    text: str = ""
    error: str = ""
    """Empty on success."""


def encode(message: RenderRequest | RenderReply) -> bytes:
    """Return a frame with `message`. Raises OverflowError or RecursionError for values that MessagePack cannot hold."""
    return frame(msgspec.msgpack.encode(message))
