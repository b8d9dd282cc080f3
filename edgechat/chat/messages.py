"""Messages and conversations as immutable values, independent of the store."""

from __future__ import annotations

import datetime as dt
import secrets
import time
from typing import Any, Final, Literal

import msgspec

from edgechat.documents.passages import PASSAGES_MEDIA_TYPE
from edgechat.engine.generation import GenerationStats, ReplyOrigin, are_drafts_noticeable
from edgechat.humanize import format_count, format_day
from edgechat.terminal import escape_controls

Role = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["", "streaming", "stop", "length", "cancelled", "interrupted"]
"""Reason why a reply ended: "cancelled" by the user, "interrupted" by an error or the end of the process. The value is
"streaming" while the reply is being generated, and "" for messages that edgechat did not generate."""

# Minimum gain of drafts that is shown during a reply; smaller gains are within the error of the estimate.
_MIN_LIVE_GAIN: Final = 1.05
INTERRUPTED_REASONS: Final = ("streaming", "cancelled", "interrupted")


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """File attached to a message. The store saves identical files once, by their SHA-256 hash."""

    sha256: str
    name: str
    media_type: str
    size_bytes: int

    @property
    def is_image(self) -> bool:
        return self.media_type.startswith("image/")

    @property
    def is_passages(self) -> bool:
        """True for passages of documents, which edgechat added to the message, and the user did not attach."""
        return self.media_type == PASSAGES_MEDIA_TYPE


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """Node in the message tree of a conversation. Messages with the same parent are alternatives."""

    id: str
    parent_id: str | None = None
    role: Role
    text: str = ""
    reasoning: str = ""
    """Reasoning that the model generated before `text`, without the tags around it."""
    attachments: tuple[Attachment, ...] = ()
    created_at_ms: int = 0
    """Time of creation in milliseconds since 1970, for display only; 0 if unknown (imported messages)."""
    model: str = ""
    finish_reason: FinishReason = ""
    n_tokens: int | None = None
    """Number of generated tokens; None for messages that edgechat did not generate."""
    stats: GenerationStats | None = None
    context_start_id: str | None = None
    """ID of the first message in the prompt of this reply; None if the prompt contained the whole conversation."""
    active_child_id: str | None = None
    """ID of the child that was last on the active path."""

    @property
    def is_interrupted(self) -> bool:
        """True if the reply ended early or is still being generated."""
        return self.finish_reason in INTERRUPTED_REASONS

    @property
    def repeats_itself(self) -> bool:
        """True if the reply was stopped because it repeated the same passage over and over."""
        return self.stats is not None and self.stats.repeats_itself is True

    @property
    def end_notice(self) -> str:
        """Notice that the reply ended early, and how to continue it; "" for other messages."""
        if self.repeats_itself:
            return "Stopped: repeats itself; /continue resumes it with a repetition penalty"
        if self.finish_reason == "length":
            return "The reply reached its length limit; /continue resumes it"
        if self.role == "assistant" and self.is_interrupted:
            reason = "Stopped" if self.finish_reason == "cancelled" else "Interrupted"
            return f"{reason}; /continue resumes the reply"
        return ""


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """Metadata of a conversation, without its messages."""

    id: str
    title: str = ""
    model: str = ""
    """Name of the model in the catalogue, or path of the model file, as the user entered it."""
    settings: dict[str, Any] = {}
    """Settings that override the user's settings in this conversation, by field name of `edgechat.config.Settings`."""
    pinned: bool = False
    archived: bool = False
    tags: tuple[str, ...] = ()
    folder: str = ""
    created_at_ms: int = 0
    updated_at_ms: int = 0
    head_id: str | None = None
    """ID of the last message on the active path. The next message becomes a child of this message."""


def new_id() -> str:
    """Return a new ID for a conversation or message: 64 random bits in hexadecimal, unique across machines."""
    return secrets.token_hex(8)


