"""Choosing the next token: a chain of llama.cpp's samplers."""

from __future__ import annotations

import random
import weakref
from typing import Final

from edgechat.config import Sampling
from edgechat.runtime.context import Context
from edgechat.runtime.model import Model

# How many recent tokens the penalties see; llama.cpp's default.
PENALTY_LAST_N: Final = 64


class Sampler:
    """Owns a llama_sampler chain. Freed by `close`, or when it is no longer referenced."""

    def __init__(self, model: Model, params: Sampling) -> None:
        """Build the chain; penalties come first, so that every later step sees them."""
        self._llama = llama = model.bindings.llama
        self.seed = params.seed if params.seed is not None else random.SystemRandom().getrandbits(31)
        chain_params = llama.llama_sampler_chain_default_params()
        chain_params.no_perf = True
        self.pointer = llama.llama_sampler_chain_init(chain_params)
        self._finalizer = weakref.finalize(self, llama.llama_sampler_free, self.pointer)
        self._argmax = model.bindings.edgechat.edgechat_argmax
        self._n_vocab = model.n_vocab
        self._only_greedy = False
        if params.repeat_penalty != 1.0:
            self._add(llama.llama_sampler_init_penalties(
                model.n_vocab, PENALTY_LAST_N, params.repeat_penalty, 0.0, 0.0
            ))  # fmt: skip
        if params.temperature <= 0:
            self._only_greedy = llama.llama_sampler_chain_n(self.pointer) == 0
            self._add(llama.llama_sampler_init_greedy())
            return
        if params.top_k > 0:
            self._add(llama.llama_sampler_init_top_k(params.top_k))
        self._add(llama.llama_sampler_init_top_p(params.top_p, 1))
        self._add(llama.llama_sampler_init_min_p(params.min_p, 1))
        self._add(llama.llama_sampler_init_temp(params.temperature))
        self._add(llama.llama_sampler_init_dist(self.seed))

    def _add(self, part: object) -> None:
        self._llama.llama_sampler_chain_add(self.pointer, part)  # the chain owns it from here

    def close(self) -> None:
        """Free the chain now. A second call does nothing."""
        self._finalizer()

    def accept(self, token: int) -> None:
        """Let the penalties see a token that was not sampled here (the end of the prompt)."""
        self._llama.llama_sampler_accept(self.pointer, token)

    def sample(self, context: Context, index: int = -1) -> int:
        """Draw the token after the one at `index` of the last batch, or the last one, and accept it."""
        if self._only_greedy:
            return int(self._argmax(self._llama.llama_get_logits_ith(context.pointer, index), self._n_vocab))
        return int(self._llama.llama_sampler_sample(self.pointer, context.pointer, index))
