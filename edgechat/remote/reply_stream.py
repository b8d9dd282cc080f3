"""Decode the chunks of a streamed chat completion, which a server may get wrong in any way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from edgechat.errors import RemoteError
from edgechat.humanize import shorten
from edgechat.terminal import escape_controls

MAX_REASON_CHARS: Final = 300
"""Maximum number of characters of a server's message in an error."""
_MAX_TOKENS: Final = 1 << 40
_MAX_INVALID_FIELDS: Final = 5


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers of tokens that a server counted for a reply."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None = None
    """Number of prompt tokens from the server's prompt cache; None if the server does not report it."""
    reasoning_tokens: int | None = None


class ReplyChunk(msgspec.Struct, frozen=True, kw_only=True):
    """Part of a reply."""

    text: str = ""
    reasoning: str = ""
    finish_reason: str = ""
    """Reason why the reply ended, in the words of the API; "" while it continues."""
    usage: Usage | None = None

    @property
    def is_empty(self) -> bool:
        return not (self.text or self.reasoning or self.finish_reason or self.usage)


def decode_object(data: bytes, host: str) -> dict[str, Any]:
    """Decode a JSON object from a server. Raises RemoteError."""
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        start = shorten(escape_controls(data[:80].decode("utf-8", "replace")).replace("\n", " "), 60)
        raise RemoteError(f"{host} sent text that is not JSON in UTF-8: {start!r}. Check the URL.") from None
    if not isinstance(value, dict):
        raise RemoteError(f"{host} sent JSON that is not an object. Check the URL of the remote.")
    return value


def find_error_message(value: Mapping[str, Any]) -> str:
    """Return the message of an error object in one of its common forms; "" if `value` has none."""
    error = value.get("error")
    candidates = [error.get("message"), error.get("code")] if isinstance(error, dict) else [error]
    candidates += [value.get("message"), value.get("detail")] if error is not None or "choices" not in value else []
    text = next((text for text in candidates if isinstance(text, str) and text.strip()), "")
    return clean_message(text or _describe_invalid_fields(value.get("detail")))


def _describe_invalid_fields(detail: object) -> str:
    """Return the fields that a server refuses, and why, from the list of pydantic's errors; "" for other values."""
    errors = [error for error in detail if isinstance(error, dict)] if isinstance(detail, list) else []
    parts = []
    for error in errors[:_MAX_INVALID_FIELDS]:
        location, reason = error.get("loc"), error.get("msg")
        names = [str(name) for name in location if name != "body"] if isinstance(location, list) else []
        parts.append(": ".join(filter(None, (".".join(names), reason if isinstance(reason, str) else ""))))
    return "; ".join(filter(None, parts))


def clean_message(text: str) -> str:
    """Return a server's message as one line without control characters and without a full stop at its end."""
    return shorten(escape_controls(" ".join(text.split())), MAX_REASON_CHARS).rstrip(".")


def decode_chunk(value: Mapping[str, Any], host: str) -> ReplyChunk:
    """Return the content of a chunk, or of a whole completion. Null and missing fields count as empty.

    Raises RemoteError if the chunk is an error, or if a field has another type.
    """
    if value.get("error"):
        raise RemoteError(f"{host} ended the reply with an error: {find_error_message(value) or 'unknown reason'}.")
    choices = value.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else {}
    if not isinstance(choice, dict):
        raise RemoteError(f"{host} sent a reply without the fields of the OpenAI API. Check the URL of the remote.")
    delta = choice.get("delta") or choice.get("message") or {}
    if not isinstance(delta, dict):
        raise RemoteError(f"{host} sent a reply without the fields of the OpenAI API. Check the URL of the remote.")
    reasoning = _read_text(delta.get("reasoning_content"), host) or _read_text(delta.get("reasoning"), host)
    # A service that refuses to reply in the format of a schema says why in a field of its own.
    text = _read_text(delta.get("content"), host) or _read_text(delta.get("refusal"), host)
    finish_reason = choice.get("finish_reason")
    return ReplyChunk(
        text=text, reasoning=reasoning,
        finish_reason=finish_reason if isinstance(finish_reason, str) else "", usage=_read_usage(value.get("usage")),
    )  # fmt: skip


def _read_text(value: object, host: str) -> str:
    """Return a text of a chunk, which a few servers send as a list of parts. Raises RemoteError."""
    if value is None:
        return ""
    if isinstance(value, list):
        parts = [part.get("text") for part in value if isinstance(part, dict) and part.get("type") == "text"]
        return "".join(_read_text(part, host) for part in parts if not isinstance(part, list))
    if not isinstance(value, str):
        raise RemoteError(f"{host} sent a reply whose text is not a string.")
    return value if value.isascii() else _replace_surrogates(value)


def _replace_surrogates(text: str) -> str:
    """Replace lone surrogates, which JSON can contain, but the database and the terminal cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _read_usage(value: object) -> Usage | None:
    """Return the token counts of a reply; None if they are missing or are not numbers."""
    if not isinstance(value, dict):
        return None
    prompt_tokens, completion_tokens = _read_count(value, "prompt_tokens"), _read_count(value, "completion_tokens")
    if prompt_tokens is None or completion_tokens is None:
        return None
    return Usage(
        prompt_tokens=prompt_tokens, completion_tokens=completion_tokens,
        cached_tokens=_read_count(value.get("prompt_tokens_details"), "cached_tokens"),
        reasoning_tokens=_read_count(value.get("completion_tokens_details"), "reasoning_tokens"),
    )  # fmt: skip


def _read_count(value: object, name: str) -> int | None:
    count = value.get(name) if isinstance(value, dict) else None
    is_count = isinstance(count, int) and not isinstance(count, bool) and 0 <= count < _MAX_TOKENS
    return count if is_count else None