def now_ms() -> int:
    """Return the wall-clock time in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def new_user_message(parent_id: str | None, text: str, attachments: tuple[Attachment, ...] = ()) -> Message:
    """Create a user message as a child of the message `parent_id`."""
    return Message(
        id=new_id(), parent_id=parent_id, role="user", text=text, attachments=attachments, created_at_ms=now_ms()
    )


def new_reply(parent_id: str, model: str) -> Message:
    """Create an empty reply of `model` to the message `parent_id`."""
    return Message(
        id=new_id(),
        parent_id=parent_id,
        role="assistant",
        created_at_ms=now_ms(),
        model=model,
        finish_reason="streaming",
    )


def first_line(text: str, n_chars: int = 60) -> str:
    """Return the first non-blank line of `text`, truncated to `n_chars` characters, if possible at a word boundary."""
    line = next((" ".join(line.split()) for line in text.splitlines() if line.strip()), "")
    if len(line) <= n_chars:
        return line
    prefix = line[:n_chars]
    return (prefix.rsplit(" ", 1)[0] if " " in prefix[n_chars // 2 :] else prefix) + "…"


def format_title(title: str, n_chars: int = 200) -> str:
    """Return the title of a conversation in one line without control characters; "(no title)" if it has none."""
    return first_line(escape_controls(title), n_chars) or "(no title)"


def format_draft_gain(stats: GenerationStats) -> str:
    """Describe the gain from the drafts of a reply: `1.5x speed`, or `1.5x speed, 40 of 52 by the drafter`.

    The second form counts the accepted draft tokens of a model drafter, if it drafted. The speed is left out if the
    accepted drafts were no noticeable share of the reply. Returns "" without drafts.
    """
    parts = []
    if are_drafts_noticeable(stats.n_accepted, stats.completion_tokens):
        parts.append(f"{stats.speculation_gain:.1f}x speed")
    counts = stats.drafts_by_source.get("model") if stats.drafts_by_source is not msgspec.UNSET else None
    if counts is not None and counts.n_drafted:
        parts.append(f"{counts.n_accepted} of {counts.n_drafted} by the drafter")
    return ", ".join(parts)


def format_live_gain(gain: float, source: str) -> str:
    """Describe what the drafts of a reply in progress have gained: `1.5x by the drafter`; "" without a gain.

    `source` is the source of most of the accepted draft tokens.
    """
    if not source or gain < _MIN_LIVE_GAIN:
        return ""
    return f"{gain:.1f}x by {'the drafter' if source == 'model' else 'repeated text'}"


def format_speed(stats: GenerationStats) -> str:
    """Describe the speed of a reply, and what a model drafter added: `42 tokens/s`, or `42 tokens/s ...`."""
    gain = format_draft_gain(stats)
    return f"{stats.decode_tps:.0f} tokens/s" + (f" ({gain})" if "drafter" in gain else "")


def format_performance(message: Message) -> str:
    """Describe the speed, cached tokens and accepted draft tokens of a reply; "" without statistics, and for copies."""
    stats = message.stats
    if stats is None or stats.origin is not msgspec.UNSET:
        return ""
    parts = [format_count(stats.completion_tokens, "token")]
    if stats.decode_tps:
        parts.append(f"{stats.decode_tps:.0f} tokens/s")
    parts.append(f"first token after {stats.ttft_s:.2f} s")
    if stats.cached_tokens or stats.is_remote is not True:
        parts.append(f"{stats.cached_tokens} of {stats.prompt_tokens} prompt tokens cached")
    if stats.n_drafted:
        gain = format_draft_gain(stats)
        parts.append(f"{stats.n_accepted} of {stats.n_drafted} draft tokens accepted" + (f" ({gain})" if gain else ""))
    if message.model:
        parts.append(message.model.removesuffix(".gguf"))
    return ", ".join(parts)


def describe_origin(message: Message, today: dt.date) -> str:
    """Return the phrase "Earlier reply of 3 November" for a copy of an earlier reply; "" for other messages."""
    stats = message.stats
    if stats is None or not isinstance(stats.origin, ReplyOrigin):
        return ""
    day = format_day(stats.origin.created_at_ms, today)
    return f"Earlier reply of {day}" if day else "Earlier reply"
