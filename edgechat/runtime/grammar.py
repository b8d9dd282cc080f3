"""Grammars that constrain the output of a model. Only this module imports llguidance."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import re
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from edgechat.errors import EdgechatError, EngineError, GrammarError

if TYPE_CHECKING:
    from llguidance import LLMatcher
    from numpy.typing import NDArray

    from edgechat.runtime.model import Model

MAX_GRAMMAR_CHARS: Final = 1 << 18
"""Maximum number of characters in a grammar; the schemas of 218 tools of public MCP servers have 114,000."""
MAX_TOOL_GRAMMAR_CHARS: Final = 1 << 19
"""Maximum number of characters in a model's own tool call grammar, which is up to 3.5 times as long as the tools."""
# Maximum number of states of the automaton that llguidance builds while a reply is being generated. A state takes up to
# 2 kB. Schemas of tools need hundreds of states; patterns that search for several texts at once need millions.
_MAX_LEXER_STATES: Final = 50_000
_MAX_ERROR_CHARS: Final = 400
# Parts of llguidance's error messages around the cause: the position in the grammar before it, and the state of the
# parser after it. Panics append a backtrace, and errors of the compiler append lines of the grammar.
_ERROR_PREFIX: Final = re.compile(r"^(at \d+\(\d+\): )?(failed to compile JSON schema: )?")
_ERROR_DETAILS: Final = re.compile(r"<state>|<grammar>|<non-verbose/>|<backtrace>|\. Enable '|\n *\d+ \| ")
# Pattern of error messages about a fault of llguidance or edgechat.
_INTERNAL_ERROR: Final = re.compile(
    r"(?i)(lexer error: |parser error: )?"
    r"(panic(?!.*symbols\.len)|internal error|unexpected backtracking|token .* doesn't satisfy)"
)
# Pattern of error messages about an exceeded limit.
_LIMIT_ERROR: Final = re.compile(
    r"(?i)\btoo (many|large)|symbols\.len\(\) <|\bfuel\b|row has \d|unable to determine|level exceeded"
)
_CONTINUATION: Final = "\x01"
"""Control character that precedes a text which is tokenised as the continuation of another text."""
_SPECIAL_PREFIX: Final = b"\xff"  # llguidance's prefix for tokens that are not text


_tokenizers: weakref.WeakKeyDictionary[Any, dict[tuple[str, ...], tuple[Any, bool]]] = weakref.WeakKeyDictionary()


class _Vocabulary:
    """Vocabulary of a model, with the attributes that llguidance's TokenizerWrapper reads."""

    def __init__(self, model: Model, text_tokens: Sequence[str]) -> None:
        """Collect the tokens of `model`. The control tokens in `text_tokens` are treated as ordinary text."""
        control_tokens = model.control_tokens
        texts = {token: text.encode("utf-8", "replace") for text, token in control_tokens.items()}
        text_token_ids = {control_tokens[text] for text in text_tokens if text in control_tokens}
        self.eog_tokens = [token for token in range(model.n_vocab) if model.is_eog(token)]
        if not self.eog_tokens:
            raise GrammarError(
                "The output format cannot be enforced: the model has no end-of-generation token. Choose another model."
            )
        self.eos_token_id = self.eog_tokens[0]
        self.bos_token_id = None
        self.special_token_ids = [token for token in texts if token not in text_token_ids]
        self.tokens = [
            texts[t] if t in text_token_ids else _SPECIAL_PREFIX + texts[t] if t in texts else model.token_to_piece(t)
            for t in range(model.n_vocab)
        ]  # fmt: skip
        self.has_all_bytes = len({t for t in self.tokens if len(t) == 1}) == 256  # noqa: PLR2004  (values of a byte)
        # A strong reference to the model would prevent `_tokenizers` from removing the model's entry.
        self._model: Model = weakref.proxy(model)
        adds_space = b"".join(map(model.token_to_piece, self._tokenize("a"))).startswith(b" ")
        self._prefix = _CONTINUATION if adds_space else ""
        self._n_prefix_tokens = len(self._tokenize(self._prefix))

    def __call__(self, text: bytes | str) -> list[int]:
        if isinstance(text, bytes):
            text = text.decode("utf-8", "replace")
        # The text continues the output, so it must not get the space that SentencePiece puts before a first word.
        # The byte token of `_CONTINUATION` gets that space, and never merges with the next characters.
        return self._tokenize(self._prefix + text)[self._n_prefix_tokens :]

    def _tokenize(self, text: str) -> list[int]:
        return self._model.tokenize(text, add_special=False, parse_special=False)


