"""Sampler: a llama_sampler chain, constrained by an optional grammar."""

from __future__ import annotations

import ctypes
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
_PENALTY_LAST_N: Final = 64
_MAX_DRY_TOKENS: Final = 1 << 16
# Texts that end a repetition for DRY: lists, keys and quotations may start alike (the default of llama.cpp).
_DRY_BREAKERS: Final = (b"\n", b":", b'"', b"*")
# Number of candidate tokens from which Mirostat 1 estimates the distribution (the constant of llama.cpp and the paper).
_MIROSTAT_M: Final = 100


def count_penalty_tokens(params: Sampling) -> int:
    """Return the number of recent tokens that the penalties of `params` consider."""
    return max(_PENALTY_LAST_N, _count_dry_tokens(params))


def _count_dry_tokens(params: Sampling) -> int:
    """Return the number of recent tokens that DRY searches; 0 if it is off."""
    if not params.dry_multiplier:
        return 0
    return params.dry_penalty_last_n if params.dry_penalty_last_n >= 0 else _MAX_DRY_TOKENS


class Sampler:
    """Owner of a llama_sampler chain, which `close` or garbage collection frees."""

    def __init__(
        self, model: Model, params: Sampling, logit_bias: Mapping[int, float] = MappingProxyType({}),
        grammar: Grammar | TriggeredGrammar | None = None,
    ) -> None:  # fmt: skip
        """Create the chain, in the order of llama.cpp: logit bias, penalties, DRY, limits, temperature, random choice.

        The limits are top-n-sigma, top-k, typical-p, top-p, min-p and XTC. Mirostat replaces them and the random
        choice. A temperature of 0 replaces all steps after DRY with greedy sampling. `grammar` restricts the sampled
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
        self._append_penalties(model, params)
        if params.temperature <= 0:
            self._only_greedy = llama.llama_sampler_chain_n(self.pointer) == 0
            self._append(llama.llama_sampler_init_greedy())
        elif params.mirostat:
            self._append(llama.llama_sampler_init_temp(params.temperature))
            self._append_mirostat(params)
        else:
            self._append_limits(params)
            self._append(llama.llama_sampler_init_temp_ext(
                params.temperature, params.dynatemp_range, params.dynatemp_exponent
            ))  # fmt: skip
            self._append(llama.llama_sampler_init_dist(self.seed))

    def _append_penalties(self, model: Model, params: Sampling) -> None:
        llama = self._llama
        if params.repeat_penalty != 1.0 or params.frequency_penalty or params.presence_penalty:
            self._append(llama.llama_sampler_init_penalties(
                model.n_vocab, _PENALTY_LAST_N, params.repeat_penalty, params.frequency_penalty, params.presence_penalty
            ))  # fmt: skip
        n_dry_tokens = _count_dry_tokens(params)
        if n_dry_tokens:
            self._append(llama.llama_sampler_init_dry(
                model.vocab, params.dry_multiplier, params.dry_base, params.dry_allowed_length,
                n_dry_tokens, (ctypes.c_char_p * len(_DRY_BREAKERS))(*_DRY_BREAKERS), len(_DRY_BREAKERS),
            ))  # fmt: skip

    def _append_limits(self, params: Sampling) -> None:
        """Append the steps that remove unlikely tokens, and XTC, which removes likely ones."""
        llama = self._llama
        if params.top_n_sigma > 0:
            self._append(llama.llama_sampler_init_top_n_sigma(params.top_n_sigma))
        if params.top_k > 0:
            self._append(llama.llama_sampler_init_top_k(params.top_k))
        if params.typical_p < 1:
            self._append(llama.llama_sampler_init_typical(params.typical_p, 1))
        self._append(llama.llama_sampler_init_top_p(params.top_p, 1))
        self._append(llama.llama_sampler_init_min_p(params.min_p, 1))
        if params.xtc_probability > 0:
            self._append(llama.llama_sampler_init_xtc(params.xtc_probability, params.xtc_threshold, 1, self.seed))

    def _append_mirostat(self, params: Sampling) -> None:
        tau, eta = params.mirostat_tau, params.mirostat_eta
        if params.mirostat == 1:
            self._append(self._llama.llama_sampler_init_mirostat(self._n_vocab, self.seed, tau, eta, _MIROSTAT_M))
        else:
            self._append(self._llama.llama_sampler_init_mirostat_v2(self.seed, tau, eta))

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
    def is_constrained(self) -> bool:
        """True if a grammar restricts the next token."""
        return self._grammar is not None and self._grammar.is_active

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

    def accept_output(self, token: int) -> None:
        """Advance penalties and grammar by an output token that was not sampled. Raises GrammarError.

        The grammar must allow the token, see `count_allowed`.
        """
        self.accept(token)
        if self._grammar is not None:
            self._grammar.accept(token)

    def sample(self, context: Context, index: int = -1) -> int:
        """Sample a token from the logits at `index` of the last batch (-1 for the last position), and accept it.

        Raises GrammarError if the grammar allows no token, and ComputeError if a GPU computed no numbers.
        """
        context.check_logits(index)
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
