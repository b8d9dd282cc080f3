"""Separation of tagged reasoning at the beginning of a reply, for servers that send it as part of the text."""

from __future__ import annotations

from typing import Literal

from edgechat.engine.stop_strings import find_partial_match_length
from edgechat.prompt.thoughts import KNOWN_TAGS


class InlineThoughts:
    """Splits the text of a reply into reasoning and content while it arrives."""

    def __init__(self, *, is_content: bool = False) -> None:
        """With `is_content`, all text is content, because the reply has begun before."""
        self._phase: Literal["start", "reasoning", "gap", "content"] = "content" if is_content else "start"
        self._end_tag = ""
        self._has_reasoning = False
        self._held = ""
        """Text that may be part of a tag, or of the line break before the reasoning."""

    def feed(self, text: str) -> tuple[str, str]:
        """Return the reasoning and the content in `text`, and in text that was held back before."""
        reasoning = ""
        self._held += text
        if self._phase == "start":
            start = self._held.lstrip()
            tags = next((tags for tags in KNOWN_TAGS if start.startswith(tags[0])), None)
            if tags is not None:
                self._phase, self._end_tag = "reasoning", tags[1]
                self._held = start.removeprefix(tags[0])
            elif any(tag.startswith(start) for tag, _ in KNOWN_TAGS):
                return "", ""
            else:
                self._phase = "content"
        if self._phase == "reasoning":
            if not self._has_reasoning:
                self._held = self._held.lstrip("\n")
                self._has_reasoning = bool(self._held)
            reasoning, tag, content = self._held.partition(self._end_tag)
            if tag:
                self._phase, self._held = "gap", content
            else:
                n_held = find_partial_match_length(self._held, self._end_tag)
                reasoning = self._held[: len(self._held) - n_held]
                self._held = self._held[len(reasoning) :]
                return reasoning, ""
        if self._phase == "gap":
            self._held = self._held.lstrip()
            self._phase = "content" if self._held else "gap"
        content, self._held = self._held, ""
        return reasoning, content

    def finish(self) -> tuple[str, str]:
        """Return the reasoning and the content that were held back."""
        held, self._held = self._held, ""
        return (held, "") if self._phase == "reasoning" else ("", held)
