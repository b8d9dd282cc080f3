#!/usr/bin/env python3
"""Print the manual page of edgechat, made from the commands' own help."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import click

from edgechat import __version__
from edgechat.cli.root import edgechat


def main() -> int:
    """Print it."""
    context = click.Context(edgechat, info_name="edgechat", **edgechat.context_settings)
    print(".\\\" Made by packaging/manpage.py from the commands' own help.")
    print(f'.TH EDGECHAT 1 "" "edgechat {__version__}" "User Commands"')
    print(".SH NAME\nedgechat \\- chat with open-weight models on this machine")
    print(".SH SYNOPSIS\n.B edgechat\n[OPTIONS] [COMMAND [ARGS]...]")
    print(f".SH DESCRIPTION\n{escaped(edgechat.help or '')}")
    print(".SH OPTIONS")
    print("\n".join(options(edgechat, context)))
    print(".SH COMMANDS")
    print("\n".join(commands(edgechat, context)))
    print(".SH FILES\n`edgechat doctor` shows where settings, conversations, models and the cache are.")
    print(f".SH EXIT STATUS\n.nf\n{escaped((edgechat.epilog or '').replace(chr(8), '').partition(':')[2])}\n.fi")
    return 0


def commands(group: click.Group, context: click.Context) -> Iterator[str]:
    """Each command, with those below it."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None or command.hidden:
            continue
        inner = click.Context(command, info_name=name, parent=context)
        yield f".SS {escaped(inner.command_path)}\n{escaped(command.help or '')}"
        yield from options(command, inner)
        if isinstance(command, click.Group):
            yield from commands(command, inner)


def options(command: click.Command, context: click.Context) -> Iterator[str]:
    """A command's options."""
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            yield f".TP\n.B {escaped(record[0])}\n{escaped(record[1])}"


def escaped(text: str) -> str:
    """Text as roff takes it; paragraphs stay apart."""
    lines = text.replace("\\", "\\e").replace("-", "\\-").splitlines()
    kept = [f"\\&{line.strip()}" if line.strip().startswith((".", "'")) else line.strip() for line in lines]
    return "\n".join(line or ".PP" for line in kept).strip()


if __name__ == "__main__":
    sys.exit(main())
