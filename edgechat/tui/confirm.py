"""What is done for good is asked for twice."""

from __future__ import annotations

import time
from typing import Final

_WITHIN_S: Final = 5.0


class Confirmation:
    """Remembers what was asked for last, for a few seconds."""

    def __init__(self) -> None:
        self._key = ""
        self._at_s = 0.0

    def confirm(self, key: str) -> bool:
        """True if the same was asked for just before."""
        is_second = self._key == key and time.monotonic() - self._at_s < _WITHIN_S
        self._key, self._at_s = "" if is_second else key, time.monotonic()
        return is_second
