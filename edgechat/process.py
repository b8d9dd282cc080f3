"""Command lines of edgechat's own child processes.

The first argument of a child is a hidden subcommand, which `edgechat.cli.main` runs before it imports anything else;
this also works in a frozen executable. The second argument is the parent's version, because an upgrade may replace the
files of a running program, and a child of another version could use an incompatible protocol.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Final

from edgechat import __version__

EXIT_VERSION_CHANGED: Final = 75
"""Exit code of a child whose version differs from its parent's (EX_TEMPFAIL of sysexits.h)."""
KILL_SIGNAL: Final = getattr(signal, "SIGKILL", 9)
"""Signal that Linux sends to a process to free memory when the machine runs out of it."""
EXIT_STALLED: Final = 70
"""Exit code of an engine process that ended itself because it made no progress (EX_SOFTWARE of sysexits.h)."""
EXIT_GPU_FAILED: Final = 71
"""Exit code of a resident engine that ended itself because its GPU failed (EX_OSERR of sysexits.h)."""
UPGRADED_MESSAGE: Final = "edgechat was upgraded while it was running. Restart edgechat; the conversation is saved."
HIDDEN_COMMANDS: Final = (
    "_engine", "_selftest", "_speeds", "_quantise", "_case", "_busy", "_kv", "_divergence", "_render",
    "_grammar", "_import", "_extract",
)  # fmt: skip

# Python's options -m and -c put the current directory first on sys.path, where a file could shadow a module. `sys` is a
# built-in module, so this code can remove the directory before the first import from a file.
_START_CODE: Final = "import sys; sys.path[:] = [p for p in sys.path if p]; from edgechat.cli.main import main; main()"


def make_command_line(*arguments: str) -> list[str]:
    """Return the command line that runs edgechat with `arguments`; the version follows a hidden subcommand."""
    command = [sys.executable] if getattr(sys, "frozen", False) else [sys.executable, "-X", "utf8", "-c", _START_CODE]
    if arguments[0] in HIDDEN_COMMANDS:
        return [*command, arguments[0], __version__, *arguments[1:]]
    return [*command, *arguments]


def end_with_parent() -> None:
    """End this process as soon as its standard input is closed, even while native code computes.

    The parent keeps a pipe to the standard input open, which the system closes when the parent ends, even by SIGKILL.
    """
    threading.Thread(target=_end_at_eof, name="end-with-parent", daemon=True).start()


def _end_at_eof() -> None:
    while os.read(0, 4096):  # takes no lock for which the exit of the interpreter would wait
        pass
    os._exit(1)
