"""OpenAI API: complete responses, and streams of server-sent events with keep-alive comments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from edgechat.serve.choices import Choice, Delta, UsageTotals
from edgechat.serve.dialects.dialect import Dialect, encode_event
from edgechat.serve.errors import ApiError

DONE: Final = b"data: [DONE]\n\n"
PING: Final = b": keep-alive\n\n"
"""Comment that prevents time-outs of proxies and clients in a silent stream. Clients ignore its text."""


class OpenAiDialect(Dialect):
    """Writes the response to a chat completion or a text completion."""

    def make_body(self, choices: list[Choice], totals: UsageTotals) -> dict[str, Any]:
        return self.builder.body(choices, totals)

    def encode_delta(self, delta: Delta) -> Sequence[bytes]:
        chunks = self.builder.chunks(delta)
        return [encode_event(chunk | {"usage": None} if self.builder.include_usage else chunk) for chunk in chunks]

    def encode_ping(self) -> Sequence[bytes]:
        return [PING]

    def encode_error(self, error: ApiError) -> Sequence[bytes]:
        return [encode_event(error.body()), DONE]

    def encode_end(self, totals: UsageTotals) -> Sequence[bytes]:
        usage = [encode_event(self.builder.make_usage_chunk(totals))] if self.builder.include_usage else []
        return [*usage, DONE]
