"""Protocol between a client and its render process: each frame contains a `RenderRequest` or a `RenderReply`."""

from __future__ import annotations

from typing import Any

import msgspec

from edgechat.engine.protocol import make_frame


class RenderRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Request to render a chat template with variables."""

    template: str
    """Jinja source of the template."""
    messages: list[dict[str, Any]]
    bos: str
    eos: str
    variables: dict[str, Any] = {}


class RenderReply(msgspec.Struct, frozen=True, kw_only=True):
    """Reply to a `RenderRequest`: rendered text or an error message."""

    text: str = ""
    error: str = ""
    """Reason why the template failed; "" on success."""


def encode(message: RenderRequest | RenderReply) -> bytes:
    """Encode a request or reply as a frame. Raises OverflowError, RecursionError for values that cannot be encoded."""
    return make_frame(msgspec.msgpack.encode(message))
