"""`edgechat ask`: one question, one answer."""

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
from edgechat.terminal import visible

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
    help="A text or source file to go with the question; may be repeated.",
)
@click.option(
    "--answers",
    "n_answers",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    metavar="N",
    help="So many answers side by side, to choose from.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, at the end.")
def ask(prompt: str | None, as_json: bool, attachments: tuple[Path, ...], n_answers: int, **options: Any) -> None:
    """Ask one question and print the answer as it comes.

    What comes on standard input is appended to PROMPT. Question and answer are kept (`edgechat history`), unless
    --ephemeral says otherwise.
    """
    answer(question(prompt), as_json=as_json, attachments=attachments, n_answers=n_answers, **options)


def ask_stdin(**options: Any) -> None:
    """Answer what comes on standard input."""
    answer(question(None), as_json=False, **options)


def question(prompt: str | None) -> str:
    """The prompt with standard input after it. Raises UsageError if there is neither, or input is not UTF-8."""
    parts = [prompt] if prompt else []
    if prompt:
        prompt.encode()  # an argument that is not UTF-8 holds what cannot be encoded again: UnicodeEncodeError
    if not sys.stdin.isatty():
        data = sys.stdin.buffer.read()
        try:
            parts.append(data.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise UsageError(
                f"standard input is not UTF-8 text (byte {error.start} of {len(data)} is 0x{data[error.start]:02x}): "
                "convert it first, for example with iconv"
            ) from error
    text = "\n\n".join(p for p in parts if p.strip())
    if not text.strip():
        raise UsageError('there is no question: give one, as in `edgechat ask "What is a GGUF file?"`')
    return text


def answer(text: str, *, as_json: bool, attachments: tuple[Path, ...] = (), n_answers: int = 1, **options: Any) -> None:
    """Print the answer to `text`. Raises EdgechatError, and KeyboardInterrupt after Ctrl-C."""
    make_session, problems = session_maker(**options)
    session = make_session()
    for problem in problems:
        click.echo(f"edgechat: {problem} (ignored)", err=True)
    interrupted = False

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        nonlocal interrupted
        if interrupted:
            raise KeyboardInterrupt
        interrupted = True  # the second one does not wait
        session.stop()

    status = Status()
    try:
        session.open(lambda event: status.show(event.words))
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
            _print_answers(ended)
    finally:
        status.clear()
        session.close()
    if interrupted:
        raise KeyboardInterrupt


def stream(answering: Iterator[SessionEvent], status: Status, *, quiet: bool) -> TurnFinished | TurnInterrupted:
    """Print an answer as it comes, unless `quiet`; returns its last event. Raises EdgechatError."""
    from edgechat.chat import events
    from edgechat.errors import EngineError

    # Only a terminal acts on control characters; a file or a pipe gets what the model said.
    clean = visible if sys.stdout.isatty() else str
    printed = False
    try:
        for event in answering:
            status.note(events.notice_words(event))
            status.show(events.progress_words(event))
            if isinstance(event, events.ReplyTextGenerated) and event.text and not quiet:
                status.clear()
                printed = True
                click.echo(clean(event.text), nl=False)
            elif isinstance(event, (events.TurnFinished, events.TurnInterrupted)):
                return event
    finally:
        if printed:
            click.echo()
    raise EngineError("the answer ended without a last word from the engine")


def _print_answers(ended: TurnFinished | TurnInterrupted) -> None:
    clean = visible if sys.stdout.isatty() else str
    answers = [ended.answer, *ended.others]
    for number, each in enumerate(answers, start=1):
        click.echo(f"{'' if number == 1 else chr(10)}--- {number}/{len(answers)}\n{clean(each.text)}")


def _print_json(session: Session, ended: TurnFinished | TurnInterrupted) -> None:
    import msgspec

    from edgechat.hardware.memory import peak_rss_bytes

    loaded, answered = session.loaded, ended.answer
    stats = msgspec.structs.asdict(answered.stats) if answered.stats is not None else {}
    stats["load_s"] = loaded.load_s if loaded else 0.0
    stats["peak_rss_bytes"] = {"engine": session.engine.stats().peak_rss_bytes, "client": peak_rss_bytes()}
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
    if ended.others:
        result["others"] = [
            {"text": o.text, "reasoning": o.reasoning, "finish_reason": o.finish_reason, "message_id": o.id}
            for o in ended.others
        ]
    click.echo(msgspec.json.encode(result).decode())


class Status:
    """One line on a terminal's standard error, gone before anything else is written."""

    def __init__(self) -> None:
        self._active = sys.stderr.isatty()
        self._shown = False

    def show(self, words: str) -> None:
        """Show what is going on; "" changes nothing."""
        if self._active and words:
            click.echo(f"\r\x1b[2K{visible(words)}", nl=False, err=True)
            self._shown = True

    def note(self, words: str) -> None:
        """Say something that stays; "" is nothing."""
        if words:
            self.clear()
            click.echo(f"edgechat: {visible(words)}", err=True)

    def clear(self) -> None:
        """Make the line empty again."""
        if self._shown:
            click.echo("\r\x1b[2K", nl=False, err=True)
            self._shown = False
