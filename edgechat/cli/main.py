"""Entry point of the program and of its child processes."""

from __future__ import annotations

import os
import sys

from edgechat import __version__
from edgechat.process import EXIT_VERSION_CHANGED, HIDDEN_COMMANDS


def main() -> None:
    """Run a child process's hidden subcommand, the chat, or the command line."""
    ensure_standard_streams()
    if len(sys.argv) > 1 and sys.argv[1] in HIDDEN_COMMANDS:
        sys.exit(_run_child(sys.argv[1], sys.argv[2:]))
    if len(sys.argv) == 1 and sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        sys.exit(_chat())
    from edgechat.cli.root import run

    sys.exit(run())


def _chat() -> int:
    """Open the chat for a start without arguments, without importing click: it would delay the first frame."""
    from edgechat.errors import EdgechatError

    try:
        from edgechat.cli.chat import run_chat

        return run_chat()
    except EdgechatError as error:
        from edgechat.terminal import escape_controls

        print(f"edgechat: {escape_controls(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def ensure_standard_streams() -> None:
    """Open the null device for every closed standard stream; some services start programs with closed streams.

    Otherwise a pipe to a child process could get the descriptor of a standard stream, and the child would lose it.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115  (stays open)


def _run_child(name: str, arguments: list[str]) -> int:
    version, *arguments = arguments or [""]
    if version != __version__:
        return EXIT_VERSION_CHANGED
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
