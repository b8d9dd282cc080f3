"""Special tokens in texts: control, unknown and user-defined tokens, which llama.cpp recognises before all others.

llama.cpp searches a text for one special token after another, so its time grows with the square of the number of
matches. This module finds the same tokens in linear time.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

# Characters that llama.cpp removes next to tokens with the attributes LSTRIP and RSTRIP (isspace of the C library).
_SPACES: Final = " \t\n\v\f\r"
_SPACE_RUN: Final = re.compile(rf"[{_SPACES}]+")
# Unicode noncharacters, which are valid in a str but do not occur in normal text. The tokeniser removes the guard.
_GUARDS: Final = tuple(chr(c) for c in range(0xFDD0, 0xFDF0))
# Maximum number of characters that two overlapping tokens are expected to share.
_MAX_OVERLAP: Final = 64


class SpecialToken(NamedTuple):
    """Special token of a vocabulary."""

    text: str
    token: int
    strips_left: bool = False
    """True if white space before the token is removed from the text."""
    strips_right: bool = False
    """True if white space after the token is removed from the text."""


class SpecialTokenSplitter:
    """Splits texts at special tokens, as llama.cpp does: longer tokens first, then from left to right."""

    def __init__(self, tokens: Sequence[SpecialToken]) -> None:
        self._tokens = {token.text: token for token in reversed(tokens) if token.text}
        texts = self._tokens.keys()
        # One pattern finds all tokens, unless a token could take text that llama.cpp gives to a longer one.
        needs_order = _have_overlaps(texts) or _strip_tokens(self._tokens.values())
        lengths = sorted({len(text.encode()) for text in texts}, reverse=True) if needs_order else []
        groups = [[text for text in texts if len(text.encode()) == length] for length in lengths] or [list(texts)]
        self._patterns = [compile_pattern(group) for group in groups if group]

    def split(self, text: str) -> Iterator[str | int]:
        """Yield the parts of `text` in order: special tokens as token ids, and the non-empty texts between them."""
        parts: Iterator[str | int] = iter([text] if text else [])
        for pattern in self._patterns:
            parts = self._split_parts(parts, pattern)
        return parts

    def _split_parts(self, parts: Iterator[str | int], pattern: re.Pattern[str]) -> Iterator[str | int]:
        for part in parts:
            if isinstance(part, int):
                yield part
                continue
            start = 0
            while match := pattern.search(part, start):
                token = self._tokens[match[0]]
                text = part[start : match.start()]
                text = text.rstrip(_SPACES) if token.strips_left else text
                if text:
                    yield text
                yield token.token
                # White space is removed before the search for the next token, which could start with it.
                spaces = _SPACE_RUN.match(part, match.end()) if token.strips_right else None
                start = spaces.end() if spaces is not None else match.end()
            if start < len(part):
                yield part[start:]


def _have_overlaps(texts: Collection[str]) -> bool:
    """Return whether the end of one text can be the beginning of another text that is not shorter.

    Two runs of one character, such as line feeds, may overlap: the longer one matches first at every position.
    """
    max_lengths: dict[str, int] = {}
    max_lengths_except_runs: dict[str, int] = {}
    for text in texts:
        for end in range(1, min(len(text), _MAX_OVERLAP)):
            max_lengths[text[:end]] = max(max_lengths.get(text[:end], 0), len(text))
            if not _is_run(text):
                max_lengths_except_runs[text[:end]] = max(max_lengths_except_runs.get(text[:end], 0), len(text))
    return any(
        (max_lengths_except_runs if _is_run(text) else max_lengths).get(text[start:], 0) >= len(text)
        for text in texts
        for start in range(max(1, len(text) - _MAX_OVERLAP), len(text))
    )


def _is_run(text: str) -> bool:
    return text == text[0] * len(text)


def _strip_tokens(tokens: Collection[SpecialToken]) -> bool:
    """Return whether a token can remove white space that would be a part of another token."""
    begin_blank = any(token.text[0] in _SPACES for token in tokens)
    end_blank = any(token.text[-1] in _SPACES for token in tokens)
    return any((token.strips_right and begin_blank) or (token.strips_left and end_blank) for token in tokens)


def compile_pattern(texts: Collection[str]) -> re.Pattern[str]:
    """Compile a pattern that matches the longest of `texts`, in a time that is almost independent of their number.

    The pattern for an empty collection matches nothing.
    """
    try:
        return re.compile(_format_trie(_make_trie(texts)) if texts else "(?!)")
    except RecursionError:  # hundreds of tokens that are prefixes of each other
        return re.compile("|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)))


def choose_guard(text: str) -> str:
    """Return a character that `text` does not contain, for `guard_text`; "" if it contains every possible guard."""
    return next((guard for guard in _GUARDS if guard not in text), "")


def guard_text(text: str, pattern: re.Pattern[str], guard: str) -> str:
    """Insert `guard` after the first character of every match of `pattern`; if `guard` is "", return `text`."""
    if not guard:
        return text
    # A guard in one match may leave an overlapping match intact, so the replacement is repeated until no match remains.
    # The loop ends, because no special token contains a guard.
    while (guarded_text := pattern.sub(lambda m: m[0][0] + guard + m[0][1:], text)) != text:
        text = guarded_text
    return text


_Trie = Mapping[str, Any]
_END: Final = ""
"""Key of a trie node at which a text ends."""


def _make_trie(texts: Collection[str]) -> _Trie:
    root: dict[str, Any] = {}
    for text in texts:
        node = root
        for character in text:
            node = node.setdefault(character, {})
        node[_END] = {}
    return root


def _format_trie(node: _Trie) -> str:
    branches = []
    for character, child in node.items():
        prefix = character
        while len(child) == 1 and _END not in child:
            ((next_character, child),) = child.items()  # noqa: PLW2901  (follows the only child)
            prefix += next_character
        if prefix != _END:
            branches.append(re.escape(prefix) + _format_trie(child))
    pattern = "|".join(branches)
    if not branches:
        return ""
    return f"(?:{pattern})?" if _END in node else f"(?:{pattern})"
