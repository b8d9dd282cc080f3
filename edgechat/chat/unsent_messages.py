"""What was typed and not sent: a file for each conversation, so that no crash takes it."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Final

from edgechat import files, paths

_MOST_BYTES: Final = 64 << 20
_NEW: Final = "new"
_ID: Final = re.compile(r"[\w-]{1,64}")


def save(conversation_id: str, text: str) -> None:
    """Write a draft down, or forget it if it is empty. A disk that cannot be written makes no difference to the chat."""
    file = _file(conversation_id)
    with contextlib.suppress(OSError):
        if text.strip():
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            files.replace_file(file, text.encode("utf-8", "replace"))
        else:
            file.unlink()


def load(conversation_id: str) -> str:
    """What was typed in a conversation; in a new one, if "" is given."""
    try:
        return files.read_bytes(_file(conversation_id), _MOST_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""


def _file(conversation_id: str) -> Path:
    name = conversation_id if _ID.fullmatch(conversation_id) else _NEW
    return paths.unsent_messages_dir() / f"{name}.txt"
