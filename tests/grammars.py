"""Check of grammars without a model: whether a grammar accepts a text."""

from __future__ import annotations

import llguidance


class ByteTokenizer:
    """A vocabulary of the 256 bytes and an end-of-generation token."""

    eos_token_id = 256
    bos_token_id = None
    tokens = (*(bytes([b]) for b in range(256)), b"\xff<end>")
    special_token_ids = (256,)

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text if isinstance(text, bytes) else text.encode())


TOKENIZER = llguidance.LLTokenizer(llguidance.TokenizerWrapper(ByteTokenizer()), slices=[])


def allows(grammar: str, text: str) -> bool:
    """Return whether the grammar accepts `text` as a complete reply."""
    matcher = llguidance.LLMatcher(TOKENIZER, grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    return matcher.try_consume_tokens(list(text.encode())) == len(text.encode()) and matcher.is_accepting()
