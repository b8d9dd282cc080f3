"""Stop strings: cut generated text before the first of several strings."""

from __future__ import annotations

from collections.abc import Sequence


class StopStringFilter:
    """Passes streamed text through until a stop string appears; drops the stop string and all text after it."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._pending_text = ""
        self.is_stopped = False

    def feed(self, text: str) -> str:
        """Add generated text; return the text that is now safe to send.

        The end of the text is held back while it could be the beginning of a stop string.
        """
        if self.is_stopped:
            return ""
        if not self._stops:
            return text
        self._pending_text += text
        matches = [position for stop in self._stops if (position := self._pending_text.find(stop)) >= 0]
        self.is_stopped = bool(matches)
        if matches:
            end = min(matches)
        else:
            end = len(self._pending_text) - max(partial_match_length(self._pending_text, stop) for stop in self._stops)
        output, self._pending_text = self._pending_text[:end], self._pending_text[end:]
        return output

    def flush(self) -> str:
        """Return the remaining text at the end of the output; "" after a stop string."""
        pending, self._pending_text = self._pending_text, ""
        return "" if self.is_stopped else pending


def partial_match_length(text: str, marker: str) -> int:
    """Return the length of the longest end of `text` that is a proper prefix of `marker`."""
    return next((n for n in range(min(len(marker) - 1, len(text)), 0, -1) if text.endswith(marker[:n])), 0)
