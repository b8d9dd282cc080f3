"""Where the program starts."""

from __future__ import annotations

import gc
import os
import sys
from typing import Any

from edgechat import __version__
from edgechat.process import CHANGED, HIDDEN


def main() -> None:
    """Run a hidden subcommand of a child process, or the command line."""
    have_standard_streams()
    if len(sys.argv) > 1 and sys.argv[1] in HIDDEN:
        sys.exit(_hidden(sys.argv[1], sys.argv[2:]))
    if len(sys.argv) == 1 and sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        sys.exit(_chat())
    from edgechat.cli.root import run

    sys.exit(run())


def _chat() -> int:
    """The chat as most people start it: the command line has nothing to say, so it is not read either."""
    from edgechat.errors import EdgechatError

    try:
        return open_chat()
    except EdgechatError as error:
        from edgechat.terminal import visible

        print(f"edgechat: {visible(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def open_chat(**options: Any) -> int:
    """Hold a conversation on this terminal; returns the exit code. Raises EdgechatError."""
    # The first frame waits for imports, which make a great many objects and no garbage: the app collects again
    # once the frame is painted.
    gc.disable()
    from edgechat.cli.chat import run_chat

    return run_chat(**options)


def have_standard_streams() -> None:
    """Open what was closed on the null device, as some services start programs.

    Otherwise a pipe of ours would get the number of a standard stream, and a child would lose it.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115  (for good)


def _hidden(name: str, arguments: list[str]) -> int:
    version, *arguments = arguments or [""]
    if version != __version__:
        return CHANGED
    if name == "_engine":
        from edgechat.engine.server import main as child
    elif name == "_selftest":
        from edgechat.runtime.backends.selftest import main as child
    elif name == "_speeds":
        from edgechat.runtime.backends.kernel_benchmark import main as child
    elif name == "_quantise":
        from edgechat.runtime.quantize import main as child
    elif name == "_case":
        from edgechat.bench.memory import case_main as child
    else:
        from edgechat.prompt.sandbox import main as child
    return child(arguments)