class Grammar:
    """Compiled grammar, with the parser state of one output."""

    def __init__(
        self, matcher: LLMatcher, n_vocab: int, tokenize: Callable[[str], list[int]], *, has_all_bytes: bool = True
    ) -> None:
        """Create a grammar from a matcher of llguidance. `tokenize` tokenises a text in the middle of an output.

        `has_all_bytes` is true if the vocabulary has tokens for all texts. Raises GrammarError if the matcher reports
        an error in the grammar, and EngineError for a fault of llguidance.
        """
        self._matcher = matcher
        self._n_vocab = n_vocab
        self._tokenize = tokenize
        self._has_all_bytes = has_all_bytes
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise _convert_error(str(self._matcher.get_error()), has_all_bytes=self._has_all_bytes)

    def copy(self) -> Grammar:
        """Return an independent copy in the same state."""
        return Grammar(self._matcher.deep_copy(), self._n_vocab, self._tokenize, has_all_bytes=self._has_all_bytes)

    @property
    def is_active(self) -> bool:
        """Always true: the grammar constrains the whole output."""
        return True

    @property
    def is_complete(self) -> bool:
        """True if the output is complete and no token can follow."""
        return bool(self._matcher.is_stopped())

    @property
    def can_end(self) -> bool:
        """True if the output can end at this point."""
        return bool(self._matcher.is_accepting())

    def count_allowed(self, tokens: list[int]) -> int:
        """Return the number of tokens at the start of `tokens` that the grammar allows."""
        return int(self._matcher.validate_tokens(tokens))

    def accept(self, token: int) -> None:
        """Advance the state by `token`. Raises GrammarError if the state becomes too complex."""
        self._matcher.consume_token(token)
        self._check()

    def accept_text(self, text: str) -> bool:
        """Advance the state by a text; return False, without a change, if the grammar does not allow the text.

        Raises GrammarError if the state becomes too complex.
        """
        tokens = self._tokenize(text)
        if self.count_allowed(tokens) < len(tokens):
            return False
        for token in tokens:
            self.accept(token)
        return True

    @contextlib.contextmanager
    def mask_disallowed(self, logits: NDArray[Any]) -> Iterator[None]:
        """Set the logits of disallowed tokens to -inf in the `with` block.

        Raises GrammarError if the grammar allows no token.
        """
        import numpy as np

        bitmask = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        allowed_mask = np.unpackbits(bitmask, bitorder="little")[: self._n_vocab].astype(bool)
        if not allowed_mask.any():
            raise GrammarError(
                "The output format cannot be enforced: at this point, it allows none of the model's tokens."
            )
        original_logits = logits.copy()
        logits[~allowed_mask] = -np.inf
        try:
            yield
        finally:
            logits[:] = original_logits


def compile_grammar(model: Model, grammar: str, text_tokens: Sequence[str] = ()) -> Grammar:
    """Compile a grammar in llguidance's variant of Lark, or in llguidance's JSON format.

    The control tokens in `text_tokens` are treated as ordinary text. The time, the memory and the depth of the stack
    are not limited: call `check_grammar` in a child process first. Raises GrammarError if the grammar is invalid, or if
    llguidance is not installed.
    """
    tokenizer, has_all_bytes = _get_tokenizer(model, tuple(text_tokens))
    matcher = _create_matcher(tokenizer, grammar)
    return Grammar(matcher, model.n_vocab, tokenizer.tokenize_str, has_all_bytes=has_all_bytes)


def check_grammar(grammar: str) -> None:
    """Compile a grammar as `compile_grammar` does, but for a vocabulary of single bytes, and discard the result.

    Time and memory hardly depend on the vocabulary. Raises the same exceptions as `compile_grammar`.
    """
    matcher = _create_matcher(_get_byte_tokenizer(), grammar)
    if matcher.is_error():
        raise _convert_error(str(matcher.get_error()))


def require_llguidance() -> None:
    """Raise GrammarError if llguidance is not installed."""
    if importlib.util.find_spec("llguidance") is None:
        raise GrammarError("Grammars need the package llguidance. Run `pip install edgechat[serve]`.")


def check_length(grammar: str, max_chars: int = MAX_GRAMMAR_CHARS) -> None:
    """Raise GrammarError if a grammar is longer than `max_chars`."""
    if len(grammar) > max_chars:
        raise GrammarError(f"The grammar has {len(grammar)} characters; the limit is {max_chars}. Simplify it.")


def _create_matcher(tokenizer: Any, grammar: str) -> LLMatcher:
    import llguidance

    limits = llguidance.LLParserLimits(max_lexer_states=_MAX_LEXER_STATES, verbose_errors=False)
    return llguidance.LLMatcher(tokenizer, grammar, log_level=0, limits=limits)


def _convert_error(message: str, *, has_all_bytes: bool = True) -> EdgechatError:
    """Return the exception for an error message of llguidance, shortened to one sentence."""
    cause = " ".join(_ERROR_PREFIX.sub("", _ERROR_DETAILS.split(message, maxsplit=1)[0]).split())[:_MAX_ERROR_CHARS]
    if cause.startswith("NoExtension"):
        cause = "no text matches the grammar"
    elif "forced bytes" in cause and not has_all_bytes:
        cause = "it requires a character that this model's vocabulary does not have. Choose another character or model."
    elif _INTERNAL_ERROR.match(cause):
        return EngineError(f"The output format cannot be enforced because of a fault in llguidance: {cause}.")
    elif _LIMIT_ERROR.search(cause):
        cause = f"it exceeds a limit of llguidance. Simplify it. ({cause})"
    return GrammarError(f"The output format cannot be enforced: {cause}")


def _get_tokenizer(model: Model, text_tokens: tuple[str, ...]) -> tuple[Any, bool]:
    """Return llguidance's tokenizer of a model, and whether it has tokens for all texts.

    Tokenizers are cached, because creating one takes up to a second.
    """
    tokenizers = _tokenizers.setdefault(model, {})
    if text_tokens not in tokenizers:
        import llguidance

        vocabulary = _Vocabulary(model, text_tokens)
        tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(vocabulary), eos_token=vocabulary.eog_tokens)
        tokenizers[text_tokens] = tokenizer, vocabulary.has_all_bytes
    return tokenizers[text_tokens]


class _ByteVocabulary:
    """Vocabulary of the 256 bytes and an end token."""

    eos_token_id = 256
    bos_token_id = None
    special_token_ids = (256,)
    tokens = tuple([bytes([byte]) for byte in range(256)] + [_SPECIAL_PREFIX + b"<end>"])

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text if isinstance(text, bytes) else text.encode("utf-8", "replace"))


@functools.cache
def _get_byte_tokenizer() -> Any:
    import llguidance

    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(_ByteVocabulary()))
