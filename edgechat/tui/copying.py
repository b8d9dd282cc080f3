"""Copy text from the chat to the clipboard and to a file, without blocking the event loop."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from edgechat.tui import textual_private

if TYPE_CHECKING:
    from edgechat.tui.textual_private import CrashReportApp


def copy(app: CrashReportApp[int], text: str, label: str = "", *, save_file: bool = False) -> None:
    """Copy `text` to every clipboard that can be reached, and if `save_file`, also save it to a file.

    A notification reports the result, unless `label`, the name of the text, is empty.
    """
    textual_private.set_clipboard(app, text)
    app.run_worker(_copy(app, text, label, save_file=save_file))


async def _copy(app: CrashReportApp[int], text: str, label: str, *, save_file: bool) -> None:
    from edgechat.tui import clipboard

    names = await asyncio.to_thread(clipboard.run_programs, text)
    was_sent = len(text) <= clipboard.MAX_CHARS
    if was_sent:
        textual_private.write_to_terminal(app, clipboard.make_osc52_sequence(text, is_in_tmux=clipboard.TMUX in names))
    file = await asyncio.to_thread(clipboard.save_copy, text) if save_file else None
    if label:
        app.notify(clipboard.summary(label, names, file, was_sent=was_sent))
