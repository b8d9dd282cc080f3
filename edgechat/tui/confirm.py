"""Confirmation of deletions: the same key twice."""

from __future__ import annotations

import time
from typing import Final

_TIMEOUT_S: Final = 5.0


class Confirmation:
    """Confirms a deletion when its key is pressed twice within five seconds."""

    def __init__(self) -> None:
        self._key = ""
        self._requested_at = 0.0

    def confirm(self, key: str) -> bool:
        """Return True if this key was already pressed within the last five seconds."""
        is_confirmed = self._key == key and time.monotonic() - self._requested_at < _TIMEOUT_S
        self._key, self._requested_at = "" if is_confirmed else key, time.monotonic()
        return is_confirmed
