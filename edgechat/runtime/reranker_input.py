"""Input of a reranker: the tokens of a query and a document, as llama-server composes them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from edgechat.errors import ContextOverflowError, EngineError
from edgechat.runtime.model import Model
from edgechat.runtime.special_tokens import choose_guard, compile_pattern, guard_text

_PLACEHOLDER: Final = re.compile(r"\{(query|document)\}")


class PairTokenizer:
    """Tokenises pairs of a query and a document for one reranker."""

    def __init__(self, model: Model, n_ctx: int) -> None:
        """Read the form of the input from `model`; pairs of more than `n_ctx` tokens are refused."""
        self._model = model
        self._n_ctx = n_ctx
        self._template = model.rerank_template
        self._control_pattern = compile_pattern([token for token in model.control_tokens if len(token) > 1])
        llama, vocab = model.bindings.llama, model.vocab
        bos, eos, sep = (int(f(vocab)) for f in (llama.llama_vocab_bos, llama.llama_vocab_eos, llama.llama_vocab_sep))
        eos = eos if eos >= 0 else sep
        self._start = [bos] if llama.llama_vocab_get_add_bos(vocab) else []
        self._end = [eos] if llama.llama_vocab_get_add_eos(vocab) else []
        self._separator = [*self._end, *([sep] if llama.llama_vocab_get_add_sep(vocab) else [])]

    def tokenize(self, query: str, document: str) -> list[int]:
        """Return the tokens of the input. The texts of control tokens in `query` and `document` are plain text.

        Raises ContextOverflowError if the input is too long, and EngineError if the texts contain every guard.
        """
        if self._template is not None:
            return self._tokenize_template(self._template, query, document)
        query_tokens = self._tokenize_plain(query)
        tokens = [*self._start, *query_tokens, *self._separator, *self._tokenize_plain(document), *self._end]
        self._check_length(len(tokens))
        return tokens

    def _tokenize_plain(self, text: str) -> list[int]:
        return self._collect(self._model.iterate_tokens(text, add_special=False, parse_special=False))

    def _tokenize_template(self, template: str, query: str, document: str) -> list[int]:
        guard = choose_guard(query + document)
        if not guard:
            raise EngineError("The texts contain all noncharacters of Unicode from U+FDD0. Remove them.")
        texts = {
            "query": guard_text(query, self._control_pattern, guard),
            "document": guard_text(document, self._control_pattern, guard),
        }
        prompt = _PLACEHOLDER.sub(lambda match: texts[match[1]], template)
        return self._collect(self._model.iterate_tokens(prompt, add_special=False, parse_special=True, guard=guard))

    def _collect(self, parts: Iterable[list[int]]) -> list[int]:
        """Return the tokens of all parts. Raises ContextOverflowError at the first part that is too much."""
        tokens: list[int] = []
        for part in parts:
            tokens += part
            self._check_length(len(tokens))
        return tokens

    def _check_length(self, n_tokens: int) -> None:
        if n_tokens > self._n_ctx:
            raise ContextOverflowError(
                f"The query and the document have {n_tokens} tokens or more, but this model reads at most "
                f"{self._n_ctx}. Split the document."
            )
