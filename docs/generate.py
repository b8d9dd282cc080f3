#!/usr/bin/env python3
"""Write docs/cli.md from the commands' own help; with --check, fail if it is out of date."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from edgechat.cli.commands import edgechat

TARGET = Path(__file__).parent / "cli.md"
HEAD = "# The command line\n\nMade by `make docs` from the commands' own help.\n"


def main() -> int:
    """Write or check the file; 1 if a check fails."""
    text = HEAD + "".join(
        sections(edgechat, click.Context(edgechat, info_name="edgechat", **edgechat.context_settings))
    )
    if "--check" not in sys.argv:
        TARGET.write_text(text, encoding="utf-8")
        return 0
    if TARGET.is_file() and TARGET.read_text(encoding="utf-8") == text:
        return 0
    print(f"{TARGET.name} is out of date: run `make docs`", file=sys.stderr)
    return 1


def sections(command: click.Command, context: click.Context) -> list[str]:
    """Help of a command and of all below it."""
    context.terminal_width = context.max_content_width = 100
    found = [f"\n## {context.command_path}\n\n```\n{command.get_help(context)}\n```\n"]
    if isinstance(command, click.Group):
        for name in sorted(command.commands):
            below = command.commands[name]
            found += sections(below, click.Context(below, info_name=name, parent=context))
    return found


if __name__ == "__main__":
    sys.exit(main())
