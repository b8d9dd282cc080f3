"""Unsent messages: saves the text of the input field in one file for each conversation, to restore it later."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Final

from edgechat import files, paths

_MAX_BYTES: Final = 64 << 20
_NEW_CONVERSATION: Final = "new"
_ID_PATTERN: Final = re.compile(r"[\w-]{1,64}")


def save(conversation_id: str, text: str) -> None:
    """Save the unsent message of a conversation, or delete its file if `text` is blank. Ignores disk errors."""
    file = _message_file(conversation_id)
    with contextlib.suppress(OSError):
        if text.strip():
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            files.replace_file(file, text.encode("utf-8", "replace"))
        else:
            file.unlink()


def load(conversation_id: str) -> str:
    """Return the unsent message of a conversation; "" if there is none. The ID "" means a new conversation."""
    try:
        return files.read_bytes(_message_file(conversation_id), _MAX_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""


def _message_file(conversation_id: str) -> Path:
    name = conversation_id if _ID_PATTERN.fullmatch(conversation_id) else _NEW_CONVERSATION
    return paths.unsent_messages_dir() / f"{name}.txt"
