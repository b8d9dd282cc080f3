"""What an answer may be: a grammar that says for every next token whether it is allowed. The only importer of llguidance."""

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
"""Of a grammar; what llguidance makes of so much takes well under a second (tests/engine/test_grammar.py)."""
_MAX_WORDS: Final = 400
_SPECIAL: Final = b"\xff"  # llguidance's mark for tokens that are no text


_tokenizers: weakref.WeakKeyDictionary[Any, dict[tuple[str, ...], Any]] = weakref.WeakKeyDictionary()


class _Vocabulary:
    """A model's tokens, as llguidance asks for them."""

    def __init__(self, model: Model, shown_tokens: Sequence[str]) -> None:
        control = model.control_tokens
        texts = {token: text.encode("utf-8", "replace") for text, token in control.items()}
        shown = {control[text] for text in shown_tokens if text in control}
        self.ends = [token for token in range(model.n_vocab) if model.is_eog(token)]
        if not self.ends:
            raise GrammarError("this model knows no token that ends an answer: nothing can be enforced")
        self.eos_token_id = self.ends[0]
        self.bos_token_id = None
        self.special_token_ids = [token for token in texts if token not in shown]
        self.tokens = [
            texts[t] if t in shown else _SPECIAL + texts[t] if t in texts else model.token_to_piece(t)
            for t in range(model.n_vocab)
        ]  # fmt: skip
        self._model: Model = weakref.proxy(model)  # a tokenizer is kept for as long as its model

    def __call__(self, text: bytes | str) -> list[int]:
        """Tokens of a text."""
        if isinstance(text, bytes):
            text = text.decode("utf-8", "replace")
        return self._model.tokenize(text, add_special=False, parse_special=False)


class Grammar:
    """Where an answer is in a grammar: in llguidance's variant of Lark, or a JSON object of its own."""

    def __init__(self, matcher: LLMatcher, n_vocab: int) -> None:
        """Raises GrammarError if it cannot be enforced."""
        self._matcher = matcher
        self._n_vocab = n_vocab
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            # After its words come its state and the whole grammar.
            words = str(self._matcher.get_error()).partition("<state>")[0].partition("<grammar>")[0].strip()
            words = words.partition(". Enable '")[0]  # its own options
            if words.startswith("NoExtension"):
                words = "nothing at all would fit it"
            raise GrammarError(f"the format cannot be enforced: {words[:_MAX_WORDS]}")

    def copy(self) -> Grammar:
        """Another one that is where this one is."""
        return Grammar(self._matcher.deep_copy(), self._n_vocab)

    @property
    def is_complete(self) -> bool:
        """True if nothing can follow."""
        return bool(self._matcher.is_stopped())

    @property
    def can_end(self) -> bool:
        """True if what was said so far is all that was asked for."""
        return bool(self._matcher.is_accepting())

    def count_allowed(self, tokens: list[int]) -> int:
        """How many of these tokens, from the first on, would be allowed."""
        return int(self._matcher.validate_tokens(tokens))

    def accept(self, token: int) -> None:
        """So it goes on. Raises GrammarError if the grammar grows too complex."""
        self._matcher.consume_token(token)
        self._check()

    @contextlib.contextmanager
    def mask_disallowed(self, logits: NDArray[Any]) -> Iterator[None]:
        """Make what is not allowed impossible, and `logits` what they were afterwards."""
        import numpy as np

        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        allowed = np.unpackbits(bits, bitorder="little")[: self._n_vocab].astype(bool)
        if not allowed.any():
            raise GrammarError("the format allows nothing here: it asks for what cannot be")
        before = logits.copy()
        logits[~allowed] = -np.inf
        try:
            yield
        finally:
            logits[:] = before


def compile_grammar(model: Model, grammar: str, shown_tokens: Sequence[str] = ()) -> Grammar:
    """A grammar at its beginning; `shown_tokens` are control tokens that are a part of the text.

    Raises GrammarError if it cannot be enforced.
    """
    if importlib.util.find_spec("llguidance") is None:
        raise GrammarError("grammars need the package llguidance: install edgechat[serve]")
    if len(grammar) > MAX_CHARS:
        raise GrammarError(f"a grammar of {len(grammar)} characters is over the limit of {MAX_CHARS}")
    import llguidance

    matcher = llguidance.LLMatcher(_tokenizer(model, tuple(shown_tokens)), grammar, log_level=0)
    return Grammar(matcher, model.n_vocab)


def _tokenizer(model: Model, shown_tokens: tuple[str, ...]) -> Any:
    """Llguidance's view of a vocabulary; made once, since that takes up to a second."""
    made = _tokenizers.setdefault(model, {})
    if shown_tokens not in made:
        import llguidance

        vocabulary = _Vocabulary(model, shown_tokens)
        made[shown_tokens] = llguidance.LLTokenizer(llguidance.TokenizerWrapper(vocabulary), eos_token=vocabulary.ends)
    return made[shown_tokens]
