"""The root command `edgechat`: options, subcommands, exit codes and error output."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
from typing import Any

import click

from edgechat import __version__
from edgechat.cli.options import conversation_options
from edgechat.errors import MAX_MESSAGE_CHARS, EdgechatError, EngineDiedError, UsageError, describe_failure
from edgechat.humanize import shorten
from edgechat.signals import HANGUP_EXIT_CODE
from edgechat.terminal import escape_controls, is_gone

EXIT_CODES = """
\b
Exit codes:
  0    success
  2    usage: invalid option, setting, conversation or standard input
  3    model file: missing or damaged, or an error in its chat template
  4    runtime: no working backend, the engine died, or the history or a download failed
  5    size: the model is too large for the memory, or the prompt for the context
  6    network: the hub or another server is unreachable, or refused the request
  129  the terminal was closed (SIGHUP)
  130  interrupted with Ctrl-C
  141  broken pipe: the program that reads the output has ended
  143  ended by SIGTERM; in general, 128 plus the number of the signal
"""

# Module of each subcommand. A module is imported only when its command runs or when help lists all commands.
_COMMANDS = {
    "ask": "ask", "history": "history", "models": "models", "plan": "plan", "doctor": "doctor", "bench": "bench",
    "config": "config", "completion": "completion", "serve": "serve", "uninstall": "uninstall",
}  # fmt: skip


class _RootGroup(click.Group):
    """Command group that imports subcommands lazily. The exit code for a broken output pipe is 141, not click's 1."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"edgechat.cli.{_COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            ctx.exit(141)


@click.group(
    cls=_RootGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=EXIT_CODES,
)
@click.version_option(__version__, prog_name="edgechat")
@conversation_options
@click.option(
    "--plain",
    is_flag=True,
    default=None,
    help="Chat line by line, for screen readers, dumb terminals and pipes.",
)
@click.pass_context
def edgechat(context: click.Context, /, *, plain: bool | None, **options: Any) -> None:
    """Chat with an open-weight language model on this machine.

    Without a command, opens the chat. If standard input is not a terminal, prints a reply to its text instead.
    """
    if context.invoked_subcommand is not None:
        if plain or any(value is not None for value in options.values()):
            raise UsageError(f"Options belong after the command: edgechat {context.invoked_subcommand} ... OPTIONS")
        return
    if plain or (sys.stdin.isatty() and os.environ.get("TERM") == "dumb"):
        from edgechat.cli.plain_chat import run_plain

        context.exit(run_plain(**options))
    if not sys.stdin.isatty():
        from edgechat.cli.ask import ask_stdin

        ask_stdin(**options)
        return
    if not sys.stdout.isatty():
        raise UsageError("The chat needs a terminal. To write a reply to a file, use `edgechat ask`.")
    from edgechat.cli.chat import run_chat

    context.exit(run_chat(**options))


def run() -> int:
    """Run the command given on the command line, print its error if it fails, and return the exit code."""
    try:
        # Standalone mode would replace edgechat's exit codes with click's.
        result = edgechat.main(standalone_mode=False, prog_name="edgechat")
    except (OSError, MemoryError) as error:
        return _report_os_error(error)
    except (EdgechatError, UnicodeError) as error:
        message, exit_code = describe_failure(error)
        _print_error(message)
        return exit_code
    except click.ClickException as error:
        output = io.StringIO()
        error.show(output)
        click.echo(shorten(output.getvalue(), 2 * MAX_MESSAGE_CHARS), nl=False, err=True)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return 130
    return result if isinstance(result, int) else 0


def _report_os_error(error: OSError | MemoryError) -> int:
    """Print an error of the operating system, unless the terminal is gone, and return the exit code."""
    if is_gone(sys.stdout) or is_gone(sys.stderr):
        return HANGUP_EXIT_CODE
    _print_error(describe_failure(error)[0])
    return EdgechatError.exit_code


def _print_error(text: str) -> None:
    """Print an error message, which can contain control characters from a model file or a log."""
    with contextlib.suppress(OSError):  # standard error can be closed
        click.echo(f"edgechat: {escape_controls(shorten(text, EngineDiedError.max_chars))}", err=True)
