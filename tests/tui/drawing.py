"""Wait until a chat application has handled all events and drawn the result.

Textual's pilot waits until the process uses little CPU time. So does a process that waits for a core, so that on a busy
machine the pilot returns too early; on an idle one it sleeps for 40 ms after each key.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from textual._context import active_app

from tests import waiting
from tests.waiting import Description

if TYPE_CHECKING:
    from textual.app import App
    from textual.screen import Screen

MAX_S = 60.0
"""Time after which an application that never finishes to draw fails the test."""
TYPE_AHEAD_INTERVAL_S = 0.002


async def wait_until_drawn(_min_s: float = 0.0, _max_s: float = 0.0) -> None:
    """Wait until the running application has handled all events and drawn its screens.

    It does not wait for threads and for timers, except for the timer that hands over keys to a screen that opens. The
    parameters are those of Textual's `wait_for_idle`, which it replaces; they have no effect.
    """
    app = active_app.get(None)
    deadline = time.monotonic() + MAX_S
    drawn_below: set[Screen[Any]] = set()
    while app is not None and not app._closed:
        await asyncio.sleep(0)
        if time.monotonic() > deadline:
            pytest.fail("The application does not finish to draw.")
        if asyncio.get_running_loop()._ready:  # type: ignore[attr-defined]
            continue  # another task can run
        screen = next(_find_changed_screens(app, drawn_below), None)
        if app._resize_timer is not None:
            app._check_resize()  # as the timer does
        elif screen is not None:
            screen._on_timer_update()
        elif getattr(app, "_waiting_events", None) is not None and app._running:
            await asyncio.sleep(TYPE_AHEAD_INTERVAL_S)
        else:
            return


def _find_changed_screens(app: App[Any], drawn_below: set[Screen[Any]]) -> Iterator[Screen[Any]]:
    """Yield the visible screens that are not drawn after a change, or whose next frame a callback waits for.

    A screen below another one stays marked as changed when it is drawn, so that it is added to `drawn_below`.
    """
    for screen in app.screen_stack[::-1]:
        is_changed = (
            screen._layout_required
            or screen._scroll_required
            or screen._repaint_required
            or screen._recompose_required
            or screen._dirty_widgets
            or screen._callbacks
        )
        is_below = screen is not app.screen
        if is_changed and screen.is_current and not app._batch_count and screen not in drawn_below:
            if is_below:
                drawn_below.add(screen)
            yield screen


async def until_async(condition: Callable[[], object], timeout_s: float = 60, description: Description = "") -> None:
    """Wait for `condition`, and then until the application has handled all events and drawn its screen."""
    await waiting.until_async(condition, timeout_s, description or (lambda: waiting.source(condition)))
    await wait_until_drawn()
