"""Earlier replies on the command line: the offer of the line-by-line chat, and `edgechat ask --earlier`."""

from __future__ import annotations

import contextlib
import datetime as dt
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

import click

from edgechat.cli.json_output import echo_json
from edgechat.errors import EdgechatError
from edgechat.terminal import escape_controls

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence
    from pathlib import Path

    from edgechat.chat.earlier_replies import EarlierReply
    from edgechat.chat.events import SessionEvent
    from edgechat.chat.session import Session
    from edgechat.cli.progress import StderrStatus


def offer_earlier_reply(
    session: Session, reply: Iterator[SessionEvent], status: StderrStatus
) -> Iterator[SessionEvent]:  # fmt: skip
    """Yield the events of a reply; for a first message, print a line that offers an earlier reply, if there is one.

    A thread searches while the model reads the prompt. The line is printed before the text of the reply if the search
    has ended by then, or else below the text. An error of the search is ignored. Raises the errors of the reply.
    """
    from edgechat.chat.events import ReplyTextGenerated, TurnStarted

    is_first = session.conversation.head_id is None and not len(session.tree) and session.settings.offer_earlier
    search: Future[EarlierReply | None] | None = None
    with contextlib.closing(cast("Generator[SessionEvent]", reply)), ThreadPoolExecutor(1, "earlier") as thread:
        for event in reply:
            if is_first and isinstance(event, TurnStarted):
                search = thread.submit(session.find_earlier_reply)
            elif search is not None and isinstance(event, ReplyTextGenerated) and search.done():
                _print_offer(search, status)
                search = None
            yield event
        if search is not None:
            _print_offer(search, status)


def _print_offer(search: Future[EarlierReply | None], status: StderrStatus) -> None:
    with contextlib.suppress(EdgechatError):
        earlier = search.result()
        if earlier is not None:
            status.note(f"{earlier.describe_offer(_get_today())}: /earlier shows the earlier reply.")


def print_earlier_reply(
    session: Session, text: str, attachments: Sequence[Path], status: StderrStatus, *, as_json: bool
) -> bool:
    """Print the earlier reply to a question and, on standard error, its day and model; return whether there is one.

    The question is not saved, and no model is loaded. A question with folders or collections of documents, or in an
    existing conversation, has none. Raises AttachmentError and StoreError.
    """
    from edgechat.chat.attachments import load_attachments
    from edgechat.chat.messages import new_user_message

    if session.conversation.head_id is not None or session.settings.docs or any(path.is_dir() for path in attachments):
        return False
    files, _ = load_attachments(attachments)
    earlier = session.find_earlier_reply(new_user_message(None, text.strip(), files))
    if earlier is None:
        return False
    reply, model = earlier.reply, earlier.reply.model.removesuffix(".gguf")
    if as_json:
        echo_json(_make_json(earlier))
        return True
    parts = [earlier.describe_offer(_get_today()), f"{model} replied" if model else "the reply"]
    status.note(f"{', '.join(parts)} (conversation {earlier.origin.conversation_id}):")
    click.echo(escape_controls(reply.text) if sys.stdout.isatty() else reply.text, nl=not reply.text.endswith("\n"))
    return True


def _make_json(earlier: EarlierReply) -> dict[str, Any]:
    reply = earlier.reply
    return {
        "text": reply.text,
        "reasoning": reply.reasoning,
        "finish_reason": "stop",
        "model": reply.model,
        "earlier": {
            "question": earlier.question,
            "conversation_id": earlier.origin.conversation_id,
            "message_id": earlier.origin.message_id,
            "created_at_ms": earlier.origin.created_at_ms,
        },
    }


def _get_today() -> dt.date:
    return dt.datetime.now().astimezone().date()
