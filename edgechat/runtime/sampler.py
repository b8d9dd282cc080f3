"""Choosing the next token: a chain of llama.cpp's samplers."""

from __future__ import annotations

import random
import weakref

import msgspec

from edgechat.runtime.context import Context
from edgechat.runtime.model import Model


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How tokens are drawn. The defaults are llama.cpp's, but for the penalties, which are off."""

    temperature: float = 0.8
    """0 is greedy: always the likeliest token."""
    top_k: int = 40
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float = 0.95
    """Keep the likeliest tokens whose probabilities add up to this; 1 keeps all."""
    min_p: float = 0.05
    """Drop tokens less likely than this part of the likeliest; 0 drops none."""
    repeat_penalty: float = 1.0
    """Divide the logits of recent tokens by this; 1 is off."""
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    penalty_last_n: int = 64
    """How many recent tokens the penalties see."""
    seed: int | None = None
    """Same seed, same logits, same text; None draws one."""


class Sampler:
    """Owns a llama_sampler chain. Freed by `close`, or when it is no longer referenced."""

    def __init__(self, model: Model, params: SamplingParams) -> None:
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
        if params.repeat_penalty != 1.0 or params.frequency_penalty or params.presence_penalty:
            self._add(llama.llama_sampler_init_penalties(
                model.n_vocab, params.penalty_last_n, params.repeat_penalty,
                params.frequency_penalty, params.presence_penalty,
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

    def sample(self, context: Context) -> int:
        """Draw the token after the last one decoded, and accept it."""
        if self._only_greedy:
            return int(self._argmax(self._llama.llama_get_logits_ith(context.pointer, -1), self._n_vocab))
        return int(self._llama.llama_sampler_sample(self.pointer, context.pointer, -1))
