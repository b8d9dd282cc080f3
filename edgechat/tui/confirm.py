"""Confirmation of an action by repeating the request."""

from __future__ import annotations

import time
from typing import Final

_TIMEOUT_S: Final = 5.0


class Confirmation:
    """Confirms an action when it is requested twice within five seconds."""

    def __init__(self) -> None:
        self._item_id = ""
        self._requested_at = 0.0

    def confirm(self, item_id: str) -> bool:
        """Request an action on an item; return whether this is the second request within five seconds."""
        is_confirmed = self._item_id == item_id and time.monotonic() - self._requested_at < _TIMEOUT_S
        self._item_id, self._requested_at = "" if is_confirmed else item_id, time.monotonic()
        return is_confirmed


class KeyConfirmation:
    """Confirms an action when its key is pressed twice, without another key in between."""

    def __init__(self) -> None:
        self._request: tuple[str, int] | None = None

    def confirm(self, item_id: str, n_keys: int) -> bool:
        """Request an action on an item; return whether the previous key press requested it, too.

        `n_keys` is the number of key presses so far.
        """
        is_confirmed = self._request in {(item_id, n_keys), (item_id, n_keys - 1)}
        self._request = None if is_confirmed else (item_id, n_keys)
        return is_confirmed
