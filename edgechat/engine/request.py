"""One request in work: what of it is computed, which answers grow, and what is said of it.

It computes when `Batching` says so, since several may be in work at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from edgechat.engine.protocol import (
    FinishReason,
    Generate,
    GenerationStats,
    PrefillProgressed,
    RequestFinished,
    SequenceFinished,
    TokensGenerated,
)
from edgechat.engine.sequence import OutputSequence
from edgechat.errors import ContextOverflowError, EdgechatError, EngineError
from edgechat.prefix.cache import CachedPrefix, PrefixCache
from edgechat.runtime.context import Context
from edgechat.speculation.speculator import SpeculationStats, Speculator

if TYPE_CHECKING:
    from edgechat.runtime.grammar import Grammar

Send = Callable[[PrefillProgressed | TokensGenerated | SequenceFinished], None]


class PendingPrefill:
    """Tokens that a sequence is to hold, for an answer to begin or to go on after them."""

    def __init__(self, tokens: list[int], sequence: OutputSequence | None = None) -> None:
        self.tokens = tokens
        self.sample = sequence
        self.seq: int | None = None


class ActiveRequest:
    """One answer, or several to the same prompt. Leaves in the cache exactly what was decoded."""

    def __init__(
        self,
        context: Context,
        cache: PrefixCache,
        params: Generate,
        prompt: list[int],
        send: Send,
        arrived_s: float,
        speculator: Speculator | None = None,
    ) -> None:
        """`arrived_s` is the monotonic time at which the request came in. Without a speculator nothing is drafted.

        Raises ContextOverflowError if the prompt leaves no room for an answer, GrammarError for what cannot be enforced.
        """
        if not prompt:
            raise EngineError("the prompt is empty: there is nothing to continue")
        if len(prompt) >= context.n_ctx:
            raise ContextOverflowError(
                f"the prompt has {len(prompt)} tokens, but the context holds {context.n_ctx}: "
                "shorten it, or ask for a larger context with --ctx"
            )
        if not 1 <= params.n_sequences <= context.n_seqs:
            raise EngineError(f"{params.n_sequences} answers at once were asked for; this context has {context.n_seqs}")
        self.request = params
        self.prompt = prompt
        self.sequences: list[OutputSequence] = []
        self.decoding: list[OutputSequence] = []
        """Answers of which the next token is drawn and waits to be decoded."""
        self.last_prefill_at = 0.0
        """When it had its last turn to compute; 0 if it had none."""
        self.speculator = speculator if params.n_sequences == 1 else None
        self._context = context
        self._cache = cache
        self._send = send
        self._arrived_s = arrived_s
        self._strands: list[PendingPrefill] = []
        self._cached = CachedPrefix(seq=0)
        self._prefill_s = 0.0
        self._n_held = 0
        self._grammar: Grammar | None = None
        if params.grammar:
            from edgechat.runtime.grammar import compile_grammar

            self._grammar = compile_grammar(context.model, params.grammar, params.visible_control_tokens)

    @property
    def n_tokens(self) -> int:
        """Cells that it takes when all so far is computed; answers share those of the prompt."""
        return len(self.prompt) + sum(s.n_tokens for s in self.sequences)

    @property
    def is_prefilling(self) -> bool:
        """True while there is a prompt, or a part of one, to compute."""
        return bool(self._strands)

    @property
    def is_finished(self) -> bool:
        """True when nothing is left to do."""
        return not self._strands and not self.decoding

    @property
    def output_tokens(self) -> list[list[int]]:
        """The tokens of the answers so far."""
        return [sample.tokens for sample in self.sequences]

    def start(self) -> None:
        """Be in work, for the first time or again after `pause`."""
        unfinished = [s for s in self.sequences if s.finish_reason is None]
        self._strands = [PendingPrefill([*self.prompt, *s.tokens], s) for s in unfinished]
        if not self.sequences:
            self._strands = [PendingPrefill(self.prompt)]

    def preempt(self) -> None:
        """Give all sequences back; what they hold can be given up then, and is computed again if it was."""
        for seq in self._seqs():
            self._give_back(seq)
        self._strands, self.decoding = [], []

    def cancel(self, reason: FinishReason) -> None:
        """Stop with what there is."""
        self.preempt()
        for sample in self.sequences:
            sample.finish(reason)

    def _seqs(self) -> list[int]:
        return [s.seq for s in self.decoding] + [s.seq for s in self._strands if s.seq is not None]

    def _give_back(self, seq: int) -> None:
        if not self._n_held or (self.sequences and seq == self.sequences[0].seq):
            self._n_held = len(self._context.tokens(seq))
        self._context.commit_rollback(seq)
        if self.request.ephemeral:
            self._cache.drop(seq)
        else:
            self._cache.commit(seq)

    # The prompt

    def prefill(self, max_tokens: int) -> None:
        """Compute a part of what is to be computed; draw the first token after it if that was the last part.

        Raises NoKvSlotError, DecodeAborted and EngineError; after NoKvSlotError it may be called again.
        """
        strand = self._strands[0]
        context, cache, tokens = self._context, self._cache, strand.tokens
        stops = [] if context.can_truncate else [t for t in self.request.turn_starts if 0 < t < len(tokens)]
        self.last_prefill_at = started = time.monotonic()
        if strand.seq is None:
            strand.seq = self._prepare(strand)
            if len(context.tokens(strand.seq)) in stops:
                cache.checkpoint(strand.seq)
            started = time.monotonic()
        seq = strand.seq
        done = len(context.tokens(seq))
        end = min([len(tokens), done + max_tokens, *(t for t in stops if t > done)])
        context.decode(tokens[done:end], seq)
        context.synchronize()
        elapsed_s = time.monotonic() - started
        self._prefill_s += elapsed_s
        cache.throughput.prefill.record(end - done, elapsed_s)
        if end in stops:
            cache.checkpoint(seq)
        if strand.sample is None:
            self._send(PrefillProgressed(id=self.request.id, done_tokens=end, total_tokens=len(tokens)))
        if end == len(tokens):
            self._start_growing(strand, seq)

    def _prepare(self, strand: PendingPrefill) -> int:
        request = self.request
        cached = self._cache.acquire(
            strand.tokens, request.conversation, bypass_cache=request.bypass_cache, ephemeral=request.ephemeral
        )
        if strand.sample is None:
            self._cached = cached
        return cached.seq

    def _start_growing(self, strand: PendingPrefill, seq: int) -> None:
        """An answer begins or goes on; several begin with the same logits."""
        if strand.sample is not None:
            strand.sample.seq = seq
            new = [strand.sample]
        else:
            seqs = [seq, *self._cache.fork(seq, self.request.n_sequences - 1)]
            new = self.sequences = self._new_samples(seqs)
        if not self.request.ephemeral:
            self._cache.publish(seq)
        self._strands.remove(strand)
        self.decoding += new
        for sample in new:
            if self.request.max_tokens == 0:
                self.finish_sequence(sample, "length")
            else:
                self.accept(sample, sample.sample(-1))

    def _new_samples(self, seqs: list[int]) -> list[OutputSequence]:
        """An answer for each sequence; if that fails, all but the first are given back."""
        try:
            return [
                OutputSequence(
                    self._context, self.request, i, seq, self.prompt, self._send,
                    self._grammar.copy() if self._grammar is not None else None,
                )
                for i, seq in enumerate(seqs)
            ]  # fmt: skip
        except (EdgechatError, MemoryError):
            for seq in seqs[1:]:
                self._cache.drop(seq)
            raise

    # The answers

    def accept(self, sample: OutputSequence, token: int) -> None:
        """An answer goes on with a token, or ends with it."""
        if not sample.accept(token):
            self.release_sequence(sample)

    def finish_sequence(self, sample: OutputSequence, reason: FinishReason) -> None:
        """End one answer."""
        sample.finish(reason)
        self.release_sequence(sample)

    def release_sequence(self, sample: OutputSequence) -> None:
        """Give back what an answer that ended has."""
        if sample in self.decoding:
            self.decoding.remove(sample)
            self._give_back(sample.seq)

    # What is said at the end

    def final_event(self) -> RequestFinished:
        """The last event."""
        first = self.sequences[0] if self.sequences else None
        return RequestFinished(
            id=self.request.id,
            finish_reason=first.finish_reason or "cancelled" if first is not None else "cancelled",
            stats=self._stats(),
            context_tokens=self._n_held,
        )

    def _stats(self) -> GenerationStats:
        cached, samples = self._cached, self.sequences
        drafts = self.speculator.stats if self.speculator is not None else SpeculationStats()
        n_cached = cached.live_tokens + cached.ram_tokens + cached.disk_tokens
        computed = len(self.prompt) - n_cached
        n_tokens = sum(s.n_tokens for s in samples)
        first_s = min((s.first_token_s for s in samples if s.n_tokens), default=0.0)
        decode_s = max((s.last_token_s for s in samples), default=0.0) - first_s
        return GenerationStats(
            prompt_tokens=len(self.prompt),
            cached_tokens=n_cached,
            cached_ram_tokens=cached.ram_tokens,
            cached_disk_tokens=cached.disk_tokens,
            completion_tokens=n_tokens,
            ttft_s=max(0.0, first_s - self._arrived_s),
            prefill_tps=computed / self._prefill_s if self._prefill_s > 0 else 0.0,
            decode_tps=(n_tokens - len(samples)) / decode_s if decode_s > 0 else 0.0,
            n_drafts=drafts.n_drafts,
            n_drafted=drafts.n_drafted,
            n_accepted=drafts.n_accepted,
            mean_acceptance_length=drafts.mean_acceptance_length,
            speculation_gain=drafts.gain,
        )
