"""A text cut off where a string says that it ends, for models whose template knows no token for that."""

from __future__ import annotations

from edgechat.chat.reasoning import overlap


class StopText:
    """Lets a text through as it comes, but for `stop` and all after it; "" stops nothing."""

    def __init__(self, stop: str) -> None:
        self._stop = stop
        self._held = ""
        self.has_stopped = False

    def feed(self, text: str) -> str:
        """What of the text so far can be shown and was not yet."""
        if self.has_stopped:
            return ""
        if not self._stop:
            return text
        self._held += text
        found = self._held.find(self._stop)
        self.has_stopped = found >= 0
        keep = found if self.has_stopped else len(self._held) - overlap(self._held, self._stop)
        shown, self._held = self._held[:keep], self._held[keep:]
        return shown

    def finish(self) -> str:
        """What was held back, if it was not the end after all."""
        held, self._held = self._held, ""
        return "" if self.has_stopped else held
