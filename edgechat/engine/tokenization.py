"""Tokenise rendered prompts so that control tokens come from the chat template, never from user text."""

from __future__ import annotations

import re
from typing import Protocol

from edgechat.errors import EngineError


class PromptTokenizer(Protocol):
    """Tokeniser interface that `tokenize_prompt` needs; `edgechat.runtime.model.Model` implements it."""

    @property
    def control_tokens(self) -> dict[str, int]:
        """Token ids of the control tokens by their text, longest text first."""

    @property
    def adds_bos(self) -> bool:
        """True if prompts start with the beginning-of-sequence token."""

    @property
    def bos(self) -> str:
        """Text of the beginning-of-sequence token; "" if the model has none."""

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Return the tokens of `text`. `add_special` adds the beginning-of-sequence token that the model expects.

        Control tokens in `text` are recognised only with `parse_special`.
        """


def tokenize_prompt(model: PromptTokenizer, text: str, guard: str) -> list[int]:
    """Tokenise a rendered prompt.

    `guard` is the character that the renderer put inside each control token's text in user content. This function
    removes the character and tokenises the text around it as plain text. If the template already wrote the
    beginning-of-sequence token, the token is not added a second time.
    """
    add_special = model.adds_bos and not (model.bos and text.startswith(model.bos))
    if not guard or guard not in text:
        return model.tokenize(text, add_special=add_special, parse_special=True)
    # llama.cpp splits a text at control tokens and tokenises each part separately. The code below splits at the same
    # places, but before it removes the guard, so that it does not split at control tokens that the user wrote.
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
    """Raise EngineError if a token is outside the vocabulary, because llama.cpp would read beyond its tables."""
    invalid_token = next((t for t in tokens if not 0 <= t < n_vocab), None)
    if invalid_token is not None:
        raise EngineError(f"Token {invalid_token} is not in this model's vocabulary of {n_vocab} tokens.")
