"""One active request: its prefill, its output sequences, and its statistics."""

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

SendProgress = Callable[[PrefillProgressed | TokensGenerated | SequenceFinished], None]


class PendingPrefill:
    """Tokens to prefill before an output sequence can start, or resume after a preemption."""

    def __init__(self, tokens: list[int], output: OutputSequence | None = None) -> None:
        """`output` is the sequence to resume; None if the tokens are the prompt of a new request."""
        self.tokens = tokens
        self.output = output
        self.seq: int | None = None
        """Sequence of the context; None until the first part is computed."""


class ActiveRequest:
    """A Generate request with one or more output sequences. The scheduler decides when the request is computed.

    When a sequence is released, the prefix cache receives exactly the tokens that were decoded.
    """

    def __init__(
        self,
        context: Context,
        cache: PrefixCache,
        params: Generate,
        prompt: list[int],
        send: SendProgress,
        arrived_at: float,
        speculator: Speculator | None = None,
    ) -> None:
        """Validate the request. `arrived_at` is its monotonic arrival time; without `speculator`, nothing is drafted.

        Raises EngineError for an empty prompt or too many sequences, ContextOverflowError if the prompt leaves no room
        for a reply, and GrammarError if the grammar cannot be enforced.
        """
        if not prompt:
            raise EngineError("The prompt is empty. Send at least one token.")
        if len(prompt) >= context.n_ctx:
            raise ContextOverflowError(
                f"The prompt has {len(prompt)} tokens, but the context holds {context.n_ctx}. "
                "Shorten the prompt, or set a larger context with --ctx."
            )
        if not 1 <= params.n_sequences <= context.n_seqs:
            raise EngineError(
                f"Cannot generate {params.n_sequences} replies at once: this context allows 1 to {context.n_seqs}."
            )
        self.params = params
        self.prompt = prompt
        self.sequences: list[OutputSequence] = []
        self.decoding: list[OutputSequence] = []
        """The sequences whose `next_token` the next step decodes."""
        self.last_prefill_at = 0.0
        """Monotonic time of the last prefill step; 0 before the first one."""
        self.speculator = speculator if params.n_sequences == 1 else None
        self._context = context
        self._cache = cache
        self._send = send
        self._arrived_at = arrived_at
        self._pending: list[PendingPrefill] = []
        self._cached_prefix = CachedPrefix(seq=0)
        self._prefill_s = 0.0
        self._context_tokens = 0
        self._grammar: Grammar | None = None
        if params.grammar:
            from edgechat.runtime.grammar import compile_grammar

            self._grammar = compile_grammar(context.model, params.grammar, params.visible_control_tokens)

    @property
    def n_tokens(self) -> int:
        """Number of KV cells that the request needs; its sequences share the cells of the prompt."""
        return len(self.prompt) + sum(s.n_tokens for s in self.sequences)

    @property
    def is_prefilling(self) -> bool:
        """True while tokens wait for prefill."""
        return bool(self._pending)

    @property
    def is_finished(self) -> bool:
        """True when all sequences have ended."""
        return not self._pending and not self.decoding

    @property
    def output_tokens(self) -> list[list[int]]:
        """Generated tokens of each sequence."""
        return [s.tokens for s in self.sequences]

    def start(self) -> None:
        """Queue the prefill of the prompt or, after `preempt`, of each unfinished sequence."""
        unfinished = [s for s in self.sequences if s.finish_reason is None]
        self._pending = [PendingPrefill([*self.prompt, *s.tokens], s) for s in unfinished]
        if not self.sequences:
            self._pending = [PendingPrefill(self.prompt)]

    def preempt(self) -> None:
        """Return all context sequences to the cache, which may evict them. `start` resumes the request."""
        for seq in [s.seq for s in self.decoding] + [p.seq for p in self._pending if p.seq is not None]:
            self._return_to_cache(seq)
        self._pending, self.decoding = [], []

    def cancel(self) -> None:
        """End all unfinished sequences as cancelled."""
        self.preempt()
        for sequence in self.sequences:
            sequence.finish("cancelled")

    def _return_to_cache(self, seq: int) -> None:
        if not self._context_tokens or (self.sequences and seq == self.sequences[0].seq):
            self._context_tokens = len(self._context.tokens(seq))
        self._context.commit_rollback(seq)
        if self.params.ephemeral:
            self._cache.drop(seq)
        else:
            self._cache.commit(seq)

    # Prefill

    def prefill(self, max_tokens: int) -> None:
        """Decode up to `max_tokens` of the first pending prefill; after its last part, sample the next token.

        Raises NoKvSlotError, after which the call may be repeated, DecodeAborted and EngineError.
        """
        pending = self._pending[0]
        context, cache, tokens = self._context, self._cache, pending.tokens
        checkpoints = [] if context.can_truncate else [t for t in self.params.turn_starts if 0 < t < len(tokens)]
        self.last_prefill_at = started_at = time.monotonic()
        if pending.seq is None:
            pending.seq = self._acquire_sequence(pending)
            if len(context.tokens(pending.seq)) in checkpoints:
                cache.checkpoint(pending.seq)
            started_at = time.monotonic()
        seq = pending.seq
        start = len(context.tokens(seq))
        end = min([len(tokens), start + max_tokens, *(t for t in checkpoints if t > start)])
        context.decode(tokens[start:end], seq)
        context.synchronize()
        elapsed_s = time.monotonic() - started_at
        self._prefill_s += elapsed_s
        cache.throughput.prefill.record(end - start, elapsed_s)
        if end in checkpoints:
            cache.checkpoint(seq)
        if pending.output is None:
            self._send(PrefillProgressed(id=self.params.id, done_tokens=end, total_tokens=len(tokens)))
        if end == len(tokens):
            self._start_decoding(pending, seq)

    def _acquire_sequence(self, pending: PendingPrefill) -> int:
        params = self.params
        cached = self._cache.acquire(
            pending.tokens, params.conversation, bypass_cache=params.bypass_cache, ephemeral=params.ephemeral
        )
        if pending.output is None:
            self._cached_prefix = cached
        return cached.seq

    def _start_decoding(self, pending: PendingPrefill, seq: int) -> None:
        """Resume the sequence of `pending`, or create all sequences of the request; sample one token for each."""
        if pending.output is not None:
            pending.output.seq = seq
            ready = [pending.output]
        else:
            seqs = [seq, *self._cache.fork(seq, self.params.n_sequences - 1)]
            ready = self.sequences = self._new_sequences(seqs)
        if not self.params.ephemeral:
            self._cache.publish(seq)
        self._pending.remove(pending)
        self.decoding += ready
        for sequence in ready:
            if self.params.max_tokens == 0:
                self.finish_sequence(sequence, "length")
            else:
                self.accept(sequence, sequence.sample(-1))

    def _new_sequences(self, seqs: list[int]) -> list[OutputSequence]:
        """Create an output sequence for each of `seqs`. On an error, release all of `seqs` but the first."""
        try:
            return [
                OutputSequence(
                    self._context, self.params, i, seq, self.prompt, self._send,
                    self._grammar.copy() if self._grammar is not None else None,
                )
                for i, seq in enumerate(seqs)
            ]  # fmt: skip
        except (EdgechatError, MemoryError):
            for seq in seqs[1:]:
                self._cache.drop(seq)
            raise

    # Output sequences

    def accept(self, sequence: OutputSequence, token: int) -> None:
        """Append a sampled token to a sequence; release the sequence if it ends with that token."""
        if not sequence.accept(token):
            self.release_sequence(sequence)

    def finish_sequence(self, sequence: OutputSequence, reason: FinishReason) -> None:
        """End one sequence and release it."""
        sequence.finish(reason)
        self.release_sequence(sequence)

    def release_sequence(self, sequence: OutputSequence) -> None:
        """Return the context sequence of an ended output sequence to the cache."""
        if sequence in self.decoding:
            self.decoding.remove(sequence)
            self._return_to_cache(sequence.seq)

    # Result

    def final_event(self) -> RequestFinished:
        """Create the final event of the request, with its statistics."""
        first = self.sequences[0] if self.sequences else None
        return RequestFinished(
            id=self.params.id,
            finish_reason=first.finish_reason or "cancelled" if first is not None else "cancelled",
            stats=self._stats(),
            context_tokens=self._context_tokens,
        )

    def _stats(self) -> GenerationStats:
        cached, sequences = self._cached_prefix, self.sequences
        drafts = self.speculator.stats if self.speculator is not None else SpeculationStats()
        n_cached = cached.live_tokens + cached.ram_tokens + cached.disk_tokens
        n_computed = len(self.prompt) - n_cached
        n_tokens = sum(s.n_tokens for s in sequences)
        first_at = min((s.first_token_at for s in sequences if s.n_tokens), default=0.0)
        decode_s = max((s.last_token_at for s in sequences), default=0.0) - first_at
        return GenerationStats(
            prompt_tokens=len(self.prompt),
            cached_tokens=n_cached,
            cached_ram_tokens=cached.ram_tokens,
            cached_disk_tokens=cached.disk_tokens,
            completion_tokens=n_tokens,
            ttft_s=max(0.0, first_at - self._arrived_at),
            prefill_tps=n_computed / self._prefill_s if self._prefill_s > 0 else 0.0,
            decode_tps=(n_tokens - len(sequences)) / decode_s if decode_s > 0 else 0.0,
            n_drafts=drafts.n_drafts,
            n_drafted=drafts.n_drafted,
            n_accepted=drafts.n_accepted,
            mean_acceptance_length=drafts.mean_acceptance_length,
            speculation_gain=drafts.gain,
        )
