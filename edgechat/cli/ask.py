"""`edgechat ask`: ask one question and print the reply."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from edgechat.cli.options import conversation_options
from edgechat.cli.session_factory import session_maker
from edgechat.errors import UsageError
from edgechat.terminal import escape_controls

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgechat.chat.events import SessionEvent, TurnFinished, TurnInterrupted
    from edgechat.chat.session import Session


@click.command()
@click.argument("prompt", required=False)
@conversation_options
@click.option(
    "-a",
    "--attach",
    "attachments",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Attach a text or source file; may be repeated.",
)
@click.option(
    "--answers",
    "n_answers",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    metavar="N",
    help="Generate N alternative replies in parallel.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end.")
def ask(prompt: str | None, as_json: bool, attachments: tuple[Path, ...], n_answers: int, **options: Any) -> None:
    """Ask one question and print the reply as it is generated.

    Standard input is appended to PROMPT. The conversation is saved (`edgechat history`) unless --ephemeral is given.
    """
    print_reply(question(prompt), as_json=as_json, attachments=attachments, n_answers=n_answers, **options)


def ask_stdin(**options: Any) -> None:
    """Read a prompt from standard input and print the reply."""
    print_reply(question(None), as_json=False, **options)


def question(prompt: str | None) -> str:
    """Join the prompt and standard input. Raises UsageError if both are empty or standard input is not UTF-8."""
    parts = [prompt] if prompt else []
    if prompt:
        prompt.encode()  # raises UnicodeEncodeError for an argument that is not UTF-8
    if not sys.stdin.isatty():
        data = sys.stdin.buffer.read()
        try:
            parts.append(data.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise UsageError(
                f"Standard input is not UTF-8 text (byte {error.start} of {len(data)} is 0x{data[error.start]:02x}). "
                "Convert it first, for example with iconv."
            ) from error
    text = "\n\n".join(p for p in parts if p.strip())
    if not text.strip():
        raise UsageError('The question is empty. Example: edgechat ask "What is a GGUF file?"')
    return text


def print_reply(
    text: str, *, as_json: bool, attachments: tuple[Path, ...] = (), n_answers: int = 1, **options: Any
) -> None:
    """Print the reply to `text`. Raises EdgechatError, and KeyboardInterrupt after Ctrl-C."""
    make_session, problems = session_maker(**options)
    session = make_session()
    for problem in problems:
        click.echo(f"edgechat: {problem} (ignored)", err=True)
    interrupted = False

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        nonlocal interrupted
        if interrupted:
            raise KeyboardInterrupt
        interrupted = True  # the second Ctrl-C does not wait for the engine
        session.stop()

    status = Status()
    try:
        session.open(lambda event: status.show(event.message))
        for warning in session.warnings:
            status.note(warning)
        before = signal.signal(signal.SIGINT, interrupt)
        try:
            ended = stream(session.send(text, attachments, n_answers), status, quiet=as_json or n_answers > 1)
        finally:
            signal.signal(signal.SIGINT, before)
        if as_json:
            _print_json(session, ended)
        elif n_answers > 1:
            _print_alternatives(ended)
    finally:
        status.clear()
        session.close()
    if interrupted:
        raise KeyboardInterrupt


def stream(answering: Iterator[SessionEvent], status: Status, *, quiet: bool) -> TurnFinished | TurnInterrupted:
    """Print a reply as it is generated unless `quiet`, and return its last event. Raises EdgechatError."""
    from edgechat.chat import events
    from edgechat.errors import EngineError

    # Only a terminal interprets control characters; a file or a pipe gets the text unchanged.
    clean = escape_controls if sys.stdout.isatty() else str
    printed = False
    try:
        for event in answering:
            status.note(events.notice_text(event))
            status.show(events.progress_text(event))
            if isinstance(event, events.ReplyTextGenerated) and event.text and not quiet:
                status.clear()
                printed = True
                click.echo(clean(event.text), nl=False)
            elif isinstance(event, (events.TurnFinished, events.TurnInterrupted)):
                return event
    finally:
        if printed:
            click.echo()
    raise EngineError("The reply ended without a final event from the engine. Ask again.")


def _print_alternatives(ended: TurnFinished | TurnInterrupted) -> None:
    clean = escape_controls if sys.stdout.isatty() else str
    answers = [ended.reply, *ended.alternatives]
    for number, each in enumerate(answers, start=1):
        click.echo(f"{'' if number == 1 else chr(10)}--- {number}/{len(answers)}\n{clean(each.text)}")


def _print_json(session: Session, ended: TurnFinished | TurnInterrupted) -> None:
    import msgspec

    from edgechat.hardware.memory import peak_rss_bytes

    loaded, answered = session.loaded, ended.reply
    stats = msgspec.structs.asdict(answered.stats) if answered.stats is not None else {}
    stats["load_s"] = loaded.load_s if loaded else 0.0
    stats["peak_rss_bytes"] = {"engine": session.model.engine.stats().peak_rss_bytes, "client": peak_rss_bytes()}
    result: dict[str, Any] = {
        "text": answered.text,
        "reasoning": answered.reasoning,
        "finish_reason": answered.finish_reason,
        "conversation_id": session.conversation.id,
        "message_id": answered.id,
        "model": str(session.model_path),
        "backend": loaded.backend if loaded else "",
        "stats": stats,
    }
    if ended.alternatives:
        result["others"] = [
            {"text": o.text, "reasoning": o.reasoning, "finish_reason": o.finish_reason, "message_id": o.id}
            for o in ended.alternatives
        ]
    click.echo(msgspec.json.encode(result).decode())


class Status:
    """Transient status line on standard error, if that is a terminal; cleared before other output."""

    def __init__(self) -> None:
        self._active = sys.stderr.isatty()
        self._shown = False

    def show(self, text: str) -> None:
        """Show a status text; "" leaves the line unchanged."""
        if self._active and text:
            click.echo(f"\r\x1b[2K{escape_controls(text)}", nl=False, err=True)
            self._shown = True

    def note(self, text: str) -> None:
        """Print a permanent line; "" prints nothing."""
        if text:
            self.clear()
            click.echo(f"edgechat: {escape_controls(text)}", err=True)

    def clear(self) -> None:
        """Clear the status line."""
        if self._shown:
            click.echo("\r\x1b[2K", nl=False, err=True)
            self._shown = False
