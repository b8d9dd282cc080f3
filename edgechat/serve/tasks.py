"""Tasks of asyncio that no caller may wait for any more."""

from __future__ import annotations

import asyncio
from typing import Any


def silence_exception(task: asyncio.Future[Any]) -> None:
    """Keep asyncio from logging the exception of a task that nothing else retrieves."""
    task.add_done_callback(lambda done_task: done_task.cancelled() or done_task.exception())
