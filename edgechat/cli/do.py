"""`edgechat do`: have the model write a shell command, and run it after the user confirmed it."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any, Final

import click

from edgechat.cli.options import reply_options
from edgechat.cli.progress import StderrStatus
from edgechat.errors import DeclinedError, UsageError

if TYPE_CHECKING:
    from edgechat.cli.shell_command import ShellCommand

_MAX_REPLY_TOKENS: Final = 700


@click.command()
@click.argument("request", nargs=-1, required=True)
@click.option("--print", "print_only", is_flag=True, help="Print only the command, and never run it; for scripts.")
@reply_options
def do(request: tuple[str, ...], print_only: bool, **options: Any) -> None:
    """Write a shell command, and run it if you confirm it.

    The model writes one command for your shell ($SHELL), and explains it. You can run it, edit it, or decline. Without
    a terminal to ask on, nothing is run. The exit code is that of the command. Neither the request nor the command is
    saved in the history.
    """
    command = _request_command(" ".join(request), options)
    if print_only:
        _print_command(command)
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        _show(command, err=False)
        raise DeclinedError("Nothing was run, because there is no terminal to ask on. --print prints only the command.")
    from edgechat.cli.shell_command import run_command

    run_command(confirm(command))


def _request_command(request: str, options: dict[str, Any]) -> ShellCommand:
    from edgechat.cli.shell_command import SCHEMA, make_command, make_instructions
    from edgechat.cli.structured_reply import fill_defaults, generate_fields

    if not request.strip():
        raise UsageError('The request is empty. Example: edgechat do "find files larger than 1 GB"')
    request.encode()  # raises UnicodeEncodeError if the argument is not UTF-8
    fields = generate_fields(
        [request], schema=SCHEMA, system_prompt=make_instructions(), status=StderrStatus(),
        status_text="Writing a command",
        **fill_defaults(options, max_tokens=_MAX_REPLY_TOKENS, temperature=0.0),
    )  # fmt: skip
    return make_command(fields["command"], fields["explanation"])


def _print_command(command: ShellCommand) -> None:
    """Print a command for a script. Raises UsageError if it contains characters that a terminal does not show."""
    if not command.is_shown_exactly:
        raise UsageError(f"The command contains characters that are not shown: {command.shown_text}")
    click.echo(command.text)


def _show(command: ShellCommand, *, err: bool) -> None:
    lines = command.shown_text.split("\n")
    click.echo("\n".join(["", *(f"  {line}" for line in lines), ""]), err=err)
    if command.explanation:
        click.echo(command.explanation, err=err)


def confirm(command: ShellCommand) -> ShellCommand:
    """Show a command, and ask until the user confirms or declines it; return the confirmed command.

    An edited command is shown again. A command that contains characters which are not shown can only be edited. Raises
    DeclinedError unless the user answers with y.
    """
    can_edit = sys.stdout.isatty()
    while True:
        _show(command, err=True)
        n_lines = command.text.count("\n") + 1
        question = "Run this command?" if n_lines == 1 else f"Run these {n_lines} lines?"
        if not command.is_shown_exactly:
            question = "It contains characters that are not shown, and cannot be run."
        choices = ["[y]es"] * command.is_shown_exactly + ["[e]dit"] * can_edit + ["[N]o"]
        answer = _read_answer(f"{question} {', '.join(choices)}: ")
        if answer in {"y", "yes"} and command.is_shown_exactly:
            return command
        if answer not in {"e", "edit"} or not can_edit:
            raise DeclinedError("Nothing was run, because the question was not answered with y.")
        command = _edit(command)


def _read_answer(question: str) -> str:
    """Ask on standard error and return the answer in lower case; "" at the end of the input.

    Keys that were pressed before the question are discarded.
    """
    with contextlib.suppress(ImportError, OSError, ValueError):  # Windows, or a stream without a file
        import termios

        with contextlib.suppress(termios.error):
            termios.tcflush(sys.stdin.fileno(), termios.TCIFLUSH)
    click.echo(question, nl=False, err=True)
    line = sys.stdin.readline()
    if not line:
        click.echo(err=True)
    return line.strip().lower()


def _edit(command: ShellCommand) -> ShellCommand:
    from edgechat.cli.shell_command import make_command

    text = _edit_text(command.shown_text)
    if not text.strip():
        raise DeclinedError("Nothing was run, because the edited command is empty.")
    return make_command(text, command.explanation if text == command.text else "")


def _edit_text(text: str) -> str:
    """Let the user edit a text: in the input line if it is one line and readline is installed, else in an editor."""
    with contextlib.suppress(ImportError):
        if "\n" not in text:
            import readline

            readline.set_startup_hook(lambda: readline.insert_text(text))
            try:
                return input("Command: ")
            except EOFError:
                raise DeclinedError("Nothing was run, because the command was not confirmed.") from None
            finally:
                readline.set_startup_hook(None)
    from edgechat.tui.editor import Editor

    return Editor().edit(text)
