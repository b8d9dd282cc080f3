"""Generation of one response: admission to the queue, prompts, engine requests, and their output."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from edgechat.engine import protocol
from edgechat.errors import GrammarError
from edgechat.serve import errors
from edgechat.serve.choices import Choice, Delta, UsageTotals, stream_deltas
from edgechat.serve.response_builder import ResponseBuilder
from edgechat.serve.tasks import silence_exception


class Generation:
    """Engine requests of one response. They start at once; the caller must call `close`, even after errors."""

    def __init__(self, builder: ResponseBuilder, client: str, body_memory: contextlib.AsyncExitStack) -> None:
        """Start the generation for the client address `client`; `body_memory` is closed when the prompts are built."""
        self.choices: list[Choice] = []
        self.totals = UsageTotals()
        self._builder = builder
        self._body_memory = body_memory
        self._resources = contextlib.ExitStack()
        self._start_task = asyncio.ensure_future(self._start(client))

    async def _start(self, client: str) -> tuple[Delta, AsyncIterator[Delta]]:
        """Submit the engine requests, and wait for the first event, so that an early error can set the HTTP status."""
        builder = self._builder
        try:
            async with self._body_memory:
                self._resources.enter_context(builder.queue.admit(client))
                requests, self.choices = await builder.build_requests()
                builder.discard_prompt()
            return await self._generate(requests)
        except GrammarError as error:
            raise errors.to_api_error(error, builder.grammar_param) from error

    async def _generate(self, requests: list[protocol.Generate]) -> tuple[Delta, AsyncIterator[Delta]]:
        events = await self._builder.queue.submit(requests, self._builder.ping_s, self._builder.id)
        self._resources.callback(events.close)
        deltas = stream_deltas(events, self.choices, requests[0].n_sequences, self.totals)
        return await anext(deltas), deltas

    async def wait_for_start(self, timeout_s: float | None = None) -> bool:
        """Wait for the first event; return False after `timeout_s`. Raises the error of a failed start."""
        await asyncio.wait({self._start_task}, timeout=timeout_s)
        if self._start_task.done():
            self._start_task.result()
        return self._start_task.done()

    async def deltas(self) -> AsyncIterator[Delta]:
        """Yield the output of all choices. Raises ApiError and EdgechatError."""
        first_delta, deltas = await self._start_task
        yield first_delta
        async for delta in deltas:
            yield delta

    async def finish(self) -> None:
        """Wait until all choices are complete. Raises ApiError and EdgechatError."""
        async for _ in self.deltas():
            pass

    async def close(self) -> None:
        """Cancel unfinished engine requests, and leave the queue."""
        try:
            await cancel_task(self._start_task)
        finally:
            self._resources.close()
            await self._body_memory.aclose()


async def cancel_task(task: asyncio.Future[Any]) -> None:
    """Cancel a task and wait until it ends. An error of the task is not raised here, but where its result is awaited.

    Raises CancelledError if the caller is cancelled while it waits.
    """
    task.cancel()
    silence_exception(task)
    await asyncio.wait({task})
