"""Choice of two alternative replies to compare, and their current states while they grow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from edgechat.chat.messages import Message
from edgechat.chat.tree import MessageTree
from edgechat.errors import UsageError

if TYPE_CHECKING:
    from edgechat.chat.session import Session

_N_COMPARED: Final = 2


class ComparedReply(NamedTuple):
    """One of two replies that are compared."""

    message: Message
    number: int
    """Number of the reply among its alternatives, from 1."""
    n_alternatives: int
    is_growing: bool = False

    @property
    def heading(self) -> str:
        """Number, model and state of the reply."""
        model = f", {self.message.model.removesuffix('.gguf')}" if self.message.model else ""
        has_text = bool(self.message.text or self.message.reasoning)
        state = "" if not self.is_growing else " (growing)" if has_text else " (waiting)"
        return f"Reply {self.number} of {self.n_alternatives}{model}{state}"


def choose_replies(tree: MessageTree, argument: str) -> tuple[str, str]:
    """Return the IDs of the two replies that the argument of `/compare` names; without an argument, of the newest two.

    The replies are alternatives of the last reply of the active path that has any. A word of the argument is the number
    of an alternative, or a part of the name of its model; a single word is compared with the reply of the active path.
    Raises UsageError.
    """
    current = next((m for m in reversed(tree.path) if m.role == "assistant" and len(tree.alternatives(m.id)) > 1), None)
    if current is None:
        raise UsageError(
            "No message on this branch has two replies. /also MODEL adds one by another model, /retry by this model."
        )
    replies = [tree[i] for i in tree.alternatives(current.id)]
    words = argument.split()
    if not words:
        return replies[-2].id, replies[-1].id
    if len(words) > _N_COMPARED:
        raise UsageError("Name two replies by number or model, for example /compare 1 2.")
    chosen = [_find_reply(word, replies) for word in words]
    first, second = chosen if len(chosen) == _N_COMPARED else (current, chosen[0])
    if first.id == second.id:
        raise UsageError(f"{argument!r} names one reply. Name two of the {len(replies)} replies, such as /compare 1 2.")
    return first.id, second.id


def _find_reply(word: str, replies: list[Message]) -> Message:
    """Return the reply with the number `word`, or the newest one whose model's name contains it. Raises UsageError."""
    if word.isdecimal() and 1 <= int(word[:9]) <= len(replies):
        return replies[int(word) - 1]
    reply = next((r for r in reversed(replies) if word.lower() in r.model.lower()), None)
    if reply is None or word.isdecimal():
        raise UsageError(f"No reply has the number or model {word[:40]!r}. Use numbers from 1 to {len(replies)}.")
    return reply


def read_reply(session: Session, message_id: str) -> ComparedReply | None:
    """Return the current state of a reply, which may be growing; None if it no longer exists. Thread-safe."""
    tree = session.tree
    try:
        growing = next((reply for reply in session.second.growing_replies if reply.id == message_id), None)
        ids = tree.alternatives(message_id)
        message = growing or tree[message_id]
        return ComparedReply(message, ids.index(message_id) + 1, len(ids), growing is not None)
    except (UsageError, ValueError):  # the reply was deleted, or another conversation is open
        return None
