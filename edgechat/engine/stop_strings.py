"""A text cut off where one of several strings says that it ends."""

from __future__ import annotations

from collections.abc import Sequence


class StopStringFilter:
    """Lets a text through as it comes, but for the first of `stops` and all after it."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.is_stopped = False

    def feed(self, text: str) -> str:
        """What of the text so far can be shown and was not yet."""
        if self.is_stopped:
            return ""
        if not self._stops:
            return text
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        self.is_stopped = bool(found)
        keep = (
            min(found)
            if found
            else len(self._held) - max(partial_match_length(self._held, stop) for stop in self._stops)
        )
        shown, self._held = self._held[:keep], self._held[keep:]
        return shown

    def flush(self) -> str:
        """What was held back, if it was not the end after all."""
        held, self._held = self._held, ""
        return "" if self.is_stopped else held


def partial_match_length(text: str, mark: str) -> int:
    """How many characters at the end of `text` could be the beginning of `mark`."""
    return next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:n])), 0)
