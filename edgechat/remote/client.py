"""Client of a remote: its list of models, and streamed chat completions."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from edgechat.catalogue.download import http
from edgechat.errors import RemoteError, RemoteStatusError
from edgechat.humanize import format_duration
from edgechat.remote.connection import (
    DEFAULT_TIMEOUTS,
    RETRIED_STATUSES,
    RemoteConnectError,
    RemoteConnection,
    Timeouts,
    iterate_delays,
)
from edgechat.remote.reply_stream import ReplyChunk, decode_chunk, decode_object
from edgechat.remote.request_options import CONTINUATION_FIELDS
from edgechat.remote.sse import read_events, read_lines
from edgechat.remote.target import RemoteModel
from edgechat.remote_settings import RemoteSettings

_N_RETRIES: Final = 3
# Interval, in seconds, at which a server is asked again while it loads a model, and the maximum number of requests.
_LOADING_INTERVAL_S: Final = 2.0
_N_LOADING_RETRIES: Final = 300
# A server that wants a longer pause ends the turn with an error, which names the time.
_MAX_RETRY_AFTER_S: Final = 30.0
_MAX_LIST_BYTES: Final = 8 << 20
_MAX_MODELS: Final = 10_000
_MAX_NAME_CHARS: Final = 300
_DONE: Final = b"[DONE]"
_UNAVAILABLE: Final = 503
_LOADING_PATTERN: Final = re.compile(
    r"(?<!error )\bloading (?:the )?model\b|\bmodel\b.{0,40}\bis (?:currently )?loading\b", re.IGNORECASE
)
# Statuses for a request with a field that the server does not know.
_REFUSALS: Final = (400, 422)


class ListedModel(msgspec.Struct, frozen=True, kw_only=True):
    """Model in the list of a remote."""

    id: str
    n_ctx: int | None = None
    """Context length in tokens; None if the server does not report it."""


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Request for one reply of a remote model."""

    messages: list[dict[str, Any]]
    options: dict[str, Any] = {}
    """Other fields of the request, such as sampling, `stop`, `max_tokens`, `response_format` and `tools`."""


class RetryScheduled(msgspec.Struct, frozen=True, kw_only=True):
    """The request will be sent again after a pause."""

    reason: str
    delay_s: float

    @property
    def message(self) -> str:
        return f"Trying again in {format_duration(self.delay_s)}: {self.reason.rstrip('.')}"


class RemoteClient:
    """Client of one remote. `cancel` is thread-safe and ends the current request; use a new client afterwards."""

    def __init__(self, name: str, settings: RemoteSettings, timeouts: Timeouts = DEFAULT_TIMEOUTS) -> None:
        """Prepare requests; does not use the network. Raises RemoteError without the API key."""
        self._connection = RemoteConnection(name, settings, timeouts)

    def cancel(self) -> None:
        """End the current request, which then raises RequestCancelledError."""
        self._connection.cancel()

    def list_models(self) -> list[ListedModel]:
        """Return the models of the remote in the order of the server. Raises RemoteError."""
        connection = self._connection
        with connection.request("/models", timeout_s=connection.timeouts.answer_s) as response:
            self._check_type(response, "application/json")
            value = decode_object(connection.read_all(response, _MAX_LIST_BYTES), connection.label)
        entries = value.get("data")
        if entries is None:
            entries = value.get("models")
        if not isinstance(entries, list):
            raise RemoteError(f"{connection.label} sent no list of models. Check that the URL ends with /v1.")
        models: dict[str, ListedModel] = {}
        for entry in entries[:_MAX_MODELS]:
            if (model := _read_model(entry)) is not None:
                models.setdefault(model.id, model)
        return list(models.values())

    def stream_reply(self, model: RemoteModel, request: ChatRequest) -> Iterator[ReplyChunk | RetryScheduled]:
        """Yield the chunks of a reply as they arrive; the last ones have the finish reason and the usage.

        Failures before the first chunk are retried. Raises RemoteError, ContextOverflowError, and
        RequestCancelledError after `cancel`.
        """
        body: dict[str, Any] = {
            "model": model.model, "messages": request.messages, "stream": True,
            "stream_options": {"include_usage": True}, **request.options,
        }  # fmt: skip
        delays = iterate_delays(_N_RETRIES)
        loading_delays = itertools.repeat(_LOADING_INTERVAL_S, _N_LOADING_RETRIES)
        while True:
            has_started = False
            try:
                for chunk in self._stream_once(body):
                    has_started = True
                    yield chunk
                return
            except (RemoteStatusError, RemoteConnectError) as error:
                adapted_body = _adapt_body(body, error)
                if adapted_body is not None:
                    body = adapted_body
                    continue
                next_delay_s = next(loading_delays if _is_loading(error) else delays, None)
                delay_s = None if has_started else _choose_delay(error, next_delay_s)
                if delay_s is None:
                    raise
                yield RetryScheduled(reason=str(error), delay_s=delay_s)
                self._connection.wait(delay_s)

    def _stream_once(self, body: dict[str, Any]) -> Iterator[ReplyChunk]:
        connection = self._connection
        started_at = time.monotonic()
        with connection.request("/chat/completions", body, timeout_s=connection.timeouts.first_token_s) as response:
            content_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
            if content_type == "application/json":  # a server that does not stream
                content = connection.read_all(response, _MAX_LIST_BYTES)
                yield decode_chunk(decode_object(content, connection.label), connection.label)
                return
            self._check_type(response, "text/event-stream")
            yield from self._read_chunks(response, started_at)

    def _read_chunks(self, response: http.Response, started_at: float) -> Iterator[ReplyChunk]:
        """Yield the chunks of a stream. Raises RemoteError if it ends before the reply."""
        connection, timeouts = self._connection, self._connection.timeouts
        deadline = started_at + timeouts.first_token_s

        def read(count: int) -> bytes:
            return self._read_before(deadline, response, count, is_first=not has_text)

        has_text = has_ended = False
        for data in read_events(read_lines(read, connection.label)):
            if data is None:
                continue
            if data.strip() == _DONE:
                return
            chunk = decode_chunk(decode_object(data, connection.label), connection.label)
            if chunk.text or chunk.reasoning or chunk.finish_reason:
                has_text = True
                deadline = time.monotonic() + timeouts.between_tokens_s
            has_ended = has_ended or bool(chunk.finish_reason)
            if not chunk.is_empty:
                yield chunk
        if not has_ended:
            raise RemoteError(f"{connection.label} closed the connection before the end of the reply.")

    def _read_before(self, deadline: float, response: http.Response, count: int, *, is_first: bool) -> bytes:
        """Read available bytes. Raises RemoteError at `deadline`, also if only empty events arrive until then."""
        remaining_s = deadline - time.monotonic()
        if remaining_s <= 0:
            raise self._make_timeout_error(is_first=is_first)
        self._connection.set_read_timeout(remaining_s)
        try:
            return self._connection.read(response, count)
        except RemoteError:
            if time.monotonic() >= deadline:
                raise self._make_timeout_error(is_first=is_first) from None
            raise

    def _make_timeout_error(self, *, is_first: bool) -> RemoteError:
        timeouts = self._connection.timeouts
        limit_s = timeouts.first_token_s if is_first else timeouts.between_tokens_s
        part = "the first word of the reply" if is_first else "the next word of the reply"
        return RemoteError(f"{self._connection.label} did not send {part} within {format_duration(limit_s)}.")

    def _check_type(self, response: http.Response, expected_type: str) -> None:
        content_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if content_type != expected_type:
            raise RemoteError(
                f"{self._connection.label} answers with {content_type[:60] or 'no content type'} instead of "
                f"{expected_type}. Check the URL of the remote; it usually ends with /v1."
            )


