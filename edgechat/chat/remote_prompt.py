"""Prompt of a conversation for a remote model: messages, whose tokens only the server can count."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from edgechat.chat import message_passages
from edgechat.chat.conversation_prompt import find_previous_start, make_prompt_messages
from edgechat.chat.messages import Message
from edgechat.config import Settings
from edgechat.documents import prompt_text


class RemotePrompt:
    """Messages of a request to a remote. Implements `SourcePrompt`."""

    def __init__(
        self, path: Sequence[Message], settings: Settings, read_attachment: Callable[[str], bytes],
        start: int | None = None,
    ) -> None:  # fmt: skip
        """Build the prompt for a reply to the last message of `path`, or for continuing that message if it is a reply.

        `read_attachment` returns the bytes of an attachment by SHA-256 hash, or raises StoreError. The messages before
        index `start` are left out; None for those that the last reply left out, too.
        """
        self._path = path
        self._settings = settings
        self._read_attachment = read_attachment
        self.start = find_previous_start(path) if start is None else start
        """Index, in the path, of the first message in the prompt."""
        self.start_id = path[self.start].id if self.start else None
        self.messages = self._make_messages()

    @property
    def continues_reply(self) -> bool:
        """True if the last message is the beginning of the reply."""
        return bool(self.messages) and self.messages[-1]["role"] == "assistant"

    def _make_messages(self) -> list[dict[str, Any]]:
        path, reply_text = self._path, ""
        if path and path[-1].role == "assistant":
            *path, reply = path
            reply_text = reply.text
        passage_sets = message_passages.find_readable_passages(path, self._read_attachment)
        whole_set = message_passages.find_last_whole(passage_sets)
        documents = prompt_text.format_whole(whole_set.passages) if whole_set is not None else ""
        prompt_messages = make_prompt_messages(
            path, self.start, self._settings.system_prompt, self._read_attachment, passage_sets, documents
        )
        # Reasoning stays here: the API has no field for it, and servers remove it from earlier turns.
        messages: list[dict[str, Any]] = [{"role": m.role, "content": m.content} for m in prompt_messages]
        return [*messages, *([{"role": "assistant", "content": reply_text}] if reply_text else [])]

    def shorten(self) -> RemotePrompt | None:
        """Return a prompt without the older half of the turns; None if only one turn is left."""
        last = len(self._path) - (1 if self._path[-1].role == "assistant" else 0)
        turn_starts = [i for i in range(self.start + 1, last) if self._path[i].role == "user"]
        if not turn_starts:
            return None
        start = turn_starts[len(turn_starts) // 2]
        return RemotePrompt(self._path, self._settings, self._read_attachment, start)
