"""What is said in a conversation."""

from __future__ import annotations

from typing import Literal

import msgspec

Role = Literal["system", "user", "assistant"]


class Message(msgspec.Struct, frozen=True):
    """One turn of one speaker."""

    role: Role
    content: str
    interrupted: bool = False
    """True for an answer that was stopped or cut off; what was said is kept."""
