"""Where the program starts."""

from __future__ import annotations

import sys

from edgechat.process import HIDDEN


def main() -> None:
    """Run a hidden subcommand of a child process, or the command line."""
    if len(sys.argv) > 1 and sys.argv[1] in HIDDEN:
        sys.exit(_hidden(sys.argv[1], sys.argv[2:]))
    from edgechat.cli.commands import run

    sys.exit(run())


def _hidden(name: str, arguments: list[str]) -> int:
    if name == "_engine":
        from edgechat.engine.host import main as child
    elif name == "_selftest":
        from edgechat.runtime.selftest import main as child
    else:
        from edgechat.chat.template import main as child
    return child(arguments)
