"""Scheduler for continuous batching: chooses the requests that run and the tokens of each decode step."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from typing import Final

from edgechat.engine.context_sizing import HEADROOM_DIVISOR, ContextSizer
from edgechat.engine.failures import create_failure_event
from edgechat.engine.overflow import make_prompt_overflow_error, make_refused_overflow_error
from edgechat.engine.protocol import Event
from edgechat.engine.request import ActiveRequest
from edgechat.engine.sequence import OutputSequence
from edgechat.engine.sequence_drafts import RunningSequence, SequenceDrafts
from edgechat.errors import ComputeError, ContextOverflowError, EdgechatError, EngineError
from edgechat.prefix.cache import PrefixCache
from edgechat.runtime.context import Context, DecodeAborted, NoKvSlotError
from edgechat.speculation.batch_speculator import BatchSpeculator

# Maximum prefill tokens per step while other sequences are decoding: two tiles of ggml's matrix multiplication.
PREFILL_CHUNK_TOKENS: Final = 128
# Prompts that share fewer tokens than this are prefilled independently of each other.
_MIN_SHARED_TOKENS: Final = 64
_PROMPT_TOO_LONG_MESSAGE: Final = (
    "The prompt does not fit in the context. Request fewer replies at once, or set a larger context with --ctx."
)


class Scheduler:
    """Runs the active requests in steps.

    A step decodes one token and perhaps a draft for every running sequence in one batch, then prefills a part of one
    prompt. Each sequence chooses all its output tokens, so that a draft changes the speed but never the text. The
    scheduler admits requests in order of arrival. When the KV cells run out, it preempts the newest request, which
    later resumes after the tokens generated so far. All methods must be called on the decoding thread.
    """

    def __init__(
        self, context: Context, cache: PrefixCache, on_finished: Callable[[ActiveRequest, Event], None],
        sizer: ContextSizer | None = None, batch_speculator: BatchSpeculator | None = None,
    ) -> None:  # fmt: skip
        """Create an idle scheduler; `on_finished` is called once per request, with its final event.

        Without `sizer`, the context has a fixed length. Without `batch_speculator`, only a single sequence has drafts.
        """
        self._sizer = sizer or ContextSizer(context, cache, None, lambda event: None)
        self._context = context
        self._cache = cache
        self._on_finished = on_finished
        self._waiting: deque[ActiveRequest] = deque()
        self._running: list[ActiveRequest] = []
        self._drafts = SequenceDrafts(context, batch_speculator)

    @property
    def is_idle(self) -> bool:
        """True if no request is running or waiting."""
        return not self._running and not self._waiting

    @property
    def is_blocked(self) -> bool:
        """True if there is nothing to compute until a grammar is set."""
        return self._find_next() is None and not any(r.decoding_sequences or r.can_prefill for r in self._running)

    def fail(self, request: ActiveRequest, error: Exception) -> None:
        """End a running or waiting request with an error."""
        self._end_request(request, error)

    def fail_all(self, error: Exception) -> None:
        """End all running and waiting requests with an error."""
        for request in [*self._running, *self._waiting]:
            self._end_request(request, error)

    def add(self, request: ActiveRequest) -> None:
        """Append a request to the queue of waiting requests."""
        self._waiting.append(request)

    def cancel(self, ids: set[int]) -> None:
        """Cancel the running and waiting requests with the given ids."""
        for request in [r for r in (*self._running, *self._waiting) if r.params.id in ids]:
            self._end_request(request)

    def cancel_sequences(self, request_id: int, indexes: Collection[int]) -> None:
        """End single sequences of a running or preempted request; if none is left, the request ends in `step`."""
        for request in [r for r in (*self._running, *self._waiting) if r.params.id == request_id]:
            request.cancel_sequences(indexes)

    def end_thinking(self, request_id: int) -> bool:
        """End the reasoning of a running or waiting request; return False if there is no such request."""
        requests = [r for r in (*self._running, *self._waiting) if r.params.id == request_id]
        for request in requests:
            request.end_thinking()
        return bool(requests)

    def cancel_all(self) -> None:
        """Cancel all running and waiting requests."""
        self.cancel({r.params.id for r in (*self._running, *self._waiting)})

    def step(self) -> None:
        """Admit waiting requests, decode one batch for all running sequences, and prefill a part of one prompt."""
        try:
            self._sizer.check_memory(self._n_tokens, self._request_ids)
            self._admit()
            sequences = [(r, s) for r in self._running for s in r.decoding_sequences]
            if sequences:
                self._decode_sequences(sequences)
            self._prefill(PREFILL_CHUNK_TOKENS if sequences else self._context.n_batch)
        except DecodeAborted:
            return  # cancelled requests end in `cancel`; the other requests resume at their last token
        except (EdgechatError, MemoryError) as error:  # `_run_work` handles the errors of a single request
            for request in list(self._running):
                self._end_request(request, error)
        for request in [r for r in self._running if r.is_finished]:
            self._end_request(request)
        if not self._running:
            self._drafts.stop()  # frees finished sequences, and their indexes for the next replies

    def _end_request(self, request: ActiveRequest, error: Exception | None = None) -> None:
        if request in self._running:
            self._running.remove(request)
        else:
            self._waiting.remove(request)
        if isinstance(error, ComputeError):
            request.fail()
        else:
            request.cancel()
        event: Event = request.create_final_event()
        if error is not None:
            event = create_failure_event(request.params.id, error)
        self._on_finished(request, event)

    # Admission and preemption

    def _admit(self) -> None:
        while (request := self._find_next()) is not None:
            if not self._can_admit(request):
                early_request = next((r for r in self._running if r.is_awaiting_grammar), None)
                if early_request is None:
                    return
                self._running.remove(early_request)  # it can continue only when its grammar is set
                self._preempt(early_request)
                continue
            self._waiting.remove(request)
            self._running.append(request)
            self._run_work(request, lambda r=request: self._start(r))  # type: ignore[misc]

    def _find_next(self) -> ActiveRequest | None:
        """Return the waiting request to admit next; None if all wait for their grammars.

        A request whose grammar is not set yet is admitted only if no other request can run: its prefill uses the time.
        """
        next_request = next((r for r in self._waiting if not r.is_awaiting_grammar), None)
        if next_request is None and not self._running:
            next_request = next((r for r in self._waiting if r.can_start_early), None)
        return next_request

    def _preempt(self, request: ActiveRequest) -> None:
        self._drafts.stop()  # the sequences get other numbers, and each gets a token when it resumes
        request.preempt()
        self._waiting.appendleft(request)

    def _start(self, request: ActiveRequest) -> None:
        """Start a request. If it is the only one, grow the context for its prompt, or raise ContextOverflowError."""
        context, n_tokens = self._context, request.n_tokens
        if not context.is_open:
            self._cache.drop_lost_sequences()
            context.reopen()
        n_needed = n_tokens + n_tokens // HEADROOM_DIVISOR
        if len(self._running) == 1 and n_needed > context.n_ctx:
            self._grow(min(n_needed, context.max_n_ctx), [request], is_required=True)
            if n_tokens >= context.n_ctx:
                raise self._make_overflow_error(n_tokens)
        request.start()

    @property
    def _n_tokens(self) -> int:
        """Number of KV cells that the running and the preempted requests need."""
        return sum(r.n_tokens for r in (*self._running, *(r for r in self._waiting if r.sequences)))

    @property
    def _request_ids(self) -> list[int]:
        return [r.params.id for r in (*self._running, *self._waiting)]

    def _grow(self, n_tokens: int, requests: list[ActiveRequest], *, is_required: bool = False) -> bool:
        """Grow the context for `requests`; return whether it has grown. Raises EngineError if its content was lost."""
        return self._sizer.grow(n_tokens, [r.params.id for r in requests], self._request_ids, is_required=is_required)

    def _make_overflow_error(self, n_tokens: int) -> ContextOverflowError:
        """Return the error for a prompt of `n_tokens`; if the context could not grow, include the free memory.

        A longer context from --ctx would need the same memory.
        """
        refusal, context = self._sizer.refusal, self._context
        if refusal is not None:
            return make_refused_overflow_error(n_tokens, refusal)
        return make_prompt_overflow_error(n_tokens, context.n_ctx, context.model.n_ctx_train)

    def _can_admit(self, request: ActiveRequest) -> bool:
        if not self._running:
            return True
        requests = (request, *self._running)
        if any(r.params.bypass_cache for r in requests):
            return False  # a request that bypasses the cache must run alone
        n_seqs = sum(r.params.n_sequences for r in requests)
        n_tokens = sum(r.n_tokens for r in requests)
        n_needed = n_tokens + self._context.n_ctx // HEADROOM_DIVISOR
        return n_seqs <= self._context.n_seqs and (n_needed <= self._context.n_ctx or self._grow(n_needed, [request]))

    def _free_cells(self) -> bool:
        """Free KV cells: evict an idle sequence from the prefix cache, or grow the context, or preempt a request.

        Shared sliding windows are copied before. Idle sequences that are saved in full are evicted first, the others
        only if the context cannot grow. The newest request is preempted. Returns False if no cells can be freed and
        only one request is running.
        """
        n_needed = self._context.n_ctx + 1
        if self._separate_windows():
            return True
        if self._cache.evict_saved_lru() or self._grow(n_needed, self._running) or self._cache.evict_lru():
            return True
        if len(self._running) == 1:
            return self._grow(n_needed, self._running, is_required=True)
        self._preempt(self._running.pop())
        return True

    def _separate_windows(self) -> bool:
        """Copy shared cells of sliding windows; return whether this can have freed cells. Raises EngineError."""
        try:
            return self._context.separate_windows()
        except EngineError:
            self._cache.drop_lost_sequences()
            raise

    # Steps

    def _decode_sequences(self, sequences: list[RunningSequence]) -> None:
        """Decode the next token and the draft of each sequence in one batch, then verify the drafts."""
        context = self._context
        step = self._drafts.choose(sequences)
        stopwatch = context.start_stopwatch()
        decoded_sequences, drafts = self._decode_with_drafts(sequences, step.drafts)
        context.synchronize()
        timing = stopwatch.stop()
        if len(decoded_sequences) == 1 and not drafts and context.uses_all_threads:
            [(request, sequence)] = decoded_sequences
            request.speeds.record_step(len(context.tokens(sequence.seq)) - 1, timing)
        outputs: dict[int, list[int]] = {}
        first_indexes: dict[int, int] = {}
        index = 0
        for _, sequence in _sort_by_draft(decoded_sequences, drafts):
            first_indexes[sequence.seq] = index
            index += 1 + len(drafts.get(sequence.seq, []))
        for request, sequence in decoded_sequences:
            request.record_timing(timing)
            draft = drafts.get(sequence.seq, [])

            def verify(r: ActiveRequest = request, s: OutputSequence = sequence, d: list[int] = draft) -> None:
                outputs[s.seq] = self._verify(s, d, first_indexes[s.seq])
                if s.finish_reason is not None:
                    r.release_sequence(s)

            self._run_work(request, verify)
        if len(decoded_sequences) == len(sequences):
            self._drafts.record(decoded_sequences, step, drafts, outputs, timing)
        else:
            self._drafts.stop()

    def _decode_with_drafts(
        self, sequences: list[RunningSequence], drafts: dict[int, list[int]]
    ) -> tuple[list[RunningSequence], dict[int, list[int]]]:
        """Decode the next token and the draft of each sequence, or only the tokens if the drafts do not fit.

        Returns the sequences and drafts that were decoded. A sequence can end, and a request can be preempted, because
        no cell can be freed for the next token.
        """
        context = self._context
        if drafts:
            try:
                ordered = _sort_by_draft(sequences, drafts)
                context.decode_chains({s.seq: [s.next_token, *drafts.get(s.seq, [])] for _, s in ordered})
            except NoKvSlotError:
                pass  # a draft does not justify an eviction or a preemption
            else:
                return sequences, drafts
        while sequences:
            try:
                context.decode_each({s.seq: s.next_token for _, s in sequences})
            except NoKvSlotError:  # noqa: PERF203  (raised only when the context is full)
                if not self._free_cells():
                    for request, sequence in sequences:
                        request.finish_sequence(sequence, "length")
                sequences = [(r, s) for r, s in sequences if s in r.decoding_sequences]
            else:
                break
        return sequences, {}

    def _verify(self, sequence: OutputSequence, draft: list[int], index: int) -> list[int]:
        """Sample and accept tokens until one differs from the draft or ends the sequence; roll back rejected tokens.

        The logits of the sequence start at `index` of the last batch. Returns the accepted tokens; all but the last one
        are the beginning of the draft.
        """
        tokens: list[int] = []
        for i in range(len(draft) + 1):
            tokens.append(sequence.sample(index + i))
            if not sequence.accept(tokens[-1]) or i == len(draft) or tokens[-1] != draft[i]:
                break
        self._context.rollback(sequence.seq, len(draft) - len(tokens) + 1)
        return tokens

    def _run_work(self, request: ActiveRequest, work: Callable[[], object]) -> None:
        """Run `work` for one request, so that an error in `work` ends only that request."""
        if request not in self._running:
            return
        try:
            work()
        except (EdgechatError, MemoryError) as error:
            self._end_request(request, error)

    def _prefill(self, max_tokens: int) -> None:
        """Prefill a part of the prompt that has waited longest for a prefill step."""
        while prefilling_requests := [r for r in self._running if r.is_prefilling]:
            ready_requests = [
                r for r in prefilling_requests
                if r.can_prefill and not any(_should_wait_for(r, other) for other in prefilling_requests)
            ]  # fmt: skip
            if not ready_requests:
                return  # all of them wait for their grammars
            request = min(ready_requests, key=lambda r: r.last_prefill_at)
            try:
                self._run_work(request, lambda r=request: r.prefill(max_tokens))  # type: ignore[misc]
            except NoKvSlotError:
                if not self._free_cells():
                    is_refused = self._sizer.refusal is not None
                    error = self._make_overflow_error(request.n_tokens) if is_refused else None
                    self._end_request(request, error or EngineError(_PROMPT_TOO_LONG_MESSAGE))
            else:
                return


def _sort_by_draft(sequences: list[RunningSequence], drafts: dict[int, list[int]]) -> list[RunningSequence]:
    """Return the sequences in the order in which they are decoded: by the length of their drafts."""
    return sorted(sequences, key=lambda item: len(drafts.get(item[1].seq, [])))


def _should_wait_for(request: ActiveRequest, other_request: ActiveRequest) -> bool:
    """Return whether `request` should wait, because `other_request` is already prefilling half of the same prompt."""
    if request.last_prefill_at or not other_request.last_prefill_at or not other_request.can_prefill:
        return False
    if request.params.prompt_logprobs or other_request.params.prompt_logprobs:
        return False  # a request for the logprobs of its prompt computes the whole prompt, and does not share it
    prompt, other_prompt = request.prompt, other_request.prompt
    n_shared_tokens = max(_MIN_SHARED_TOKENS, len(prompt) // 2)
    return len(prompt) >= n_shared_tokens and prompt[:n_shared_tokens] == other_prompt[:n_shared_tokens]
