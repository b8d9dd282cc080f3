"""Tokenise rendered prompts so that control tokens come from the chat template, never from user text."""

from __future__ import annotations

import re
from typing import Protocol

from edgechat.errors import EngineError


class PromptTokenizer(Protocol):
    """The part of `edgechat.runtime.model.Model` that tokenising a prompt needs."""

    @property
    def control_tokens(self) -> dict[str, int]:
        """Control tokens by their text, longest text first."""

    @property
    def adds_bos(self) -> bool:
        """True if prompts start with the beginning-of-sequence token."""

    @property
    def bos(self) -> str:
        """Text of the beginning-of-sequence token, or ""."""

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Return the tokens of `text`; control tokens are recognised only with `parse_special`."""


def tokenize_prompt(model: PromptTokenizer, text: str, guard: str) -> list[int]:
    """Tokenise a rendered prompt.

    `guard` is a character that the renderer put inside each control token's text in user content. This function removes
    it and tokenises the surrounding text as plain text. If the template writes the beginning-of-sequence token itself,
    the token is not added a second time.
    """
    add_special = model.adds_bos and not (model.bos and text.startswith(model.bos))
    if not guard or guard not in text:
        return model.tokenize(text, add_special=add_special, parse_special=True)
    # llama.cpp splits a text at control tokens and tokenises each part on its own. This code splits at the same places
    # while the guard still hides the control tokens that the user wrote.
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


def check_tokens(tokens: list[int], n_vocab: int) -> None:
    """Raise EngineError for a token outside the vocabulary; llama.cpp would read beyond its tables."""
    invalid = next((t for t in tokens if not 0 <= t < n_vocab), None)
    if invalid is not None:
        raise EngineError(f"Token {invalid} is not in this model's vocabulary of {n_vocab} tokens.")
