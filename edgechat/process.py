"""How edgechat starts processes of itself, and how they are told apart from commands of the user.

A child's command line starts with a word from `HIDDEN`, which `edgechat.cli.main` hands to its function
before it imports anything else; this works in a frozen executable too. Next is the version of its parent: files may be
replaced while a program runs, and a child of another version would speak of other things than its parent.
"""

from __future__ import annotations

import sys
from typing import Final

from edgechat import __version__

EXIT_VERSION_CHANGED: Final = 75
"""Exit code of a child that is not of its parent's version (EX_TEMPFAIL of sysexits.h)."""
UPGRADED_MESSAGE: Final = "edgechat was upgraded while this one ran: quit and start it again, all that was said is kept"
HIDDEN_COMMANDS: Final = ("_engine", "_selftest", "_speeds", "_quantise", "_case", "_render")

# `-m` and `-c` put the current directory first on sys.path: a file planted where the user happens to be
# would be imported. `sys` is built in, so this runs before anything can be looked up there.
_START: Final = "import sys; sys.path[:] = [p for p in sys.path if p]; from edgechat.cli.main import main; main()"


def command_line(*arguments: str) -> list[str]:
    """The command line of a child process of this program; `arguments[0]` may be one of `HIDDEN`."""
    start = [sys.executable] if getattr(sys, "frozen", False) else [sys.executable, "-X", "utf8", "-c", _START]
    if arguments[0] in HIDDEN_COMMANDS:
        return [*start, arguments[0], __version__, *arguments[1:]]
    return [*start, *arguments]
