"""`edgechat commit`: have the model write a commit message, and open it in git's editor."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import click

from edgechat.cli.options import reply_options
from edgechat.cli.progress import StderrStatus
from edgechat.errors import EngineError, UsageError, format_reason
from edgechat.terminal import escape_controls

if TYPE_CHECKING:
    from edgechat.cli.staged_diff import StagedChanges

_MAX_SUBJECT_CHARS: Final = 72
_MAX_BODY_CHARS: Final = 600
_MAX_REPLY_TOKENS: Final = 1000
_WIDTH: Final = 72
# Maximum lengths of the diff: the first one that fits in the context. A token of a diff has about three characters, but
# small models have a token for each digit.
_DIFF_CHARS: Final = (12_000, 5_000, 2_000)
_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "subject": {"type": "string", "minLength": 1, "maxLength": _MAX_SUBJECT_CHARS},
        "body": {"type": "string", "maxLength": _MAX_BODY_CHARS},
    },
    "required": ["subject", "body"],
    "additionalProperties": False,
}
_INSTRUCTIONS: Final = (
    "Write the message of a git commit for the diff that the user sends. Reply with JSON: `subject` says in the "
    f"imperative, in at most {_MAX_SUBJECT_CHARS} characters, what the commit does; `body` gives the reason in a few "
    "sentences, and is empty if the subject says everything."
)


@click.command()
@click.option("--print", "print_only", is_flag=True, help="Print only the message, and commit nothing; for scripts.")
@reply_options
def commit(print_only: bool, **options: Any) -> None:
    """Write a commit message, and open it in git's editor.

    The model reads the staged changes, of which a long diff is cut file by file. git commits when you close the
    editor, unless the message is empty or the editor fails (`:cq` in vi). The hooks, errors and exit code of
    `git commit` are passed on. Nothing is saved in the history.
    """
    from edgechat.cli.staged_diff import read_earlier_subjects, read_staged_changes

    if not print_only and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("git's editor needs a terminal. --print prints only the message.")
    status = StderrStatus()
    requests = _make_requests(read_staged_changes(), read_earlier_subjects(), status)
    message = _generate_message(requests, status, options)
    if print_only:
        click.echo(message)
        return
    click.get_current_context().exit(_open_editor(message))


def _make_requests(changes: StagedChanges, earlier_subjects: list[str], status: StderrStatus) -> Iterator[str]:
    """Yield messages for the model with shorter and shorter diffs. Prints a note about each diff that is cut."""
    from edgechat.cli.staged_diff import cut_diff

    for max_chars in _DIFF_CHARS:
        diff = cut_diff(changes, max_chars)
        status.note(diff.note)
        yield make_request(diff.text, earlier_subjects)


def make_request(diff: str, earlier_subjects: list[str]) -> str:
    """Return the message for the model: the diff, and the subjects of earlier commits as examples."""
    examples = "\n".join(["Subjects of earlier commits, as examples of the style:", *earlier_subjects, "", ""])
    return f"{examples if earlier_subjects else ''}{diff}\n\nWrite the message of the commit."


def _generate_message(requests: Iterator[str], status: StderrStatus, options: dict[str, Any]) -> str:
    from edgechat.cli.structured_reply import fill_defaults, generate_fields

    fields = generate_fields(
        requests, schema=_SCHEMA, system_prompt=_INSTRUCTIONS, status=status, status_text="Writing a message",
        **fill_defaults(options, max_tokens=_MAX_REPLY_TOKENS, temperature=0.0),
    )  # fmt: skip
    return format_message(fields["subject"], fields["body"])


def format_message(subject: str, body: str) -> str:
    """Return a commit message: one line, and paragraphs of at most 72 columns. Raises EngineError without a subject.

    Control and invisible characters are replaced. `#` at the start of a line is removed, because git would take the
    line for a comment.
    """
    import textwrap

    subject = " ".join(escape_controls(subject).split()).lstrip("# ")
    if not subject:
        raise EngineError("The model wrote an empty subject. Try again, or use `git commit`.")
    paragraphs = [" ".join(p.split()).lstrip("# ") for p in escape_controls(body).split("\n")]
    lines = [line.lstrip("# ") for p in paragraphs for line in textwrap.wrap(p, _WIDTH, break_long_words=False)]
    return "\n".join([subject, "", *lines]).rstrip("\n")


def _open_editor(message: str) -> int:
    """Open `message` in git's editor, and return the exit code of git."""
    import signal
    import subprocess
    import tempfile
    from pathlib import Path

    from edgechat.signals import handle_signals

    try:
        # Only the user can read and write this folder.
        with tempfile.TemporaryDirectory(prefix="edgechat-") as folder:
            file = Path(folder) / "message"
            file.write_text(message + "\n", encoding="utf-8")
            # The terminal also sends Ctrl-C to the editor, which decides about it.
            with handle_signals((signal.SIGINT,), lambda number, frame: None):
                code = subprocess.call(["git", "commit", "-e", "-F", str(file)])  # noqa: S607  (the user's git)
    except OSError as error:
        raise UsageError(f"Cannot open the message in git's editor: {format_reason(error)}.") from error
    return code if code >= 0 else 128 - code
