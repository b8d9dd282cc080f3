"""Grammars that constrain the output of a model. Only this module imports llguidance."""

from __future__ import annotations

import contextlib
import importlib.util
import weakref
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from edgechat.errors import GrammarError
from edgechat.runtime.model import Model

if TYPE_CHECKING:
    from llguidance import LLMatcher
    from numpy.typing import NDArray

MAX_CHARS: Final = 1 << 18
"""Maximum characters of a grammar; llguidance compiles that many in under a second (tests/engine/test_grammar.py)."""
_MAX_ERROR_CHARS: Final = 400
_SPECIAL_PREFIX: Final = b"\xff"  # llguidance's prefix for tokens that are not text


_tokenizers: weakref.WeakKeyDictionary[Any, dict[tuple[str, ...], Any]] = weakref.WeakKeyDictionary()


class _Vocabulary:
    """Vocabulary of a model with the attributes that llguidance's TokenizerWrapper reads."""

    def __init__(self, model: Model, text_tokens: Sequence[str]) -> None:
        """List all tokens; the control tokens in `text_tokens` count as text."""
        control = model.control_tokens
        texts = {token: text.encode("utf-8", "replace") for text, token in control.items()}
        text_token_ids = {control[text] for text in text_tokens if text in control}
        self.eog_tokens = [token for token in range(model.n_vocab) if model.is_eog(token)]
        if not self.eog_tokens:
            raise GrammarError("The output format cannot be enforced: the model has no end-of-generation token.")
        self.eos_token_id = self.eog_tokens[0]
        self.bos_token_id = None
        self.special_token_ids = [token for token in texts if token not in text_token_ids]
        self.tokens = [
            texts[t] if t in text_token_ids else _SPECIAL_PREFIX + texts[t] if t in texts else model.token_to_piece(t)
            for t in range(model.n_vocab)
        ]  # fmt: skip
        self._model: Model = weakref.proxy(model)  # `_tokenizers` must not keep the model alive

    def __call__(self, text: bytes | str) -> list[int]:
        if isinstance(text, bytes):
            text = text.decode("utf-8", "replace")
        return self._model.tokenize(text, add_special=False, parse_special=False)


class Grammar:
    """Compiled grammar and the state of one output in it."""

    def __init__(self, matcher: LLMatcher, n_vocab: int) -> None:
        """Wrap a matcher. Raises GrammarError if llguidance could not compile the grammar."""
        self._matcher = matcher
        self._n_vocab = n_vocab
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            # llguidance appends its state and the whole grammar to the message.
            message = str(self._matcher.get_error()).partition("<state>")[0].partition("<grammar>")[0].strip()
            message = message.partition(". Enable '")[0]  # cuts a hint about options of llguidance
            if message.startswith("NoExtension"):
                message = "no text matches the grammar"
            raise GrammarError(f"The output format cannot be enforced: {message[:_MAX_ERROR_CHARS]}")

    def copy(self) -> Grammar:
        """Return an independent copy in the same state."""
        return Grammar(self._matcher.deep_copy(), self._n_vocab)

    @property
    def is_complete(self) -> bool:
        """True if the output is complete and no token can follow."""
        return bool(self._matcher.is_stopped())

    @property
    def can_end(self) -> bool:
        """True if the output may end here."""
        return bool(self._matcher.is_accepting())

    def count_allowed(self, tokens: list[int]) -> int:
        """Return how many leading `tokens` the grammar allows."""
        return int(self._matcher.validate_tokens(tokens))

    def accept(self, token: int) -> None:
        """Advance the state by `token`. Raises GrammarError if the state becomes too complex."""
        self._matcher.consume_token(token)
        self._check()

    @contextlib.contextmanager
    def mask_disallowed(self, logits: NDArray[Any]) -> Iterator[None]:
        """Set logits of disallowed tokens to -inf within the `with` block. Raises GrammarError if none is allowed."""
        import numpy as np

        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        is_allowed = np.unpackbits(bits, bitorder="little")[: self._n_vocab].astype(bool)
        if not is_allowed.any():
            raise GrammarError("The output format cannot be enforced: the vocabulary has no token that may follow.")
        original = logits.copy()
        logits[~is_allowed] = -np.inf
        try:
            yield
        finally:
            logits[:] = original


def compile_grammar(model: Model, grammar: str, text_tokens: Sequence[str] = ()) -> Grammar:
    """Compile a grammar in llguidance's Lark variant or its JSON form.

    The control tokens in `text_tokens` are part of the constrained text. Raises GrammarError if the grammar is invalid
    or llguidance is not installed.
    """
    if importlib.util.find_spec("llguidance") is None:
        raise GrammarError("Grammars need the package llguidance. Install edgechat[serve].")
    if len(grammar) > MAX_CHARS:
        raise GrammarError(f"A grammar of {len(grammar)} characters is over the limit of {MAX_CHARS}.")
    import llguidance

    matcher = llguidance.LLMatcher(_tokenizer(model, tuple(text_tokens)), grammar, log_level=0)
    return Grammar(matcher, model.n_vocab)


def _tokenizer(model: Model, text_tokens: tuple[str, ...]) -> Any:
    """Return llguidance's tokenizer of a model; cached, since building one takes up to a second."""
    tokenizers = _tokenizers.setdefault(model, {})
    if text_tokens not in tokenizers:
        import llguidance

        vocabulary = _Vocabulary(model, text_tokens)
        tokenizers[text_tokens] = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(vocabulary), eos_token=vocabulary.eog_tokens
        )
    return tokenizers[text_tokens]
