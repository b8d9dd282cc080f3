"""Slow reference implementation of the suffix index."""

from __future__ import annotations

from collections.abc import Sequence

MAX_MATCH_TOKENS = 64
MAX_COMPARED = 64


class PlainIndex:
    """Index with the interface of `SuffixIndex` that searches the whole text in every call."""

    def __init__(self, capacity: int = 0) -> None:
        self.tokens: list[int] = []

    def __len__(self) -> int:
        return len(self.tokens)

    def append(self, tokens: Sequence[int]) -> None:
        self.tokens.extend(tokens)

    def truncate(self, size: int) -> None:
        del self.tokens[max(size, 0) :]

    def draft(self, max_tokens: int, context: Sequence[int] | None = None) -> tuple[list[int], int, int]:
        text = list(self.tokens if context is None else context)
        for order in (4, 3, 2, 1):
            matches = [
                (p, self._match_length(text, p)) for p in range(len(self.tokens) - 1, -1, -1) if self.tokens[p] >= 0
            ]
            matches = [(p, n) for p, n in matches if n >= order][: MAX_COMPARED if order == 4 else 1]
            if matches:
                position, length = max(matches, key=lambda match: (match[1], match[0]))
                draft = self._follow(position, min(max_tokens, MAX_MATCH_TOKENS), loops=context is None)
                return draft, length, position
        return [], 0, -1

    def _match_length(self, text: list[int], position: int) -> int:
        length = 0
        while length < min(len(text), position, MAX_MATCH_TOKENS):
            token = text[-1 - length]
            if token < 0 or token != self.tokens[position - 1 - length]:
                break
            length += 1
        return length

    def _follow(self, position: int, count: int, *, loops: bool) -> list[int]:
        draft = self.tokens[position : position + count]
        while loops and len(draft) < count:
            draft.append(draft[len(draft) - (len(self.tokens) - position)])
        return draft[: next((i for i, t in enumerate(draft) if t < 0), len(draft))]
