"""From a rendered prompt to tokens: control tokens come from the template, never from user text."""

from __future__ import annotations

import re
from typing import Protocol


class PromptTokenizer(Protocol):
    """What tokenising needs of a model."""

    @property
    def control_tokens(self) -> dict[str, int]:
        """Text to token of every control token, longest first."""

    @property
    def adds_bos(self) -> bool:
        """True if prompts start with the beginning-of-sequence token."""

    @property
    def bos(self) -> str:
        """Text of the beginning-of-sequence token, or ""."""

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Tokens of `text`."""


def tokenize_prompt(model: PromptTokenizer, text: str, guard: str) -> list[int]:
    """Tokens of a rendered prompt.

    `guard` is a character that was put inside every control token's text in user content; it is removed,
    and what it broke up is tokenised as the plain text that it is. Templates may write the model's
    beginning-of-sequence token themselves; it is never doubled.
    """
    add_special = model.adds_bos and not (model.bos and text.startswith(model.bos))
    if not guard or guard not in text:
        return model.tokenize(text, add_special=add_special, parse_special=True)
    # llama.cpp cuts a text at its control tokens and tokenises each piece by itself. The same cuts are made
    # here, where the guard still hides those that the user wrote.
    pattern = "|".join(re.escape(t) for t in model.control_tokens)
    tokens: list[int] = []
    if add_special:
        tokens += model.tokenize("", add_special=True, parse_special=False)
    for part in re.split(f"({pattern})", text) if pattern else [text]:
        if part in model.control_tokens:
            tokens.append(model.control_tokens[part])
        elif part:
            tokens += model.tokenize(part.replace(guard, ""), add_special=False, parse_special=False)
    return tokens
