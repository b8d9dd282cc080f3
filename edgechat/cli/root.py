"""The root command `edgechat`: options, subcommands, exit codes and error output."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import traceback
from typing import TYPE_CHECKING, Any

import click

from edgechat import __version__, signals
from edgechat.cli.options import conversation_options
from edgechat.cli.progress import echo_note
from edgechat.errors import MAX_MESSAGE_CHARS, EdgechatError, EngineDiedError, UsageError, describe_failure
from edgechat.humanize import shorten
from edgechat.terminal import escape_controls, is_gone

if TYPE_CHECKING:
    from types import FrameType

EXIT_CODES = """
\b
Exit codes:
  0    success
  1    a confirmation was declined, or an error in edgechat itself (traceback)
  2    usage: invalid option, setting, conversation, attachment or import
  3    model file: missing or damaged, or an error in its chat template
  4    runtime: no working backend, engine died, or history or download failed
  5    size: the model exceeds the memory, or the input the context
  6    network: the hub or another server is unreachable or refuses
  127  the coding agent that `edgechat launch` should start is not installed
  129  the terminal was closed (SIGHUP)
  130  interrupted with Ctrl-C
  141  broken pipe: the program that reads the output has ended
  143  ended by SIGTERM; in general, 128 plus the number of the signal
"""

# Module of each subcommand. A module is imported only when its command runs or when help lists all commands.
_COMMANDS = {
    "ask": "ask", "history": "history", "models": "models", "plan": "plan", "doctor": "doctor", "bench": "bench",
    "config": "config", "completion": "completion", "serve": "serve", "uninstall": "uninstall",
    "do": "do", "explain": "explain", "commit": "commit", "engine": "engine", "launch": "launch",
    "docs": "docs", "remotes": "remotes",
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

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, self._move_options(ctx, args))  # prints the help or the version
        except BrokenPipeError:
            ctx.exit(141)

    def _move_options(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Move options before the name of a subcommand behind it: `-m NAME ask hi` becomes `ask -m NAME hi`."""
        try:
            options, remaining_arguments, _ = self.make_parser(ctx).parse_args(list(args))
        except click.UsageError:
            return args  # the caller parses the arguments again, and reports the error
        if not remaining_arguments or remaining_arguments[0] not in _COMMANDS or options.get("version"):
            return args
        return [remaining_arguments[0], *args[: len(args) - len(remaining_arguments)], *remaining_arguments[1:]]

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
        with signals.handle_signals(signals.ENDING_SIGNALS, _end):
            # Standalone mode would replace edgechat's exit codes with click's.
            result = edgechat.main(standalone_mode=False, prog_name="edgechat")
    except (EdgechatError, OSError, UnicodeError, MemoryError) as error:
        return _report_failure(error)
    except click.ClickException as error:
        if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):
            with contextlib.suppress(OSError):
                error.show()  # the help text of a group of commands, on standard error
        else:
            _print_error(shorten(_describe_usage_error(error), 2 * MAX_MESSAGE_CHARS))
        return error.exit_code
    except click.Abort as error:
        if isinstance(error.__context__, EOFError):
            raise error.__context__ from None  # an error in edgechat, with a traceback
        return 130
    except KeyboardInterrupt:
        return 130
    return result if isinstance(result, int) else 0


def _end(number: int, _frame: FrameType | None) -> None:
    """Handle a signal that ends the program: let the command clean up. A second signal ends the program at once."""
    for ending_signal in signals.ENDING_SIGNALS:
        if signal.getsignal(ending_signal) is not signal.SIG_IGN:
            signal.signal(ending_signal, signal.SIG_DFL)
    raise SystemExit(signals.exit_code(number))


def _describe_usage_error(error: click.ClickException) -> str:
    """Return click's message as one line, with the command that shows the help."""
    text = " ".join(error.format_message().split())
    if isinstance(error, click.BadParameter) and not isinstance(error, click.MissingParameter) and error.param:
        name = (
            max(error.param.opts, key=len) if isinstance(error.param, click.Option) else error.param.human_readable_name
        )
        text = f"Invalid value for {name}: {' '.join(error.message.split())}"
    context = error.ctx if isinstance(error, click.UsageError) else None
    return f"{text.rstrip('.')}. See `{context.command_path} --help`." if context is not None else text


def _report_failure(error: EdgechatError | OSError | UnicodeError | MemoryError) -> int:
    """Print the error of a command, unless the terminal is gone, and return the exit code."""
    if isinstance(error, (OSError, MemoryError)) and (is_gone(sys.stdout) or is_gone(sys.stderr)):
        return signals.HANGUP_EXIT_CODE
    message, exit_code = describe_failure(error)
    if isinstance(error, OSError) and _failed_on_stdout(error):
        message = f"Cannot write to standard output: {message}."  # a full disk, for example
    _print_error(message)
    return exit_code


def _failed_on_stdout(error: OSError) -> bool:
    """Return whether the error was raised by a call of `click.echo` that writes to standard output."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    calls = [frame.f_locals for frame in frames if frame.f_code is click.echo.__code__]
    return bool(calls) and not calls[-1]["err"]


def _print_error(text: str) -> None:
    """Print an error message, which may contain control characters from a model file or a log."""
    echo_note(f"edgechat: {escape_controls(shorten(text, EngineDiedError.max_chars))}")
