"""Tokenisation of rendered prompts: control tokens come from the chat template, never from user text."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, Protocol

from edgechat.engine.failures import create_failure_event
from edgechat.engine.overflow import make_overflow_error
from edgechat.engine.protocol import Detokenize, Detokenized, Event, Tokenize, Tokenized
from edgechat.errors import EdgechatError, EngineError, RequestCancelledError

# Time in seconds for which the engine tokenises one text before it does other work. A single part of a text can take
# longer.
_SLICE_S: Final = 0.02


class PromptTokenizer(Protocol):
    """Tokeniser interface that `iterate_prompt` needs; `edgechat.runtime.model.Model` implements it."""

    @property
    def adds_bos(self) -> bool:
        """True if prompts start with the beginning-of-sequence token."""

    @property
    def bos(self) -> str:
        """Text of the beginning-of-sequence token; "" if the model has none."""

    def iterate_tokens(
        self, text: str, *, add_special: bool, parse_special: bool, guard: str = "", is_prompt: bool = False
    ) -> Iterator[list[int]]:
        """Yield the tokens of `text` in parts.

        `add_special` adds the tokens that mark the start and the end of a text, if the model uses such tokens; with
        `is_prompt`, it adds only the token for the start. Control tokens in `text` are recognised only with
        `parse_special`, and not if they contain `guard`, which is removed.
        """


class Detokenizer(Protocol):
    """Interface that `detokenize` needs; `edgechat.runtime.model.Model` implements it."""

    @property
    def n_vocab(self) -> int:
        """Number of tokens in the vocabulary."""

    def token_to_piece(self, token: int, *, special: bool = False) -> bytes:
        """Return the UTF-8 bytes of a token; without `special`, those of a control token are b""."""


def iterate_prompt(model: PromptTokenizer, text: str, guard: str) -> Iterator[list[int]]:
    """Tokenise a rendered prompt in parts.

    `guard` is the character that the renderer put inside each control token's text in user content. If the template
    already wrote the beginning-of-sequence token, the token is not added a second time. No end-of-sequence token is
    added, even if the model file asks for one (`add_eos_token`).
    """
    add_special = model.adds_bos and not (model.bos and text.startswith(model.bos))
    return model.iterate_tokens(text, add_special=add_special, parse_special=True, guard=guard, is_prompt=True)


def iterate_request(model: PromptTokenizer, request: Tokenize, *, is_embedding: bool) -> Iterator[list[int]]:
    """Tokenise the text of a request in parts. Its defaults are those of prompts, or with `is_embedding` of texts."""
    if request.add_special is None and not is_embedding:
        return iterate_prompt(model, request.text, request.guard)
    return model.iterate_tokens(
        request.text, add_special=request.add_special is not False,
        parse_special=not is_embedding if request.parse_special is None else request.parse_special,
        guard=request.guard,
    )  # fmt: skip


class _PendingText(NamedTuple):
    """Text that is being tokenised for a request; the fields are the arguments of `TokenizationQueue.add`."""

    request_id: int
    parts: Iterator[list[int]]
    on_tokens: Callable[[list[int]], None]
    on_failed: Callable[[Exception], None]
    max_tokens: int | None
    tokens: list[int]
    """Tokens so far."""


class TokenizationQueue:
    """Queue of texts that are tokenised in turn, each for a short time, so that a long text delays no other request."""

    def __init__(self, n_ctx: int, n_ctx_train: int) -> None:
        """Create an empty queue. The error for a text that is too long contains `n_ctx` and `n_ctx_train`."""
        self._n_ctx = n_ctx
        self._n_ctx_train = n_ctx_train
        self._texts: deque[_PendingText] = deque()

    @property
    def is_empty(self) -> bool:
        """True if no text is being tokenised."""
        return not self._texts

    def add(
        self, request_id: int, parts: Iterator[list[int]], on_tokens: Callable[[list[int]], None],
        on_failed: Callable[[Exception], None], max_tokens: int | None,
    ) -> None:  # fmt: skip
        """Start tokenising a text for a request; `parts` yields its tokens.

        At the end, `on_tokens` is called with the tokens, or `on_failed` with an EdgechatError or a MemoryError:
        ContextOverflowError after more than `max_tokens` tokens, RequestCancelledError after `cancel`, and the errors
        of `parts` and `on_tokens`.
        """
        self._texts.append(_PendingText(request_id, parts, on_tokens, on_failed, max_tokens, []))

    def add_request(
        self, request: Tokenize, parts: Iterator[list[int]], on_finished: Callable[[int, Event], None]
    ) -> None:
        """Start tokenising the text of a Tokenize request; `on_finished` receives its id and its final event."""
        self.add(
            request.id,
            parts,
            lambda tokens: on_finished(request.id, Tokenized(id=request.id, tokens=tokens)),
            lambda error: on_finished(request.id, create_failure_event(request.id, error)),
            request.max_tokens,
        )

    def cancel(self, ids: set[int]) -> None:
        """Cancel the tokenisation of texts for the requests with the given ids."""
        for text in [text for text in self._texts if text.request_id in ids]:
            self._texts.remove(text)
            text.on_failed(RequestCancelledError("The request was cancelled while its text was tokenised."))

    def step(self) -> None:
        """Tokenise a part of the text that has waited longest."""
        if not self._texts:
            return
        text = self._texts.popleft()
        try:
            if self._advance(text):
                text.on_tokens(text.tokens)
            else:
                self._texts.append(text)
        except (EdgechatError, MemoryError) as error:
            text.on_failed(error)

    def _advance(self, text: _PendingText) -> bool:
        """Tokenise the next part of a text; return whether the text is complete. Raises EdgechatError."""
        deadline = time.monotonic() + _SLICE_S
        for part in text.parts:
            text.tokens.extend(part)
            if text.max_tokens is not None and len(text.tokens) > text.max_tokens:
                subject = f"The text has more than {text.max_tokens:,} tokens"
                raise make_overflow_error(subject, self._n_ctx, self._n_ctx_train)
            if time.monotonic() > deadline:
                return False
        return True


def detokenize(model: Detokenizer, request: Detokenize) -> Detokenized:
    """Return the texts of tokens, including control tokens. Raises EngineError for tokens that do not exist."""
    check_tokens(request.tokens, model.n_vocab)
    return Detokenized(id=request.id, pieces=[model.token_to_piece(token, special=True) for token in request.tokens])


def check_tokens(tokens: list[int], n_vocab: int) -> None:
    """Raise EngineError if a token is outside the vocabulary, because llama.cpp would read beyond its tables."""
    invalid_token = next((t for t in tokens if not 0 <= t < n_vocab), None)
    if invalid_token is not None:
        raise EngineError(f"Token {invalid_token} is not in this model's vocabulary of {n_vocab} tokens.")
