"""The command `edgechat` itself, and what holds for all its subcommands."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

from edgechat import __version__
from edgechat.cli.options import conversation_options
from edgechat.errors import EdgechatError, UsageError

EXIT_CODES = """
\b
Exit codes:
  0    fine
  2    usage: an option, a setting or standard input that cannot be used
  3    model file: missing, damaged, or its chat template fails
  4    runtime: no native bundle, no working backend, the engine died, or a download failed
  5    does not fit: the model in memory, or the prompt in the context
  6    network: the hub or another server refused, or cannot be reached
  130  interrupted with Ctrl-C
  141  nobody reads the output any more
"""


# Where each command is; it is imported when it is called, or when help lists them all.
_COMMANDS = {
    "ask": "ask", "history": "history", "models": "models", "plan": "plan", "doctor": "doctor", "bench": "bench",
    "config": "config", "completion": "completion", "serve": "serve", "uninstall": "uninstall",
}  # fmt: skip


class _Root(click.Group):
    """Ends quietly when nobody reads the output any more, before click turns that into an exit code of 1."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """All names."""
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """The command of this name."""
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"edgechat.cli.{_COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def invoke(self, ctx: click.Context) -> object:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # The interpreter would complain once more when it closes standard output.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(141)


@click.group(
    cls=_Root,
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
    help="Chat line by line, without drawing: for screen readers, dumb terminals and pipes.",
)
@click.pass_context
def edgechat(context: click.Context, /, *, plain: bool | None, **options: Any) -> None:
    """Chat with an open-weight model on this machine.

    Without a command: opens the chat on a terminal, or answers what comes on standard input.
    """
    if context.invoked_subcommand is not None:
        if plain or any(value is not None for value in options.values()):
            raise UsageError(f"options go after the command: edgechat {context.invoked_subcommand} ... OPTIONS")
        return
    if plain or (sys.stdin.isatty() and os.environ.get("TERM") == "dumb"):
        from edgechat.cli.plain_chat import run_plain

        context.exit(run_plain(**options))
    if not sys.stdin.isatty():
        from edgechat.cli.ask import ask_stdin

        ask_stdin(**options)
        return
    if not sys.stdout.isatty():
        raise UsageError("the chat needs a terminal to draw on: use `edgechat ask` to write an answer to a file")
    from edgechat.cli.main import open_chat

    context.exit(open_chat(**options))


def run() -> int:
    """Run the command line; returns the exit code."""
    from edgechat.terminal import visible

    try:
        # click's own handling of errors and aborts is not used: it knows neither our codes nor 130.
        result = edgechat.main(standalone_mode=False, prog_name="edgechat")
    except EdgechatError as error:
        # Some of these words come out of a model file or a log.
        click.echo(f"edgechat: {visible(str(error))}", err=True)
        return error.exit_code
    except UnicodeError as error:
        click.echo(f"edgechat: an argument or a file name is not UTF-8 text: {error}", err=True)
        return UsageError.exit_code
    except OSError as error:
        click.echo(f"edgechat: {visible(str(error))}", err=True)
        return EdgechatError.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return 130
    return result if isinstance(result, int) else 0
