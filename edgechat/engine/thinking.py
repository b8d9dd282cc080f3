"""Tracking of the reasoning in one output sequence, and the decision to end it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from edgechat.engine.generation import ThinkingLimit

_CODE_FENCE: Final = b"```"
_CONTINUATION_MASK: Final = 0xC0
_CONTINUATION_BYTE: Final = 0x80
_MAX_CHARACTER_BYTES: Final = 4
# Number of bytes from which the beginning of an end tag at the end of the text counts as an attempt to end the
# reasoning. A single `<` often belongs to the reasoning.
_MIN_PARTIAL_TAG_BYTES: Final = 2


class ThoughtTracker:
    """Finds the reasoning in the text of one output sequence, and measures its length and its time.

    Start tags count anywhere, except after a backtick and in code blocks, where a reply only mentions them; the parsers
    of replies use the same rule. The limit applies to all reasoning of the reply together.
    """

    def __init__(self, limit: ThinkingLimit) -> None:
        self.is_thinking = limit.is_open
        """True from a start tag to the next end tag."""
        self.n_tokens = 0
        """Number of tokens of reasoning so far, with the end tags."""
        self.elapsed_s = 0.0
        """Time that the tokens of reasoning have taken, in seconds."""
        self._limit = limit
        self._start_tags = [tag.encode() for tag in limit.start_tags]
        self._end_tags = [tag.encode() for tag in limit.end_tags]
        self._longest_tag = max(map(len, [*self._start_tags, *self._end_tags]))
        self._text = bytearray()
        """Text since the last tag."""
        self._n_searched = 0
        self._last_token_at: float | None = None
        self._is_ended = False
        self._cannot_end = False
        self._n_tokens_over = 0
        """Number of tokens of the current reasoning since its limit was reached."""

    def feed(self, piece: bytes, now: float) -> None:
        """Append the bytes of a token, with the text of control tokens; `now` is its time on the monotonic clock."""
        if self.is_thinking:
            self.n_tokens += 1
            self.elapsed_s += now - self._last_token_at if self._last_token_at is not None else 0.0
        self._last_token_at = now
        self._n_tokens_over = self._n_tokens_over + 1 if self._is_over else 0
        self._text += piece
        while self._enter_next_phase():
            pass

    def _enter_next_phase(self) -> bool:
        """Search the new text for the next tag, and enter or leave the reasoning; return whether a tag was found."""
        start = max(0, self._n_searched - self._longest_tag + 1)
        tags = self._end_tags if self.is_thinking else self._start_tags
        matches = [(position, tag) for tag in tags if (position := self._find_tag(tag, start)) >= 0]
        if not matches:
            self._n_searched = len(self._text)
            return False
        position, tag = min(matches, key=lambda match: (match[0], -len(match[1])))
        del self._text[: position + len(tag)]
        self._n_searched = 0
        self.is_thinking = not self.is_thinking
        self._cannot_end = False
        return True

    def _find_tag(self, tag: bytes, start: int) -> int:
        """Return the position of `tag` at or after `start`; -1 if it does not occur, or only as a part of code."""
        text = self._text
        position = text.find(tag, start)
        while position >= 0 and not self.is_thinking:
            if text[max(0, position - 1) : position] != b"`" and text.count(_CODE_FENCE, 0, position) % 2 == 0:
                break
            position = text.find(tag, position + 1)
        return position

    def resume(self, elapsed_s: float) -> None:
        """Replace the time so far by `elapsed_s`, which the tokens took in another process.

        The time until the next token, in which a model is loaded, does not count.
        """
        self.elapsed_s, self._last_token_at = elapsed_s, None

    def end(self) -> None:
        """End the reasoning now; if the sequence is not reasoning, end later reasoning when it starts."""
        self._is_ended = True

    def give_up(self) -> None:
        """Let the current reasoning continue, because a grammar does not allow its end."""
        self._cannot_end = True

    @property
    def must_end(self) -> bool:
        """True if the sequence is reasoning, the limit is reached, and the text does not end within a character."""
        if not self._is_over or self._cannot_end:
            return False
        # A model that generates only first bytes of characters never completes one.
        return self._n_tokens_over >= _MAX_CHARACTER_BYTES or not _ends_within_character(self._text)

    @property
    def _is_over(self) -> bool:
        limit = self._limit
        return self.is_thinking and (
            self._is_ended
            or (limit.max_tokens is not None and self.n_tokens >= limit.max_tokens)
            or (limit.max_s is not None and self.elapsed_s >= limit.max_s)
        )

    def closing_texts(self) -> Iterable[str]:
        """Return texts that end the reasoning, longest first: a grammar may allow only a shorter one.

        If the text ends with the beginning of the end tag, the texts continue the tag; if it ends with the beginning of
        the longest text, which another engine process has begun, that text is continued.
        """
        limit, end_tag = self._limit, self._limit.end_tags[0]
        n_partial = _find_overlap(self._text, end_tag.encode())
        if n_partial >= _MIN_PARTIAL_TAG_BYTES:
            rest = end_tag.encode()[n_partial:].decode("utf-8", "ignore")
            return [rest + limit.text_after_end, rest]
        before = limit.text_before_end
        closing = (before + end_tag).encode() if before else b""
        rest = closing[_find_overlap(self._text, closing) :].decode("utf-8", "ignore") or end_tag
        texts = [rest + limit.text_after_end, end_tag + limit.text_after_end, end_tag]
        texts += [tag for tag in limit.end_tags if end_tag.startswith(tag)]
        return dict.fromkeys(texts)


def _find_overlap(text: bytearray, tag: bytes) -> int:
    """Return the length of the longest beginning of `tag` with which `text` ends."""
    return next((n for n in range(min(len(tag), len(text)), 0, -1) if text.endswith(tag[:n])), 0)


def _ends_within_character(text: bytearray) -> bool:
    """Return whether the last bytes of `text` are the beginning of a UTF-8 character."""
    for n_bytes, byte in enumerate(reversed(text[-_MAX_CHARACTER_BYTES + 1 :]), 1):
        if byte & _CONTINUATION_MASK != _CONTINUATION_BYTE:
            n_needed = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1  # noqa: PLR2004
            return byte <= 0xF7 and n_bytes < n_needed  # noqa: PLR2004  (first bytes of UTF-8 characters)
    return False
