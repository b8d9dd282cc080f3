"""Filter that ends generated text before the first stop string."""

from __future__ import annotations

from collections.abc import Sequence


class StopStringFilter:
    """Passes streamed text through until a stop string appears; drops the stop string and all text after it."""

    def __init__(self, stop_strings: Sequence[str]) -> None:
        self._stop_strings = [stop for stop in stop_strings if stop]
        self._pending_text = ""
        self.stop_string = ""
        """The stop string that appeared first; "" before that."""

    @property
    def is_stopped(self) -> bool:
        """True if a stop string has appeared."""
        return bool(self.stop_string)

    def feed(self, text: str) -> str:
        """Add generated text; return the text that is now safe to send.

        The filter holds back the end of the text while it could be the beginning of a stop string.
        """
        if self.is_stopped:
            return ""
        if not self._stop_strings:
            return text
        self._pending_text += text
        matches = [(start, stop) for stop in self._stop_strings if (start := self._pending_text.find(stop)) >= 0]
        if matches:
            end, self.stop_string = min(matches, key=lambda match: match[0])
        else:
            n_held_chars = max(find_partial_match_length(self._pending_text, stop) for stop in self._stop_strings)
            end = len(self._pending_text) - n_held_chars
        output, self._pending_text = self._pending_text[:end], self._pending_text[end:]
        return output

    def flush(self) -> str:
        """Return the text that was held back, when the output ends without a stop string; otherwise return ""."""
        pending_text, self._pending_text = self._pending_text, ""
        return "" if self.is_stopped else pending_text


def find_partial_match_length(text: str, marker: str) -> int:
    """Return the length of the longest suffix of `text` that is a proper prefix of `marker`."""
    return next((n for n in range(min(len(marker) - 1, len(text)), 0, -1) if text.endswith(marker[:n])), 0)
