"""Protocol between a client and its render process: each frame contains a request or a `RenderReply`."""

from __future__ import annotations

from typing import Any

import msgspec

from edgechat.engine.pipe import make_frame


class RenderRequest(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Request to render a chat template with variables."""

    template: str
    """Jinja source of the template."""
    messages: list[dict[str, Any]]
    bos: str
    eos: str
    variables: dict[str, Any] = {}


class ChatLibraryRequest(msgspec.Struct, frozen=True, tag=True):
    """Request to the chat library; see `native/src/chat/edgechat_chat.h`."""

    json: bytes


class RenderReply(msgspec.Struct, frozen=True, kw_only=True):
    """Reply to a request: rendered text, or the JSON reply of the chat library, or an error message."""

    text: str = ""
    error: str = ""
    """Reason why the template failed; "" on success."""


def encode(message: RenderRequest | ChatLibraryRequest | RenderReply) -> bytes:
    """Encode a request or reply as a frame. Raises OverflowError or RecursionError if a value cannot be encoded."""
    return make_frame(msgspec.msgpack.encode(message))
