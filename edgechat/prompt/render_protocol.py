"""Protocol between a client and its render process: each frame has a `RenderRequest` or the `RenderReply` to it."""

from __future__ import annotations

from typing import Any

import msgspec

from edgechat.engine.protocol import frame


class RenderRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Request to render a chat template with variables."""

    template: str
    """Jinja source of the template."""
    messages: list[dict[str, Any]]
    bos: str
    eos: str
    variables: dict[str, Any] = {}


class RenderReply(msgspec.Struct, frozen=True, kw_only=True):
    """Rendered text or error message of a request."""

    text: str = ""
    error: str = ""
    """Error message of the template; "" on success."""


def encode(message: RenderRequest | RenderReply) -> bytes:
    """Encode a message as a frame. Raises OverflowError or RecursionError for values that MessagePack cannot encode."""
    return frame(msgspec.msgpack.encode(message))
