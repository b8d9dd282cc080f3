"""Earlier replies to nearly the same first message: find them, describe them, and copy them into a conversation."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from edgechat.chat.context_hash import hash_context
from edgechat.chat.messages import Message, new_id, now_ms
from edgechat.chat.question_words import MAX_CHARS, parse_question
from edgechat.chat.tree import MessageTree
from edgechat.engine.generation import GenerationStats, ReplyOrigin
from edgechat.errors import NotFoundError
from edgechat.humanize import format_day

if TYPE_CHECKING:
    from edgechat.chat.store import FirstMessage, Store

# Maximum number of earlier first messages with the same words that are compared, newest first.
_MAX_CANDIDATES: Final = 50


class EarlierReply(msgspec.Struct, frozen=True, kw_only=True):
    """Complete reply of an earlier conversation to nearly the same first message."""

    question: str
    """Text of the earlier message."""
    reply: Message
    origin: ReplyOrigin
    """The reply that the model generated; not `reply` if that is a copy itself."""

    def format_day(self, today: dt.date) -> str:
        """Return the day on which the reply was generated, such as "3 November"; "" if it is unknown."""
        return format_day(self.origin.created_at_ms, today)

    def describe_offer(self, today: dt.date) -> str:
        """Return the clause "Asked on 3 November", or "Asked before" if the day is unknown."""
        day = self.format_day(today)
        return f"Asked on {day}" if day else "Asked before"


def find_earlier_reply(
    store: Store, question: Message, system_prompt: str, excluded_id: str = "", remote: str = ""
) -> EarlierReply | None:  # fmt: skip
    """Return the newest reply to a first message that is nearly the same as `question`; None if there is none.

    The earlier message must have the same words (see `question_words`), attached files and passages of documents, and
    its reply the same system prompt. Deleted messages, incomplete replies, and the conversation `excluded_id` are left
    out. In a conversation with a model of `remote`, only replies of that remote are found, because the next message
    sends the reply there. Only reads, and only in a store on disk, so that ephemeral conversations neither look up nor
    are found. Raises StoreError.
    """
    parsed = parse_question(question.text)
    terms = parsed.search_terms
    if not terms or not store.is_persistent:
        return None
    files = _list_files(question)
    passages = _read_passages(store, question)
    for candidate in store.find_first_messages(terms, limit=_MAX_CANDIDATES, max_chars=MAX_CHARS):
        is_same = candidate.conversation_id != excluded_id and parsed.is_same(parse_question(candidate.text))
        found = _read_reply(store, candidate, system_prompt, remote) if is_same else None
        if found is None or _list_files(found[0]) != files:
            continue
        message, reply = found
        if passages is not None and passages == _read_passages(store, message):
            return EarlierReply(
                question=message.text, reply=reply, origin=_find_origin(candidate.conversation_id, reply)
            )
    return None


def copy_reply(earlier: EarlierReply, parent_id: str) -> Message:
    """Return a new reply to the message `parent_id` with the text of an earlier reply and a reference to its origin."""
    reply, stats = earlier.reply, earlier.reply.stats
    return Message(
        id=new_id(), parent_id=parent_id, role="assistant", text=reply.text, reasoning=reply.reasoning,
        created_at_ms=now_ms(), model=reply.model, finish_reason="stop", n_tokens=reply.n_tokens,
        stats=GenerationStats(
            prompt_tokens=0, cached_tokens=0, completion_tokens=0, ttft_s=0.0, prefill_tps=0.0, decode_tps=0.0,
            context_hash=stats.context_hash if stats is not None else msgspec.UNSET,
            is_remote=stats.is_remote if stats is not None else msgspec.UNSET, origin=earlier.origin,
        ),
    )  # fmt: skip


def _list_files(message: Message) -> list[str]:
    """Return the sorted hashes of the files that the user attached."""
    return sorted(a.sha256 for a in message.attachments if not a.is_passages)


def _read_passages(store: Store, message: Message) -> Sequence[tuple[str, str, str]] | None:
    """Return collection, document and text of each passage of a message; None if they are missing or damaged."""
    if not any(a.is_passages for a in message.attachments):
        return ()
    from edgechat.chat.message_passages import find_readable_passages

    [passage_set] = find_readable_passages([message], store.read_attachment)
    if passage_set is None:
        return None
    return tuple((p.collection, p.document, p.text) for p in passage_set.passages)


def _read_reply(
    store: Store, candidate: FirstMessage, system_prompt: str, remote: str
) -> tuple[Message, Message] | None:  # fmt: skip
    """Return a first message and its complete reply with the same system prompt, if possible of its active path.

    Returns None if there is none, or if another process has deleted the conversation.
    """
    try:
        conversation = store.conversation(candidate.conversation_id)
        messages = store.messages(candidate.conversation_id)
    except NotFoundError:
        return None
    tree = MessageTree(messages)
    if candidate.message_id not in tree:
        return None
    message = tree[candidate.message_id]
    # The reply of an earlier version of edgechat, or of an import, has the system prompt of its conversation, if any.
    default_prompt = conversation.settings.get("system_prompt")
    default_hash = hash_context(default_prompt if isinstance(default_prompt, str) else "")
    expected_hash = hash_context(system_prompt)
    replies = [
        m for m in messages
        if m.parent_id == message.id and m.role == "assistant" and m.text.strip() and _is_complete(m)
        and (not remote or _is_of_remote(m, remote)) and _get_context_hash(m, default_hash) == expected_hash
    ]  # fmt: skip
    active_replies = [m for m in replies if m.id == message.active_child_id]
    return (message, [*replies, *active_replies][-1]) if replies else None


def _is_complete(reply: Message) -> bool:
    return reply.finish_reason in {"stop", ""} and not reply.repeats_itself


def _is_of_remote(reply: Message, remote: str) -> bool:
    return reply.stats is not None and reply.stats.is_remote is True and reply.model.startswith(f"{remote}/")


def _get_context_hash(reply: Message, default_hash: str) -> str:
    stats = reply.stats
    return stats.context_hash if stats is not None and isinstance(stats.context_hash, str) else default_hash


def _find_origin(conversation_id: str, reply: Message) -> ReplyOrigin:
    if reply.stats is not None and isinstance(reply.stats.origin, ReplyOrigin):
        return reply.stats.origin
    return ReplyOrigin(conversation_id=conversation_id, message_id=reply.id, created_at_ms=reply.created_at_ms)
