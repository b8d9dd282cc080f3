"""Cancellation of the tasks of a response."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from typing import Any

import pytest

from edgechat.serve.generation import Generation, cancel_task


async def test_cancellation_of_the_caller_is_not_swallowed() -> None:
    can_end, is_cancelled = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            is_cancelled.set()
            await can_end.wait()
            raise

    async def close() -> str:
        await cancel_task(task)
        return "continued"

    task = asyncio.ensure_future(work())
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(close())
    await is_cancelled.wait()
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    can_end.set()
    await asyncio.wait({task})
    assert task.cancelled()


async def test_error_of_a_cancelled_task_is_ignored() -> None:
    async def fail() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError

    errors: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: errors.append(context))
    task = asyncio.ensure_future(fail())
    await asyncio.sleep(0)
    await cancel_task(task)
    await cancel_task(task)
    assert task.done()
    del task
    gc.collect()
    assert not errors


class Builder:
    """Builder whose requests run until the test ends them."""

    ping_s = None

    def __init__(self) -> None:
        self.queue = self
        self.n_admitted = 0
        self.can_end = asyncio.Event()

    @contextlib.contextmanager
    def admit(self, _client: str) -> Any:
        self.n_admitted += 1
        try:
            yield
        finally:
            self.n_admitted -= 1

    async def build_requests(self) -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            await self.can_end.wait()


async def test_resources_are_freed_if_the_end_is_cancelled() -> None:
    builder, memory, is_free = Builder(), contextlib.AsyncExitStack(), asyncio.Event()
    memory.callback(is_free.set)
    generation = Generation(builder, "127.0.0.1", memory)  # type: ignore[arg-type]
    await asyncio.sleep(0)
    assert builder.n_admitted == 1
    closing = asyncio.ensure_future(generation.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert builder.n_admitted == 0
    assert is_free.is_set()
    builder.can_end.set()
