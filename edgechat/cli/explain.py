"""`edgechat explain`: explain text from standard input, or the last command of the shell."""

from __future__ import annotations

import os
import sys
from typing import Any, Final

import click

from edgechat.cli.ask import print_reply, read_question
from edgechat.cli.options import conversation_options
from edgechat.cli.progress import StderrStatus
from edgechat.cli.shell_hooks import COMMAND_VARIABLE, MAX_COMMAND_CHARS, STATUS_VARIABLE
from edgechat.errors import UsageError
from edgechat.humanize import format_count

# Maximum length of the text to explain: its start has the first error, and its end the last one.
_MAX_START_CHARS: Final = 2_000
_MAX_END_CHARS: Final = 5_000
_DEFAULT_QUESTION: Final = "Explain this output in a few sentences. If it shows an error, say how to correct it."
_COMMAND_QUESTION: Final = (
    "Explain in a few sentences what this shell command does. If it failed, say why, and how to correct it."
)


@click.command()
@click.argument("question", required=False)
@conversation_options
@click.option("--json", "as_json", is_flag=True, help="Print the reply and its statistics as one JSON object.")
def explain(question: str | None, as_json: bool, **options: Any) -> None:
    """Explain piped text, or the last command of the shell.

    \b
    make 2>&1 | edgechat explain
    edgechat explain "Why is this slow?" < profile.txt

    Without piped text, explains the last command and its exit code, which the hook of `edgechat completion --hook`
    remembers, and in tmux also its output. The conversation is saved like those of `edgechat ask`, unless
    --ephemeral is given.
    """  # noqa: D301  (click reads the control character)
    options["docs"] = options.get("docs") or ()  # those of the settings are about other questions
    if sys.stdin.isatty():
        text = make_command_question(question)
    else:
        text = make_question(question or _DEFAULT_QUESTION, "Output", cut_middle(read_question(None)))
    print_reply(text, as_json=as_json, **options)


def make_command_question(question: str | None) -> str:
    """Return the question about the last command of the shell. Raises UsageError if the command is unknown."""
    # Removed from the environment, because child processes must not inherit the command.
    command, status = os.environ.pop(COMMAND_VARIABLE, "")[:MAX_COMMAND_CHARS], os.environ.pop(STATUS_VARIABLE, "")
    if not command.strip():
        raise UsageError(
            "There is no text and no command to explain. Pipe text, as in `make 2>&1 | edgechat explain`, or install "
            "the hook (see `edgechat completion --help`)."
        )
    from edgechat.cli.tmux_output import read_last_output

    command.encode()  # raises UnicodeEncodeError if the command is not UTF-8
    output = read_last_output(command)
    text = make_question(question or _COMMAND_QUESTION, "Command", command)
    if status.isdecimal():
        text += f"\n\nExit code: {status}"
    if output.strip():
        return f"{text}\n\n{_make_block('Output', cut_middle(output))}"
    StderrStatus().note("The output of the command is unknown. To explain it, run: COMMAND 2>&1 | edgechat explain")
    return text


def make_question(question: str, label: str, text: str) -> str:
    return f"{question}\n\n{_make_block(label, text)}"


def _make_block(label: str, text: str) -> str:
    """Return `text` as a block of code that is longer than any run of backticks in it."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{label}:\n{fence}\n{text.strip(chr(10))}\n{fence}"


def cut_middle(text: str) -> str:
    """Leave out the middle of a long text; a line in the text and a note on standard error name what is missing."""
    if len(text) <= _MAX_START_CHARS + _MAX_END_CHARS:
        return text
    n_left_out = len(text) - _MAX_START_CHARS - _MAX_END_CHARS
    StderrStatus().note(
        f"The text has {len(text):,} characters. The model reads the first {_MAX_START_CHARS:,} and the last "
        f"{_MAX_END_CHARS:,}."
    )
    gap = f"\n[{format_count(n_left_out, 'character')} left out]\n"
    return text[:_MAX_START_CHARS] + gap + text[-_MAX_END_CHARS:]
