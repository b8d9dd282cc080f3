"""Cancellation of requests whose clients disconnect, and of all requests when the server ends."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.requests import Request

from edgechat.errors import EngineDiedError
from edgechat.serve.responding import cancel_on_disconnect


async def test_error_of_a_request_that_is_cancelled_at_the_same_time_is_retrieved() -> None:
    async def receive() -> Any:
        await asyncio.Event().wait()

    response: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    task = asyncio.ensure_future(cancel_on_disconnect(Request({"type": "http"}, receive), response))
    await asyncio.sleep(0)  # the task waits for the response from now on
    response.set_exception(EngineDiedError("The engine process died."))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not response._log_traceback  # else asyncio would log the error
