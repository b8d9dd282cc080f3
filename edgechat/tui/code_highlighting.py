"""Highlighting of long code blocks in a thread, for every screen with a transcript."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from edgechat.tui.workers import format_error

if TYPE_CHECKING:
    from edgechat.tui.render.palette import Palette
    from edgechat.tui.widgets.transcript import Transcript


async def highlight_block(
    transcript: Transcript, request: Transcript.HighlightRequested, get_palette: Callable[[], Palette],
    show_error: Callable[[str], object],
) -> None:  # fmt: skip
    """Highlight the code block that `transcript` has requested, unless the colours or the wrapping change meanwhile.

    If that fails, the code stays without colours, and `show_error` is called with the reason.
    """
    from edgechat.tui.render.code_layout import CodeLayout, highlight_code

    layout, width = request.block, request.width
    if not isinstance(layout, CodeLayout):
        return
    palette, wraps = get_palette(), layout.wraps
    try:
        rows = await asyncio.to_thread(highlight_code, layout.block, width, palette, wrap=wraps)
    except Exception as error:  # noqa: BLE001  (any error is shown, and the code stays without colours)
        show_error(f"Cannot highlight the code: {format_error(error)}")
        return
    is_current = palette is get_palette() and wraps == layout.wraps
    transcript.apply_highlighting(layout, rows if is_current else [], width)
