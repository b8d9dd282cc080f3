"""Sampler: a llama_sampler chain, constrained by an optional grammar."""

from __future__ import annotations

import random
import weakref
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from edgechat.config import Sampling
from edgechat.runtime.context import Context
from edgechat.runtime.model import Model

if TYPE_CHECKING:
    from edgechat.runtime.grammar import Grammar
    from edgechat.runtime.triggered_grammar import TriggeredGrammar

# Number of recent tokens that repetition penalties consider (the default of llama.cpp).
PENALTY_LAST_N: Final = 64


class Sampler:
    """Owner of a llama_sampler chain, which `close` or garbage collection frees."""

    def __init__(
        self, model: Model, params: Sampling, logit_bias: Mapping[int, float] = MappingProxyType({}),
        grammar: Grammar | TriggeredGrammar | None = None,
    ) -> None:  # fmt: skip
        """Create the chain: logit bias, penalties, top-k, top-p, min-p, temperature and random choice, in this order.

        A temperature of 0 replaces all steps after the penalties with greedy sampling. `grammar` restricts the sampled
        tokens, and `sample` advances the state of the grammar.
        """
        self._llama = llama = model.bindings.llama
        self._grammar = grammar
        self.seed = params.seed if params.seed is not None else random.SystemRandom().getrandbits(31)
        chain_params = llama.llama_sampler_chain_default_params()
        chain_params.no_perf = True
        self.pointer = llama.llama_sampler_chain_init(chain_params)
        self._finalizer = weakref.finalize(self, llama.llama_sampler_free, self.pointer)
        self._argmax = model.bindings.edgechat.edgechat_argmax
        self._n_vocab = model.n_vocab
        self._only_greedy = False
        if logit_bias:
            biases = (llama.llama_logit_bias * len(logit_bias))()
            for entry, (token, bias) in zip(biases, logit_bias.items(), strict=True):
                entry.token, entry.bias = token, bias
            self._append(llama.llama_sampler_init_logit_bias(model.n_vocab, len(biases), biases))
        if params.repeat_penalty != 1.0 or params.frequency_penalty or params.presence_penalty:
            self._append(llama.llama_sampler_init_penalties(
                model.n_vocab, PENALTY_LAST_N, params.repeat_penalty, params.frequency_penalty, params.presence_penalty
            ))  # fmt: skip
        if params.temperature <= 0:
            self._only_greedy = llama.llama_sampler_chain_n(self.pointer) == 0
            self._append(llama.llama_sampler_init_greedy())
            return
        if params.top_k > 0:
            self._append(llama.llama_sampler_init_top_k(params.top_k))
        self._append(llama.llama_sampler_init_top_p(params.top_p, 1))
        self._append(llama.llama_sampler_init_min_p(params.min_p, 1))
        self._append(llama.llama_sampler_init_temp(params.temperature))
        self._append(llama.llama_sampler_init_dist(self.seed))

    def _append(self, sampler: object) -> None:
        self._llama.llama_sampler_chain_add(self.pointer, sampler)  # the chain takes ownership of `sampler`

    def close(self) -> None:
        """Free the sampler chain now. A second call does nothing."""
        self._finalizer()

    @property
    def is_complete(self) -> bool:
        """True if the grammar allows no further token."""
        return self._grammar is not None and self._grammar.is_complete

    @property
    def can_end(self) -> bool:
        """True unless the grammar requires further tokens."""
        return self._grammar is None or self._grammar.can_end

    def count_allowed(self, tokens: list[int]) -> int:
        """Return the number of tokens at the start of `tokens` that the grammar allows."""
        return len(tokens) if self._grammar is None else self._grammar.count_allowed(tokens)

    def accept(self, token: int) -> None:
        """Add a prompt token to the tokens that repetition penalties consider."""
        self._llama.llama_sampler_accept(self.pointer, token)

    def sample(self, context: Context, index: int = -1) -> int:
        """Sample a token from the logits at `index` of the last batch (-1 for the last position), and accept it.

        Raises GrammarError if the grammar allows no token.
        """
        if self._grammar is None:
            return self._sample_logits(context, index)
        with self._grammar.mask_disallowed(context.logits(index)):
            token = self._sample_logits(context, index)
        self._grammar.accept(token)
        return token

    def _sample_logits(self, context: Context, index: int) -> int:
        if self._only_greedy:
            return int(self._argmax(self._llama.llama_get_logits_ith(context.pointer, index), self._n_vocab))
        return int(self._llama.llama_sampler_sample(self.pointer, context.pointer, index))
