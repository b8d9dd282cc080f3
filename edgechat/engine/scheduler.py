"""Scheduler for continuous batching: chooses the requests that run and the tokens of each decode step."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final

from edgechat.engine.protocol import Event, failure
from edgechat.engine.request import ActiveRequest
from edgechat.engine.sequence import OutputSequence
from edgechat.errors import EdgechatError, EngineError
from edgechat.prefix.cache import PrefixCache
from edgechat.runtime.context import Context, DecodeAborted, NoKvSlotError
from edgechat.speculation.speculator import Speculator

# Prefill tokens per step while other sequences wait for their next token: two tiles of ggml's matrix product.
PREFILL_CHUNK_TOKENS: Final = 128
# Prompts that share fewer tokens than this are prefilled independently of each other.
_MIN_SHARED_TOKENS: Final = 64
# Fraction of the context (1/16) that must stay free after a request is admitted, so that running sequences can grow for
# a while before one of them is preempted.
_HEADROOM_DIVISOR: Final = 16
_PROMPT_DOES_NOT_FIT: Final = (
    "The prompt does not fit in the context. Request fewer replies at once, or set a larger context with --ctx."
)


class Scheduler:
    """Runs the active requests in steps.

    A step decodes one token for every running sequence in one batch, then prefills a part of one prompt. Requests are
    admitted in order of arrival. When the KV cells run out, the newest request is preempted, and it resumes later from
    its prompt and the tokens generated so far. All methods must be called on the decoding thread.
    """

    def __init__(
        self, context: Context, cache: PrefixCache, on_finished: Callable[[ActiveRequest, Event], None]
    ) -> None:
        """`on_finished` is called once per request with its final event."""
        self._context = context
        self._cache = cache
        self._on_finished = on_finished
        self._waiting: deque[ActiveRequest] = deque()
        self._running: list[ActiveRequest] = []
        self._drafted_sequence: OutputSequence | None = None
        """Sequence whose tokens the drafters hold; the drafters hold one sequence at a time."""

    @property
    def is_idle(self) -> bool:
        """True if no request is running or waiting."""
        return not self._running and not self._waiting

    def add(self, request: ActiveRequest) -> None:
        """Append a request to the waiting queue."""
        self._waiting.append(request)

    def cancel(self, ids: set[int]) -> None:
        """Cancel the requests with these ids."""
        for request in [r for r in (*self._running, *self._waiting) if r.params.id in ids]:
            self._end(request)

    def cancel_all(self) -> None:
        """Cancel all running and waiting requests."""
        self.cancel({r.params.id for r in (*self._running, *self._waiting)})

    def step(self) -> None:
        """Admit waiting requests, decode one batch for all running sequences, and prefill a part of one prompt."""
        self._admit()
        try:
            decoding = [(r, s) for r in self._running for s in r.decoding]
            if len(decoding) == 1 and (speculator := decoding[0][0].speculator) is not None:
                self._speculative_step(*decoding[0], speculator)
            elif decoding:
                self._decode_sequences(decoding)
            self._prefill(PREFILL_CHUNK_TOKENS if decoding else self._context.n_batch)
        except DecodeAborted:
            return  # Cancelled requests end in `cancel`; the other requests resume at their last token.
        except (EdgechatError, MemoryError) as error:  # `_run_for` handles the errors of a single request
            for request in list(self._running):
                self._end(request, error)
        for request in [r for r in self._running if r.is_finished]:
            self._end(request)

    def _end(self, request: ActiveRequest, error: Exception | None = None) -> None:
        if request in self._running:
            self._running.remove(request)
        else:
            self._waiting.remove(request)
        request.cancel()
        event: Event = request.final_event()
        if error is not None:
            event = failure(request.params.id, error)
        self._on_finished(request, event)

    # Admission and preemption

    def _admit(self) -> None:
        while self._waiting and self._can_admit(self._waiting[0]):
            request = self._waiting.popleft()
            self._running.append(request)
            request.start()

    def _can_admit(self, new: ActiveRequest) -> bool:
        if not self._running:
            return True
        requests = (new, *self._running)
        if any(r.params.bypass_cache for r in requests):
            return False  # a request that bypasses the cache must run alone
        n_seqs = sum(r.params.n_sequences for r in requests)
        n_tokens = sum(r.n_tokens for r in requests)
        n_ctx = self._context.n_ctx
        return n_seqs <= self._context.n_seqs and n_tokens + n_ctx // _HEADROOM_DIVISOR <= n_ctx

    def _free_cells(self) -> bool:
        """Free KV cells: evict an unused cached sequence, else preempt the newest request.

        Return False if neither is possible because only one request is running.
        """
        if self._cache.evict_lru():
            return True
        if len(self._running) == 1:
            return False
        self._drafted_sequence = None
        newest = self._running.pop()
        newest.preempt()
        self._waiting.appendleft(newest)
        return True

    # Steps

    def _decode_sequences(self, decoding: list[tuple[ActiveRequest, OutputSequence]]) -> None:
        """Decode one token of each sequence in one batch, then sample each sequence's next token."""
        self._drafted_sequence = None
        context = self._context
        while decoding:
            try:
                context.decode_each({s.seq: s.next_token for _, s in decoding})
            except NoKvSlotError:  # noqa: PERF203  (raised only when the context is full)
                if not self._free_cells():
                    for request, sequence in decoding:
                        request.finish_sequence(sequence, "length")
                decoding = [(r, s) for r, s in decoding if s in r.decoding]
            else:
                break
        for i, (request, sequence) in enumerate(decoding):
            self._run_for(request, lambda r=request, s=sequence, i=i: r.accept(s, s.sample(i)))  # type: ignore[misc]

    def _run_for(self, request: ActiveRequest, work: Callable[[], object]) -> None:
        """Run work that concerns one request; an error ends only that request."""
        if request not in self._running:
            return
        try:
            work()
        except (EdgechatError, MemoryError) as error:
            self._end(request, error)

    def _prefill(self, max_tokens: int) -> None:
        """Prefill a part of the prompt that has waited longest for a prefill step."""
        while prefilling := [r for r in self._running if r.is_prefilling]:
            ready = [r for r in prefilling if not any(_should_wait_for(r, other) for other in prefilling)]
            request = min(ready, key=lambda r: r.last_prefill_at)
            try:
                self._run_for(request, lambda r=request: r.prefill(max_tokens))  # type: ignore[misc]
            except NoKvSlotError:
                if not self._free_cells():
                    self._end(request, EngineError(_PROMPT_DOES_NOT_FIT))
            else:
                return

    def _speculative_step(self, request: ActiveRequest, sequence: OutputSequence, speculator: Speculator) -> None:
        """Decode the next token and a draft in one batch, then verify the draft.

        The sampler runs at every position, and its tokens are the output: a draft changes the speed, never the text.
        """
        context = self._context
        if self._drafted_sequence is not sequence:
            speculator.start([*request.prompt, *sequence.tokens])
            self._drafted_sequence = sequence
        depth = len(context.tokens(sequence.seq))
        draft = sequence.allowed_prefix(speculator.propose(min(sequence.max_draft, context.max_rollback), depth))
        started_at = time.monotonic()
        try:
            draft = self._decode_with_draft(request, sequence, draft)
        except NoKvSlotError:
            request.finish_sequence(sequence, "length")
            return
        if sequence not in request.decoding:
            return
        context.synchronize()
        step_s = time.monotonic() - started_at
        self._run_for(request, lambda: self._verify(request, sequence, draft, speculator, depth, step_s))

    def _decode_with_draft(self, request: ActiveRequest, sequence: OutputSequence, draft: list[int]) -> list[int]:
        """Decode the next token with its draft, or alone if the draft does not fit; return the decoded draft.

        Raises NoKvSlotError if there is no cell for the next token.
        """
        if draft:
            try:
                self._context.decode_chain([sequence.next_token, *draft], sequence.seq)
            except NoKvSlotError:
                pass  # a draft is not worth an eviction or a preemption
            else:
                return draft
        while sequence in request.decoding:  # _free_cells may preempt this request
            try:
                self._context.decode_chain([sequence.next_token], sequence.seq)
            except NoKvSlotError:  # noqa: PERF203  (raised only when the context is full)
                if not self._free_cells():
                    raise
            else:
                break
        return []

    def _verify(
        self,
        request: ActiveRequest,
        sequence: OutputSequence,
        draft: list[int],
        speculator: Speculator,
        depth: int,
        step_s: float,
    ) -> None:
        """Accept sampled tokens until one differs from the draft or ends the sequence; roll back rejected tokens."""
        seq, n_accepted, continues, token = sequence.seq, 0, True, sequence.next_token
        for i in range(len(draft) + 1):
            token = sequence.sample(i)
            continues = sequence.accept(token)
            if not continues or i == len(draft) or token != draft[i]:
                break
            n_accepted += 1
        self._context.rollback(seq, len(draft) - n_accepted)
        speculator.record_step(len(draft), n_accepted, token, depth, step_s)
        speculator.append([*draft[:n_accepted], token])
        if not continues:
            request.release_sequence(sequence)


def _should_wait_for(new: ActiveRequest, other: ActiveRequest) -> bool:
    """Return True if `new` has not started and the prefill of `other` will compute most of its prompt."""
    if new.last_prefill_at or not other.last_prefill_at:
        return False
    min_shared = max(_MIN_SHARED_TOKENS, len(new.prompt) // 2)
    return len(new.prompt) >= min_shared and new.prompt[:min_shared] == other.prompt[:min_shared]
