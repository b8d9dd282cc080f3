"""Wait in a test until a condition is true: `until` blocks the thread, `until_async` lets the event loop run."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

Description = str | Callable[[], str]
"""Description of the condition, or a function that returns it after the wait failed."""


def until(
    condition: Callable[[], object], timeout_s: float = 60, description: Description = "", *, interval_s: float = 0.01
) -> None:
    """Call `condition` every `interval_s` until it is true; fail the test after `timeout_s` and name the condition."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            _fail(condition, timeout_s, description)
        time.sleep(interval_s)


async def until_async(
    condition: Callable[[], object], timeout_s: float = 60, description: Description = "", *, interval_s: float = 0.01
) -> None:
    """Wait for `condition` as `until` does, but let the event loop run between two calls.

    The condition may query a widget of the chat that is not mounted yet; then it counts as false.
    """
    from textual.css.query import NoMatches

    deadline = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(NoMatches):
            if condition():
                return
        if time.monotonic() > deadline:
            _fail(condition, timeout_s, description)
        await asyncio.sleep(interval_s)


def delete_tree(directory: Path) -> None:
    """Delete a directory in which another process may create files meanwhile.

    `shutil.rmtree` fails if a file appears after it has listed the directory.
    """

    def is_deleted() -> bool:
        shutil.rmtree(directory, ignore_errors=True)
        return not directory.exists()

    until(is_deleted, description=f"{directory} is deleted")


def has_ended(process: psutil.Process) -> bool:
    """Return whether a process has ended, whether or not its parent has read its exit code."""
    try:
        return not process.is_running() or bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _fail(condition: Callable[[], object], timeout_s: float, description: Description) -> None:
    text = description() if callable(description) else description
    pytest.fail(f"Not true within {timeout_s:g} s: {text or source(condition)}", pytrace=True)


def source(condition: Callable[[], object]) -> str:
    """Return the name of a function, or for a lambda its source code with the surrounding statement on one line."""
    name = getattr(condition, "__qualname__", "")
    if name and not name.endswith("<lambda>"):
        return name
    try:
        return " ".join(inspect.getsource(condition).split())
    except (OSError, TypeError):
        return repr(condition)
