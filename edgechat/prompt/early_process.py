"""A render process that is started before the command line is parsed.

It needs as much time to start as a command needs to parse its options and to attach to an engine, so both run at the
same time. If the command ends without using it, its pipe closes, and the process ends by itself.
"""

from __future__ import annotations

import contextlib
import subprocess

from edgechat.engine.pipe import Channel, spawn_child
from edgechat.errors import EngineDiedError

RenderProcess = tuple[subprocess.Popen[bytes], Channel]
_started: list[RenderProcess] = []


def start() -> None:
    """Start a render process for the next `take`. Ignores errors: the renderer tries again, and reports them."""
    with contextlib.suppress(EngineDiedError):
        _started.append(spawn_child(["_render"], subprocess.DEVNULL))


def take() -> RenderProcess | None:
    """Return the started process, which then belongs to the caller; None without one."""
    return _started.pop() if _started else None