def _is_loading(error: RemoteError) -> bool:
    """Return whether a server says that it is loading a model, which takes up to minutes."""
    if not isinstance(error, RemoteStatusError) or error.status != _UNAVAILABLE:
        return False
    return _LOADING_PATTERN.search(error.reason) is not None


def _choose_delay(error: RemoteError, delay_s: float | None) -> float | None:
    """Return the delay before the request is repeated; None if it must not be repeated."""
    if delay_s is None or (isinstance(error, RemoteStatusError) and error.status not in RETRIED_STATUSES):
        return None
    wanted_s = error.retry_after_s if isinstance(error, RemoteStatusError) else None
    if wanted_s is not None and wanted_s > _MAX_RETRY_AFTER_S:
        return None
    return max(delay_s, wanted_s or 0.0)


def _adapt_body(body: dict[str, Any], error: RemoteError) -> dict[str, Any] | None:
    """Return a body without a field that this server does not know; None if the error has another cause."""
    if not isinstance(error, RemoteStatusError) or error.status not in _REFUSALS:
        return None
    text = str(error)
    if "max_tokens" in body and "max_completion_tokens" in text:
        return {n: v for n, v in body.items() if n != "max_tokens"} | {"max_completion_tokens": body["max_tokens"]}
    if "stream_options" in body and "stream_options" in text:
        return {n: v for n, v in body.items() if n != "stream_options"}
    if any(name in body and name in text for name in CONTINUATION_FIELDS):
        return {n: v for n, v in body.items() if n not in CONTINUATION_FIELDS}
    response_format = body.get("response_format", {})
    if response_format.get("json_schema", {}).get("strict") and "response_format" in text:
        # Services with a strict mode refuse schemas that use more than a part of JSON schema.
        json_schema = {**response_format["json_schema"], "strict": False}
        return body | {"response_format": {**response_format, "json_schema": json_schema}}
    return None


def _read_model(entry: object) -> ListedModel | None:
    """Return a model from the list of a server; None for an entry without a usable name."""
    if not isinstance(entry, dict):
        return None
    name = entry.get("id") or entry.get("name") or entry.get("model")
    if (
        not isinstance(name, str)
        or not 0 < len(name) <= _MAX_NAME_CHARS
        or not name.isprintable()
        or name != name.strip()
    ):
        return None
    meta = entry.get("meta")
    values = [entry.get("max_model_len"), entry.get("context_length"), entry.get("n_ctx")]
    values += [meta.get("n_ctx")] if isinstance(meta, dict) else []
    n_ctx = next((v for v in values if isinstance(v, int) and not isinstance(v, bool) and 0 < v < 1 << 31), None)
    return ListedModel(id=name, n_ctx=n_ctx)
