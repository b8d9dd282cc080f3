"""Execution of one Generate request: its prefill, its output sequences, and its statistics."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Final

import msgspec

from edgechat.engine.generation import DraftCounts, GenerationStats, TokenLogprobs
from edgechat.engine.overflow import make_prompt_overflow_error
from edgechat.engine.protocol import (
    FinishReason,
    Generate,
    PrefillProgressed,
    PromptLogprobs,
    RequestFinished,
    SequenceFinished,
    TokensGenerated,
)
from edgechat.engine.reply_speeds import ReplySpeeds
from edgechat.engine.sequence import OutputSequence, compute_logprobs
from edgechat.errors import EdgechatError, EngineError
from edgechat.prefix.cache import CachedPrefix, PrefixCache
from edgechat.runtime.context import Context
from edgechat.speculation.drafter import SOURCE_NAMES
from edgechat.speculation.speculator import SpeculationStats, Speculator

if TYPE_CHECKING:
    from edgechat.hardware.contention import Timing
    from edgechat.runtime.grammar import Grammar
    from edgechat.runtime.triggered_grammar import TriggeredGrammar

# Maximum fraction of the total step time that disturbed steps may take; above it, the speeds of a request are
# unreliable.
_MAX_DISTURBED_FRACTION: Final = 0.2
# A shorter rest of a prompt waits for the grammar of its request, because a separate step for the last token takes
# time, too. Most grammars are compiled within the wait; the first one of an engine takes up to a second.
# Fewer tokens are processed more slowly, so their speed is not that of a prefill.
_MIN_MEASURED_TOKENS: Final = 16
_MIN_TOKENS_WHILE_WAITING: Final = 128
_MIN_TOKENS_AFTER_WAIT: Final = 16
_GRAMMAR_WAIT_S: Final = 0.1

SendProgress = Callable[[PrefillProgressed | PromptLogprobs | TokensGenerated | SequenceFinished], None]


class PendingPrefill:
    """Tokens to prefill before an output sequence can start, or resume after a preemption."""

    def __init__(self, tokens: list[int], output: OutputSequence | None = None) -> None:
        """Store `tokens`; `output` is the sequence to resume, or None if `tokens` is the prompt of a new request."""
        self.tokens = tokens
        self.output = output
        self.seq: int | None = None
        """Id of the sequence in the context; None before the first prefill step."""


class ActiveRequest:
    """A Generate request with one or more output sequences. The scheduler decides when each of its steps runs.

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
        make_speculator: Callable[[], Speculator] | None = None,
    ) -> None:
        """Validate the request, which arrived at the monotonic time `arrived_at`.

        `make_speculator` is called for each output sequence; None disables drafts.

        Raises EngineError for an empty prompt or too many sequences, and ContextOverflowError if the prompt leaves no
        space for a reply.
        """
        if not prompt:
            raise EngineError("The prompt is empty. Send at least one token.")
        if len(prompt) >= context.max_n_ctx:
            raise make_prompt_overflow_error(len(prompt), context.max_n_ctx, context.model.n_ctx_train)
        if not 1 <= params.n_sequences <= context.n_seqs:
            raise EngineError(f"Cannot generate {params.n_sequences} replies at once. Request 1 to {context.n_seqs}.")
        if params.resumed and len(params.resumed) != params.n_sequences:
            raise EngineError(f"Cannot resume {len(params.resumed)} of {params.n_sequences} replies. Resume all.")
        self.params = params
        self.prompt = prompt
        self.sequences: list[OutputSequence] = []
        self.decoding_sequences: list[OutputSequence] = []
        """Output sequences whose `next_token` is decoded in the next step."""
        self.last_prefill_at = 0.0
        """Monotonic time of the last prefill step; 0 before the first step."""
        self.grammar: Grammar | TriggeredGrammar | None = None
        """Compiled form of one of `params.grammars`, which must be set before the prefill ends."""
        self._is_awaiting_grammar = False
        self._held_progress: int | None = None
        """Number of prompt tokens of the progress event that is sent when the grammar is set; None for no event."""
        self._make_speculator = make_speculator
        self._context = context
        self._cache = cache
        self._send = send
        self._arrived_at = arrived_at
        self._pending_prefills: list[PendingPrefill] = []
        self._cached_prefix = CachedPrefix(seq=0)
        self._n_scored_tokens = params.n_sent_prompt_logprobs
        """Number of prompt tokens whose logprobs were sent."""
        self._n_prefill_tokens = 0
        self._prefill_s = 0.0
        self.speeds = ReplySpeeds()
        self._measured_s = self._disturbed_s = 0.0
        """Total time of all steps, and of the steps that other programs or a pause slowed down."""
        self._context_tokens = 0
        self._is_thinking_ended = params.is_thinking_ended
        self._has_failed = False

    def record_timing(self, timing: Timing) -> None:
        """Record the time of a step of this request, and whether it was disturbed."""
        self._measured_s += timing.elapsed_s
        self._disturbed_s += timing.elapsed_s if timing.is_disturbed else 0.0

    @property
    def n_tokens(self) -> int:
        """Number of KV cells that the request needs; its sequences share the cells of the prompt."""
        return len(self.prompt) + sum(s.n_tokens for s in self.sequences)

    @property
    def _is_ephemeral(self) -> bool:
        return self.params.ephemeral or self.params.prompt_logprobs

    @property
    def is_prefilling(self) -> bool:
        """True while a prompt, or a sequence to resume, waits for prefill."""
        return bool(self._pending_prefills)

    @property
    def is_awaiting_grammar(self) -> bool:
        """True between `await_grammar` and `set_grammar`."""
        return self._is_awaiting_grammar

    @property
    def can_start_early(self) -> bool:
        """False if the request must not start before its grammar is set.

        Without the cache, its steps must not depend on the time that the grammar takes. The logprobs of the prompt
        would be events before a possible error of the grammar.
        """
        return not (self.params.bypass_cache or self.params.prompt_logprobs)

    @property
    def can_prefill(self) -> bool:
        """True if a prefill step has work to do: not if only the last tokens are left and the grammar is not set."""
        if not self._pending_prefills or not self._is_awaiting_grammar:
            return self.is_prefilling
        pending = self._pending_prefills[0]
        if pending.seq is None:
            return True
        n_left = len(pending.tokens) - len(self._context.tokens(pending.seq))
        has_waited = time.monotonic() - self._arrived_at > _GRAMMAR_WAIT_S
        return n_left >= (_MIN_TOKENS_AFTER_WAIT if has_waited else _MIN_TOKENS_WHILE_WAITING)

    @property
    def is_finished(self) -> bool:
        """True when all output sequences have ended."""
        return not self._pending_prefills and not self.decoding_sequences

    @property
    def output_tokens(self) -> list[list[int]]:
        """Generated tokens of each output sequence."""
        return [s.tokens for s in self.sequences]

    def start(self) -> None:
        """Queue the prefill of the prompt or, after `preempt`, of each unfinished sequence."""
        unfinished_sequences = [s for s in self.sequences if s.finish_reason is None]
        self._pending_prefills = [PendingPrefill([*self.prompt, *s.tokens], s) for s in unfinished_sequences]
        if not self.sequences:
            self._pending_prefills = [PendingPrefill(self.prompt)]

    def await_grammar(self) -> None:
        """Prefill only a part of the prompt until `set_grammar`.

        Progress events wait until then, because the client can still get an error as the first event.
        """
        self._is_awaiting_grammar = True

    def set_grammar(self, grammar: Grammar | TriggeredGrammar) -> None:
        """Set the grammar for which the request has waited, so that its prefill can end."""
        self.grammar = grammar
        self._is_awaiting_grammar = False
        if self._held_progress is not None:
            self._send_progress(self._held_progress)

    def preempt(self) -> None:
        """Return all sequences to the prefix cache, which may evict them; `start` resumes the request."""
        prefill_seqs = [p.seq for p in self._pending_prefills if p.seq is not None]
        for seq in [s.seq for s in self.decoding_sequences] + prefill_seqs:
            self._return_seq_to_cache(seq)
        self._pending_prefills, self.decoding_sequences = [], []

    def cancel(self) -> None:
        """End all unfinished sequences with the finish reason "cancelled"."""
        self.preempt()
        for sequence in self.sequences:
            sequence.finish("cancelled")

    def fail(self) -> None:
        """Send the tokens that were not sent yet, and drop all sequences: a failed computation may have damaged them.

        The sequences do not end, so that another engine process can resume the request.
        """
        self._has_failed = True
        self.preempt()
        for sequence in self.sequences:
            sequence.send_rest()

    def cancel_sequences(self, indexes: Collection[int]) -> None:
        """End the unfinished sequences with these indexes with the finish reason "cancelled"; the others continue."""
        for sequence in self.sequences:
            if sequence.index not in indexes or sequence.finish_reason is not None:
                continue
            for pending in [p for p in self._pending_prefills if p.output is sequence]:
                self._pending_prefills.remove(pending)
                if pending.seq is not None:
                    self._return_seq_to_cache(pending.seq)
            self.finish_sequence(sequence, "cancelled")

    def end_thinking(self) -> None:
        """End the reasoning in all output sequences, now and later. The request can also be waiting or preempted."""
        self._is_thinking_ended = True
        for sequence in self.sequences:
            sequence.end_thinking()

    def _return_seq_to_cache(self, seq: int) -> None:
        if not self._context_tokens or (self.sequences and seq == self.sequences[0].seq):
            self._context_tokens = len(self._context.tokens(seq))
        self._context.commit_rollback(seq)
        if self._is_ephemeral or self._has_failed:
            self._cache.drop(seq)
        else:
            self._cache.commit(seq)

    # Prefill

    def prefill(self, max_tokens: int) -> None:
        """Compute up to `max_tokens` tokens of the first pending prefill; when it is complete, sample the next token.

        Without the grammar for which the request waits, at least the last token stays pending.
        Raises DecodeAborted, EngineError and NoKvSlotError. After NoKvSlotError, the caller can free cells and retry.
        """
        pending = self._pending_prefills[0]
        context, cache, tokens = self._context, self._cache, pending.tokens
        checkpoints = [] if context.can_truncate else [t for t in self.params.turn_starts if 0 < t < len(tokens)]
        self.last_prefill_at = time.monotonic()
        if pending.seq is None:
            pending.seq = self._acquire_sequence(pending)
            if len(context.tokens(pending.seq)) in checkpoints:
                cache.checkpoint(pending.seq)
        if not self.can_prefill:
            return
        start = len(context.tokens(pending.seq))
        n_ready = len(tokens) - 1 if self._is_awaiting_grammar else len(tokens)
        end = min([n_ready, start + max_tokens, *(t for t in checkpoints if t > start)])
        end = self._compute(pending, pending.seq, start, end)
        if end in checkpoints:
            cache.checkpoint(pending.seq)
        if end == len(tokens):
            self._start_decoding(pending, pending.seq)
        elif self._is_awaiting_grammar and not self._is_ephemeral:
            cache.publish(pending.seq)  # other requests with the same prefix need not wait for the grammar

    def _compute(self, pending: PendingPrefill, seq: int, start: int, end: int) -> int:
        """Compute the tokens from `start` to `end` of a prefill, report them, and return the end.

        For the logprobs of a prompt, the end can be lower, because the number of logits is limited.
        """
        context, tokens = self._context, pending.tokens
        needs_all_logits = self.params.prompt_logprobs and pending.output is None
        end = min(end, start + context.max_outputs) if needs_all_logits else end
        stopwatch = context.start_stopwatch()
        context.decode(tokens[start:end], seq, all_logits=needs_all_logits)
        context.synchronize()
        timing = stopwatch.stop()
        self.record_timing(timing)
        if pending.output is None:
            self._n_prefill_tokens += end - start
            self._prefill_s += timing.elapsed_s
        if not needs_all_logits:
            self.speeds.record_prefill(start, end, timing)
        if end - start >= _MIN_MEASURED_TOKENS:
            speed = self._cache.throughput.prefill
            speed.record(end - start, timing.elapsed_s, is_disturbed=timing.is_disturbed)
        if needs_all_logits:
            self._send_prompt_logprobs(start, end)
        if pending.output is None:
            self._send_progress(end)
        return end

    def _acquire_sequence(self, pending: PendingPrefill) -> int:
        params = self.params
        cached_prefix = self._cache.acquire(
            pending.tokens, params.conversation, shared_prefix=params.shared_prefix,
            bypass_cache=params.bypass_cache or params.prompt_logprobs, ephemeral=self._is_ephemeral,
        )  # fmt: skip
        if pending.output is None:
            self._cached_prefix = cached_prefix
            self._send_progress(self._n_cached)
        return cached_prefix.seq

    @property
    def _n_cached(self) -> int:
        cached_prefix = self._cached_prefix
        return cached_prefix.live_tokens + cached_prefix.ram_tokens + cached_prefix.disk_tokens

    def _send_prompt_logprobs(self, start: int, end: int) -> None:
        """Send the logprobs of the prompt's tokens up to `end`, from the logits of the batch that began at `start`.

        A preempted request computes its prompt again, but does not send the same logprobs again.
        """
        context, prompt, logprobs = self._context, self.prompt, []
        for position in range(self._n_scored_tokens, min(end + 1, len(prompt))):
            if position == 0:
                piece = context.model.token_to_piece(prompt[0], special=True)
                logprobs.append(TokenLogprobs(token_bytes=piece, logprob=0.0, top_logprobs=[]))
            else:
                index = position - 1 - start
                logprobs.append(compute_logprobs(context, prompt[position], index, self.params.n_logprobs or 0))
        self._n_scored_tokens += len(logprobs)
        if logprobs:
            self._send(PromptLogprobs(id=self.params.id, logprobs=logprobs))

    def _send_progress(self, n_tokens: int) -> None:
        """Send the number of prompt tokens that are in the context."""
        if self._is_awaiting_grammar:
            self._held_progress = n_tokens
            return
        self._send(PrefillProgressed(
            id=self.params.id, done_tokens=n_tokens, total_tokens=len(self.prompt), cached_tokens=self._n_cached
        ))  # fmt: skip

    def _start_decoding(self, pending: PendingPrefill, seq: int) -> None:
        """Resume the output sequence of `pending`, or create all output sequences; sample a token for each sequence."""
        if pending.output is not None:
            pending.output.seq = seq
            sequences = [pending.output]
        else:
            seqs = [seq, *self._cache.fork(seq, self.params.n_sequences - 1)]
            sequences = self.sequences = self._create_sequences(seqs)
        if not self._is_ephemeral:
            self._cache.publish(seq)
        self._pending_prefills.remove(pending)
        self.decoding_sequences += sequences
        if pending.output is None:
            sequences = self._resume_sequences()
            if self._is_thinking_ended:  # after the resumed tokens, in which the reasoning had not ended yet
                self.end_thinking()
        for sequence in sequences:
            if self.params.max_tokens == 0:
                self.finish_sequence(sequence, "length")
            else:
                self.accept(sequence, sequence.sample(-1))

    def _resume_sequences(self) -> list[OutputSequence]:
        """Advance the new sequences by the tokens that another engine process has generated, and queue their prefill.

        Returns the sequences without such tokens, which sample their first token now. Raises GrammarError.
        """
        for sequence, reply in zip(self.sequences, self.params.resumed, strict=False):
            sequence.resume(reply)
            if sequence.finish_reason is not None:
                self.release_sequence(sequence)
            elif sequence.tokens:
                pending = PendingPrefill([*self.prompt, *sequence.tokens], sequence)
                pending.seq = sequence.seq
                self.decoding_sequences.remove(sequence)
                self._pending_prefills.append(pending)
        return list(self.decoding_sequences)

    def _create_sequences(self, seqs: list[int]) -> list[OutputSequence]:
        """Create an output sequence for each of `seqs`. On an error, drop all of `seqs` except the first."""
        try:
            grammar, self.grammar = self.grammar, None
            grammars = [grammar.copy() if grammar is not None else None for _ in seqs[1:]] + [grammar]
            return [
                OutputSequence(
                    self._context, self.params, i, seq, self.prompt, self._send, grammars[i], self._create_speculator()
                )
                for i, seq in enumerate(seqs)
            ]
        except (EdgechatError, MemoryError):
            for seq in seqs[1:]:
                self._cache.drop(seq)
            raise

    def _create_speculator(self) -> Speculator | None:
        return self._make_speculator() if self._make_speculator is not None else None

    # Output sequences

    def accept(self, sequence: OutputSequence, token: int) -> None:
        """Append a sampled token to an output sequence; release the sequence if that token ends it."""
        if not sequence.accept(token):
            self.release_sequence(sequence)

    def finish_sequence(self, sequence: OutputSequence, reason: FinishReason) -> None:
        """End an output sequence with `reason` and release it."""
        sequence.finish(reason)
        self.release_sequence(sequence)

    def release_sequence(self, sequence: OutputSequence) -> None:
        """Return the KV cells of an ended output sequence to the prefix cache."""
        if sequence in self.decoding_sequences:
            self.decoding_sequences.remove(sequence)
            self._return_seq_to_cache(sequence.seq)

    # Result

    def create_final_event(self) -> RequestFinished:
        """Create the final event of the request, with its statistics."""
        first_sequence = self.sequences[0] if self.sequences else None
        return RequestFinished(
            id=self.params.id,
            finish_reason=(first_sequence.finish_reason if first_sequence is not None else None) or "cancelled",
            stats=self._create_stats(),
            context_tokens=self._context_tokens,
            stop_string=first_sequence.stop_string if first_sequence is not None else "",
        )

    def _create_stats(self) -> GenerationStats:
        cached_prefix, sequences = self._cached_prefix, self.sequences
        draft_stats = SpeculationStats()
        for sequence in sequences:
            if sequence.speculator is not None:
                draft_stats.add(sequence.speculator.stats)
        n_tokens = sum(s.n_tokens for s in sequences)
        sampled = [s for s in sequences if s.first_token_at]
        first_token_at = min((s.first_token_at for s in sampled), default=0.0)
        decode_s = max((s.last_token_at for s in sampled), default=0.0) - first_token_at
        n_decoded = sum(s.n_tokens - s.n_resumed_tokens - 1 for s in sampled)
        return GenerationStats(
            prompt_tokens=len(self.prompt),
            cached_tokens=self._n_cached,
            cached_ram_tokens=cached_prefix.ram_tokens,
            cached_disk_tokens=cached_prefix.disk_tokens,
            completion_tokens=n_tokens,
            reasoning_tokens=sum(s.n_reasoning_tokens for s in sequences) or msgspec.UNSET,
            ttft_s=max(0.0, first_token_at - self._arrived_at),
            prefill_tps=self._n_prefill_tokens / self._prefill_s if self._prefill_s > 0 else 0.0,
            decode_tps=n_decoded / decode_s if decode_s > 0 else 0.0,
            n_drafts=draft_stats.n_drafts,
            n_drafted=draft_stats.n_drafted,
            n_accepted=draft_stats.n_accepted,
            mean_acceptance_length=draft_stats.mean_acceptance_length,
            speculation_gain=draft_stats.gain,
            drafts_by_source=_count_drafts_by_source(draft_stats) or msgspec.UNSET,
            is_disturbed=self._disturbed_s > _MAX_DISTURBED_FRACTION * self._measured_s or msgspec.UNSET,
        )


def _count_drafts_by_source(stats: SpeculationStats) -> dict[str, DraftCounts]:
    counts = zip(SOURCE_NAMES, stats.drafted_by_source, stats.accepted_by_source, strict=True)
    return {name: DraftCounts(n_drafted, n_accepted) for name, n_drafted, n_accepted in counts if n_drafted}


def create_cancelled_event(request_id: int) -> RequestFinished:
    """Create the final event of a Generate request that was cancelled before it was started."""
    stats = GenerationStats(
        prompt_tokens=0, cached_tokens=0, completion_tokens=0, ttft_s=0.0, prefill_tps=0.0, decode_tps=0.0
    )
    return RequestFinished(id=request_id, finish_reason="cancelled", stats=stats, context_tokens=0)
