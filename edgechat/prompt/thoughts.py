"""Detection of tagged reasoning in the content of a reply, where llama.cpp's parser does not expect reasoning."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from edgechat.engine.stop_strings import find_partial_match_length

# Tags that model families write around their reasoning (from llama.cpp's collection of chat templates).
KNOWN_TAGS: Final = (
    ("<think>", "</think>"), ("<thinking>", "</thinking>"), ("<thought>", "</thought>"), ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"), ("<seed:think>", "</seed:think>"), ("<mm:think>", "</mm:think>"),
    ("<|channel>thought", "<channel|>"),
)  # fmt: skip
# Number of characters from which the beginning of an end tag at the end of cut reasoning is removed. Shorter ones, such
# as `<` and `</`, are also part of other texts.
_MIN_PARTIAL_TAG_CHARS: Final = 3


class ThoughtFinder:
    """Finds reasoning in the content of a reply.

    Tags that are tokens of the model, or that its template contains, are recognised everywhere. Other known tags are
    recognised only at the beginning, because a reply may mention them.
    """

    def __init__(self, template: str, vocabulary_tags: Collection[str], tags: Sequence[tuple[str, str]] = ()) -> None:
        """`vocabulary_tags` are the special tokens of the model; `tags` are the tags of its template, if known."""
        self._everywhere = [
            *tags,
            *(t for t in KNOWN_TAGS if t not in tags and (t[0] in vocabulary_tags or t[0] in template)),
        ]
        self._at_start = [t for t in KNOWN_TAGS if t not in self._everywhere]

    @property
    def can_begin_anywhere(self) -> bool:
        """True if reasoning can begin at any position of the content."""
        return bool(self._everywhere)

    def may_start_with_tag(self, text: str) -> bool:
        """Return whether a reply that begins with `text` has, or may have, a start tag at its beginning."""
        start = text.lstrip()
        return not start or any(start.startswith(tag) or tag.startswith(start) for tag, _ in self._at_start)

    def split(self, content: str, *, is_final: bool, follows_reasoning: bool = False) -> tuple[str, str]:
        """Split content into reasoning and the rest; unless `is_final`, leave out a partial tag at the end.

        If the content follows reasoning that was found before, only tags that count everywhere are recognised: a model
        whose reasoning was ended by a limit can continue it in the content, with other tags.
        """
        at_start = [] if follows_reasoning else self._at_start
        thoughts: list[str] = []
        rest = ""
        pairs = [*self._everywhere, *at_start]
        position = 0
        while True:
            next_thought = self._find_start(content, position, pairs)
            if next_thought is None:
                break
            start, (start_tag, end_tag) = next_thought
            rest = _append(rest, content[position:start], is_after_thought=bool(thoughts))
            end = content.find(end_tag, start + len(start_tag))
            inner_end = len(content) if end < 0 else end
            thoughts.append(content[start + len(start_tag) : inner_end].strip("\n"))
            if end < 0:
                if not is_final:
                    held_back = find_partial_match_length(thoughts[-1], end_tag)
                    thoughts[-1] = thoughts[-1][: len(thoughts[-1]) - held_back]
                return "\n\n".join(filter(None, thoughts)), rest
            position = end + len(end_tag)
        rest = _append(rest, content[position:], is_after_thought=bool(thoughts))
        if not is_final:
            if not thoughts and any(start.startswith(rest.lstrip()) for start, _ in at_start):
                rest = ""
            n_pending = max((find_partial_match_length(rest, start) for start, _ in self._everywhere), default=0)
            rest = rest[: len(rest) - n_pending]
        return "\n\n".join(filter(None, thoughts)), rest

    def strip_partial_end(self, reasoning: str, end_tags: Sequence[str]) -> str:
        """Return the reasoning of a reply that was cut, without the beginning of an end tag at its end.

        The end tags are `end_tags` and those that count everywhere. One or two characters count as reasoning.
        """
        tags = (*end_tags, *(end for _, end in self._everywhere))
        n_partial = max((find_partial_match_length(reasoning, tag) for tag in tags), default=0)
        return reasoning[:-n_partial] if n_partial >= _MIN_PARTIAL_TAG_CHARS else reasoning

    def split_unopened(self, content: str) -> tuple[str, str]:
        """Split finished content whose reasoning has an end tag but no start tag into reasoning and the rest.

        Only tags of the template and the vocabulary are recognised. An end tag after a backtick is part of the content.
        """
        ends = [(content.find(end), start, end) for start, end in self._everywhere if end in content]
        position, start_tag, end_tag = min(ends, default=(-1, "", ""))
        if position < 0 or start_tag in content[:position] or content[:position].endswith("`"):
            return "", content
        return content[:position].strip("\n"), content[position + len(end_tag) :].lstrip("\n")

    def _find_start(
        self, content: str, position: int, pairs: Sequence[tuple[str, str]]
    ) -> tuple[int, tuple[str, str]] | None:
        """Return the position and the tags of the next thought; None if no thought follows."""
        candidates = [(_find_tag(content, pair[0], position), pair) for pair in self._everywhere]
        if not content[:position].strip() or position == 0:
            n_blank = len(content) - len(content.lstrip())
            candidates += [(n_blank, pair) for pair in pairs if content.startswith(pair[0], n_blank)]
        return min((c for c in candidates if c[0] >= 0), default=None)


def _find_tag(content: str, tag: str, position: int) -> int:
    """Return the position of the next start tag that is not after a backtick or in a code block; -1 if not found."""
    while (start := content.find(tag, position)) >= 0:
        if content[max(0, start - 1) : start] != "`" and content.count("```", 0, start) % 2 == 0:
            break
        position = start + len(tag)
    return start


def _append(rest: str, text: str, *, is_after_thought: bool = False) -> str:
    """Append `text` to `rest`, without the newlines that only separate it from reasoning."""
    if not rest and is_after_thought:
        return text.lstrip("\n")
    return rest + text
