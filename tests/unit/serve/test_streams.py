"""Streams of server-sent events: chunks, comments in silence, prefill progress, and errors."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from edgechat.engine import protocol
from edgechat.errors import EngineError
from edgechat.serve.choices import Choice, ChoiceDelta, Delta, PromptProgress, UsageTotals, stream_deltas
from edgechat.serve.dialects.openai import DONE, PING, OpenAiDialect
from edgechat.serve.errors import ApiError
from edgechat.serve.event_stream import RequestEvent
from edgechat.serve.response_builder import PING_INTERVAL_S, ResponseBuilder
from edgechat.serve.schemas import CompletionRequest
from edgechat.serve.streams import encode_stream
from tests.unit.serve.examples import FakeQueue


class Builder(ResponseBuilder):
    ID_PREFIX, OBJECT, CHUNK_OBJECT = "x", "object", "chunk"

    async def build_requests(self) -> Any:
        raise AssertionError

    @property
    def grammar_param(self) -> str | None:
        return None

    def discard_prompt(self) -> None:
        pass

    def make_choice_objects(self, choices: list[Choice]) -> list[dict[str, Any]]:
        raise AssertionError

    def make_chunk_choices(self, delta: ChoiceDelta) -> list[dict[str, Any]]:
        return [{"text": delta.content}] if delta.content else []

    def make_progress_choice(self, choice_index: int) -> dict[str, Any]:
        return {"index": choice_index}


class FakeMetrics:
    def record_stats(self, stats: Any) -> None:
        pass


class FakeGeneration:
    """Generation that starts after some time-outs and yields given deltas, or raises an error."""

    def __init__(self, *deltas: Delta | Exception, n_timeouts: int = 0) -> None:
        self.totals = UsageTotals()
        self._deltas = deltas
        self._n_timeouts = n_timeouts

    async def wait_for_start(self, timeout_s: float | None) -> bool:
        self._n_timeouts -= 1
        return self._n_timeouts < 0

    async def deltas(self) -> AsyncIterator[Delta]:
        for delta in self._deltas:
            if isinstance(delta, Exception):
                raise delta
            await asyncio.sleep(0.001)
            yield delta


async def stream(generation: FakeGeneration, **options: Any) -> list[bytes]:
    builder = Builder(FakeQueue(), CompletionRequest(prompt="", stream=True, **options))  # type: ignore[arg-type]
    events = encode_stream(OpenAiDialect(builder), generation, FakeMetrics())  # type: ignore[arg-type]
    return [event async for event in events]


def data(event: bytes) -> Any:
    assert event.startswith(b"data: ")
    assert event.endswith(b"\n\n")
    return json.loads(event[6:])


async def test_silent_stream_has_comments() -> None:
    events = await stream(FakeGeneration(None, ChoiceDelta(0, "a"), n_timeouts=3))
    assert events[:3] == [PING] * 3
    assert data(events[3])["choices"] == [{"text": "a"}]
    assert events[4:] == [DONE]
    assert PING.startswith(b":")
    generation = FakeGeneration(*[None] * 300, ChoiceDelta(0, "a"))
    started_at = time.monotonic()
    events = await stream(generation, sse_ping_interval=0.2)
    n_half_intervals = (time.monotonic() - started_at) / 0.1
    assert 1 <= events.count(PING) <= n_half_intervals + 1  # once per half interval, not once per event


@pytest.mark.parametrize("interval", [-1, 0])
async def test_client_can_turn_comments_off(interval: int) -> None:
    builder = Builder(FakeQueue(), CompletionRequest(prompt="", stream=True, sse_ping_interval=interval))  # type: ignore[arg-type]
    assert builder.ping_s is None
    assert Builder(FakeQueue(), CompletionRequest(prompt="")).ping_s is None  # type: ignore[arg-type]
    assert Builder(FakeQueue(), CompletionRequest(prompt="", stream=True)).ping_s == PING_INTERVAL_S  # type: ignore[arg-type]
    assert PING not in await stream(FakeGeneration(*[None] * 50), sse_ping_interval=interval)


async def test_progress_is_sent_only_to_clients_that_ask_for_it() -> None:
    progress = PromptProgress(2, 100, 10, 40, 0.5)
    assert await stream(FakeGeneration(progress)) == [DONE]
    event, done = await stream(FakeGeneration(progress), return_progress=True)
    assert done == DONE
    assert data(event)["prompt_progress"] == {"total": 100, "cache": 10, "processed": 40, "time_ms": 500}
    assert data(event)["choices"] == [{"index": 2}]


@pytest.mark.parametrize(
    ("error", "message"),
    [(EngineError("E"), "E"), (ApiError(503, "A"), "A"), (ValueError("secret"), "Internal error (ValueError)")],
)
async def test_error_ends_a_stream(error: Exception, message: str) -> None:
    chunk, event, done = await stream(FakeGeneration(ChoiceDelta(0, "a"), error))
    assert data(chunk)["choices"]
    assert message in data(event)["error"]["message"]
    assert "secret" not in event.decode()
    assert done == DONE


class FakeEvents:
    def __init__(self, *events: protocol.AnyEvent | None) -> None:
        self._events = [RequestEvent(0, event) for event in events]

    async def next(self) -> RequestEvent | None:
        return self._events.pop(0) if self._events else None


async def test_engine_events_become_progress() -> None:
    events = FakeEvents(
        None, protocol.PrefillProgressed(id=1, done_tokens=4, total_tokens=9, cached_tokens=4), None,
        protocol.PrefillProgressed(id=1, done_tokens=9, total_tokens=9, cached_tokens=4),
    )  # fmt: skip
    deltas = [delta async for delta in stream_deltas(events, [], 1, UsageTotals())]  # type: ignore[arg-type]
    assert [isinstance(delta, PromptProgress) for delta in deltas] == [False, True, False, True]
    first, last = (delta for delta in deltas if isinstance(delta, PromptProgress))
    assert (first.n_total, first.n_cached, first.n_processed) == (9, 4, 4)
    assert last.n_processed == 9
    assert last.elapsed_s >= first.elapsed_s >= 0
