"""What is said in a conversation, as values: messages know nothing of where they are kept."""

from __future__ import annotations

import secrets
import time
from typing import Any, Final, Literal

import msgspec

from edgechat.engine.protocol import GenerationStats

Role = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["", "streaming", "stop", "length", "cancelled", "interrupted"]
"""How an answer ended. "" for messages that are no answers of ours; "streaming" while it is being written;
"cancelled" when the user stopped it; "interrupted" when something else did."""

INTERRUPTED_REASONS: Final = ("streaming", "cancelled", "interrupted")


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """A file that came with a message; its bytes are kept once, under their hash."""

    sha256: str
    name: str
    media_type: str
    size_bytes: int

    @property
    def is_image(self) -> bool:
        """True for pictures, which only some models see."""
        return self.media_type.startswith("image/")


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """A node of a conversation's tree. Messages with the same parent are alternatives."""

    id: str
    parent_id: str | None = None
    role: Role
    text: str = ""
    reasoning: str = ""
    """What the model thought before the answer, without the marks around it."""
    attachments: tuple[Attachment, ...] = ()
    created_at_ms: int = 0
    """Wall clock, milliseconds since 1970; 0 if an import did not say. Only shown: order is the store's."""
    model: str = ""
    finish_reason: FinishReason = ""
    n_tokens: int | None = None
    """Tokens that were generated for this answer; None for what is no answer of ours."""
    stats: GenerationStats | None = None
    context_start_id: str | None = None
    """The first message that the model still saw when this answer began; None if it saw all of them."""
    active_child_id: str | None = None
    """The alternative below that was gone on with last."""

    @property
    def is_interrupted(self) -> bool:
        """True for an answer that was stopped or cut off; what was said is kept."""
        return self.finish_reason in INTERRUPTED_REASONS


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a conversation besides its messages."""

    id: str
    title: str = ""
    model: str = ""
    """As the user named it: a catalogue name or a path."""
    settings: dict[str, Any] = {}
    """Settings that were chosen for this conversation alone, by their names in `edgechat.config.Settings`."""
    pinned: bool = False
    archived: bool = False
    tags: tuple[str, ...] = ()
    folder: str = ""
    created_at_ms: int = 0
    updated_at_ms: int = 0
    head_id: str | None = None
    """The last message of what is said as it stands; the path to it is shown, and answered."""


def new_id() -> str:
    """An identity that no other machine draws: 64 random bits in hex."""
    return secrets.token_hex(8)


def now_ms() -> int:
    """The wall clock."""
    return time.time_ns() // 1_000_000


def new_reply(asked_id: str, model: str) -> Message:
    """An answer of which nothing is said yet."""
    return Message(
        id=new_id(),
        parent_id=asked_id,
        role="assistant",
        created_at_ms=now_ms(),
        model=model,
        finish_reason="streaming",
    )


def first_line(text: str, n_chars: int = 60) -> str:
    """A title out of a message: its first line that says something, cut at a word."""
    line = next((" ".join(line.split()) for line in text.splitlines() if line.strip()), "")
    if len(line) <= n_chars:
        return line
    cut = line[:n_chars]
    return (cut.rsplit(" ", 1)[0] if " " in cut[n_chars // 2 :] else cut) + "…"


def performance_summary(message: Message) -> str:
    """How fast an answer came, and what helped."""
    stats = message.stats
    if stats is None:
        return ""
    words = [f"{stats.completion_tokens} tokens"]
    if stats.decode_tps:
        words.append(f"{stats.decode_tps:.0f} tokens/s")
    words.append(f"first after {stats.ttft_s:.2f} s")
    words.append(f"{stats.cached_tokens} of {stats.prompt_tokens} cached")
    if stats.n_drafted:
        words.append(f"{stats.n_accepted}/{stats.n_drafted} drafts accepted (x{stats.speculation_gain:.1f})")
    if message.model:
        words.append(message.model.removesuffix(".gguf"))
    return ", ".join(words)
