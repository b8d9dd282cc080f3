"""Load of a served model that several requests wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from edgechat.serve.tasks import silence_exception

T = TypeVar("T")


class SharedLoad:
    """The last load of a model. It continues without the request that started it, so that two never run at once."""

    def __init__(self) -> None:
        self._task: asyncio.Task[Any] | None = None

    async def wait(self) -> None:
        """Wait until no load is in progress. The error of a load is raised where it was started."""
        while self._task is not None and not self._task.done():
            await asyncio.wait({self._task})

    async def run(self, load: Callable[[], T]) -> T:
        """Call `load` in a thread and return its result. If the caller is cancelled, the load continues.

        Call this right after `wait`, without another `await` in between. Raises the exceptions of `load`.
        """
        task = self._task = asyncio.create_task(asyncio.to_thread(load))
        silence_exception(task)
        return await asyncio.shield(task)
