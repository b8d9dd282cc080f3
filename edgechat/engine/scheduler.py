"""Requests that are answered at the same time: who is in work, who waits, and what the next decode step holds."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final

from edgechat.engine.protocol import Event, RequestFailed
from edgechat.engine.request import ActiveRequest
from edgechat.engine.sequence import OutputSequence
from edgechat.errors import EdgechatError, EngineError
from edgechat.prefix.cache import PrefixCache
from edgechat.runtime.context import Context, DecodeAborted, NoKvSlotError
from edgechat.speculation.speculator import Speculator

# Of a prompt at a time, while others wait for their next token: two of ggml's tiles.
FAIR_TOKENS: Final = 128
# Two prompts that share less are computed side by side.
_WORTH_TOKENS: Final = 64
# Of the context, kept free when another request is let in: so much the others can grow before one has to wait again.
_HEADROOM_SHARE: Final = 16


class Scheduler:
    """Answers grow by one token each in a step that they share, and prompts are computed between such steps, in turns.

    Whoever came first is let in first. When cells run out, the one who was let in last waits, and goes on later where
    it was. All methods are for the thread that decodes.
    """

    def __init__(self, context: Context, cache: PrefixCache, ended: Callable[[ActiveRequest, Event], None]) -> None:
        """`ended` gets each request with its last event."""
        self._context = context
        self._cache = cache
        self._ended = ended
        self._waiting: deque[ActiveRequest] = deque()
        self._running: list[ActiveRequest] = []
        self._drafting_for: OutputSequence | None = None
        """The answer that the drafters know; they know one at a time."""

    @property
    def is_idle(self) -> bool:
        """True if there is nothing to do."""
        return not self._running and not self._waiting

    def add(self, generation: ActiveRequest) -> None:
        """Have a request answered."""
        self._waiting.append(generation)

    def cancel(self, ids: set[int]) -> None:
        """End these requests."""
        for generation in [g for g in (*self._running, *self._waiting) if g.request.id in ids]:
            self._end(generation)

    def cancel_all(self) -> None:
        """End all requests."""
        self.cancel({g.request.id for g in (*self._running, *self._waiting)})

    def step(self) -> None:
        """Decode once for all answers, and compute a part of a prompt."""
        self._admit()
        try:
            growing = [(g, s) for g in self._running for s in g.decoding]
            if len(growing) == 1 and growing[0][0].speculator is not None:
                self._speculative_step(*growing[0])
            elif growing:
                self._decode_sequences(growing)
            self._prefill(FAIR_TOKENS if growing else self._context.n_batch)
        except DecodeAborted:
            return  # whoever is wanted no more is ended by `cancel`; who still is goes on where it was
        except (EdgechatError, MemoryError) as error:  # what concerned one of them only was caught before
            for generation in list(self._running):
                self._end(generation, error)
        for generation in [g for g in self._running if g.is_finished]:
            self._end(generation)

    def _end(self, generation: ActiveRequest, error: Exception | None = None) -> None:
        if generation in self._running:
            self._running.remove(generation)
        else:
            self._waiting.remove(generation)
        generation.cancel("cancelled")
        event: Event = generation.final_event()
        if error is not None:
            words = str(error) or "the engine ran out of memory"
            kind = "PlanError" if isinstance(error, MemoryError) else type(error).__name__
            event = RequestFailed(id=generation.request.id, error_type=kind, message=words)
        self._ended(generation, event)

    # Who is in work

    def _admit(self) -> None:
        while self._waiting and self._can_admit(self._waiting[0]):
            generation = self._waiting.popleft()
            self._running.append(generation)
            generation.start()

    def _can_admit(self, new: ActiveRequest) -> bool:
        if not self._running:
            return True
        if any(g.request.bypass_cache for g in (new, *self._running)):
            return False  # what is computed cold has all to itself
        n_seqs = sum(g.request.n_sequences for g in (new, *self._running))
        n_tokens = sum(g.n_tokens for g in (new, *self._running))
        n_ctx = self._context.n_ctx
        return n_seqs <= self._context.n_seqs and n_tokens + n_ctx // _HEADROOM_SHARE <= n_ctx

    def _free_cells(self) -> bool:
        """Free cells: of sequences that nobody works on, else of who was let in last; False if there is only one."""
        if self._cache.evict_lru():
            return True
        if len(self._running) == 1:
            return False
        self._drafting_for = None
        last = self._running.pop()
        last.preempt()
        self._waiting.appendleft(last)
        return True

    # Steps

    def _decode_sequences(self, growing: list[tuple[ActiveRequest, OutputSequence]]) -> None:
        self._drafting_for = None
        context = self._context
        while growing:
            try:
                context.decode_each({s.seq: s.next_token for _, s in growing})
            except NoKvSlotError:  # noqa: PERF203  (it happens when the context is full)
                if not self._free_cells():
                    for generation, sample in growing:
                        generation.finish_sequence(sample, "length")
                growing = [(g, s) for g, s in growing if s in g.decoding]
            else:
                break
        for i, (generation, sample) in enumerate(growing):
            self._isolated(generation, lambda g=generation, s=sample, i=i: g.accept(s, s.sample(i)))  # type: ignore[misc]

    def _isolated(self, generation: ActiveRequest, work: Callable[[], object]) -> None:
        """Do what concerns one request only; if it fails, that request does."""
        if generation not in self._running:
            return
        try:
            work()
        except (EdgechatError, MemoryError) as error:
            self._end(generation, error)

    def _prefill(self, max_tokens: int) -> None:
        """Compute a part of the prompt whose turn it is."""
        while computing := [g for g in self._running if g.is_prefilling]:
            ready = [g for g in computing if not any(_should_wait_for(g, other) for other in computing)]
            generation = min(ready, key=lambda g: g.last_prefill_at)
            try:
                self._isolated(generation, lambda g=generation: g.prefill(max_tokens))  # type: ignore[misc]
            except NoKvSlotError:
                if not self._free_cells():
                    self._end(generation, EngineError("the context has no room for the prompt: ask for less at once"))
            else:
                return

    def _speculative_step(self, generation: ActiveRequest, sample: OutputSequence) -> None:
        """The same for one answer, several tokens at a time where what was said before may be said again.

        Every position is drawn by the whole sampler, and what was drawn is what is said: a draft only saves time.
        """
        speculator, context = generation.speculator, self._context
        if speculator is None:
            return
        if self._drafting_for is not sample:
            speculator.start([*generation.prompt, *sample.tokens])
            self._drafting_for = sample
        depth = len(context.tokens(sample.seq))
        draft = sample.allowed_prefix(speculator.propose(min(sample.max_draft, context.max_rollback), depth))
        started = time.monotonic()
        try:
            draft = self._decode_with_draft(generation, sample, draft)
        except NoKvSlotError:
            generation.finish_sequence(sample, "length")
            return
        if sample not in generation.decoding:
            return
        context.synchronize()
        seconds = time.monotonic() - started
        self._isolated(generation, lambda: self._verify(generation, sample, draft, speculator, depth, seconds))

    def _decode_with_draft(self, generation: ActiveRequest, sample: OutputSequence, draft: list[int]) -> list[int]:
        """Decode a token with a draft, or without one if there is no room for it; returns what was decoded of it."""
        if draft:
            try:
                self._context.decode_chain([sample.next_token, *draft], sample.seq)
            except NoKvSlotError:
                pass  # for a guess nothing is given up
            else:
                return draft
        while sample in generation.decoding:  # it may be what makes room
            try:
                self._context.decode_chain([sample.next_token], sample.seq)
            except NoKvSlotError:  # noqa: PERF203  (as above)
                if not self._free_cells():
                    raise
            else:
                break
        return []

    def _verify(
        self,
        generation: ActiveRequest,
        sample: OutputSequence,
        draft: list[int],
        speculator: Speculator,
        depth: int,
        seconds: float,
    ) -> None:
        """Draw and take until a draw differs from the draft, or the answer ends."""
        seq, n_right, goes_on, token = sample.seq, 0, True, sample.next_token
        for i in range(len(draft) + 1):
            token = sample.sample(i)
            goes_on = sample.accept(token)
            if not goes_on or i == len(draft) or token != draft[i]:
                break
            n_right += 1
        self._context.rollback(seq, len(draft) - n_right)
        speculator.record_step(len(draft), n_right, token, depth, seconds)
        speculator.append([*draft[:n_right], token])
        if not goes_on:
            generation.release_sequence(sample)


def _should_wait_for(new: ActiveRequest, other: ActiveRequest) -> bool:
    """True if most of a prompt that is not begun will be there once the other's is computed, which is begun."""
    if new.last_prefill_at or not other.last_prefill_at:
        return False
    least = max(_WORTH_TOKENS, len(new.prompt) // 2)
    return len(new.prompt) >= least and new.prompt[:least] == other.prompt[:least]
