"""The decode loop: prefill what is not cached, then one token after another, of one answer or of several at once."""

from __future__ import annotations

import time
from collections.abc import Callable

from edgechat.engine.protocol import (
    Generate,
    GenerationStats,
    PrefillProgressed,
    SampleFinished,
    TokensGenerated,
    TurnFinished,
)
from edgechat.engine.sample import Sample
from edgechat.errors import ContextOverflowError, EngineError
from edgechat.prefix.cache import Cached, PrefixCache
from edgechat.runtime.context import Context, DecodeAborted, NoRoom
from edgechat.speculation.speculator import SpeculationStats, Speculator

Send = Callable[[PrefillProgressed | TokensGenerated | SampleFinished], None]


class Generation:
    """One answer, or several to the same prompt. Leaves in the cache exactly what was decoded."""

    def __init__(
        self,
        context: Context,
        cache: PrefixCache,
        request: Generate,
        prompt: list[int],
        send: Send,
        arrived_s: float,
        speculator: Speculator | None = None,
    ) -> None:
        """`arrived_s` is the monotonic time at which the request came in. Without a speculator nothing is drafted.

        Raises ContextOverflowError if the prompt leaves no room for an answer.
        """
        if not prompt:
            raise EngineError("the prompt is empty: there is nothing to continue")
        if len(prompt) >= context.n_ctx:
            raise ContextOverflowError(
                f"the prompt has {len(prompt)} tokens, but the context holds {context.n_ctx}: "
                "shorten it, or ask for a larger context with --ctx"
            )
        if not 1 <= request.n_samples <= context.n_seqs:
            raise EngineError(f"{request.n_samples} answers at once were asked for; this context has {context.n_seqs}")
        self._context = context
        self._cache = cache
        self._request = request
        self._prompt = prompt
        self._send = send
        self._arrived_s = arrived_s
        self._prefill_s = 0.0
        self._cached = Cached(seq=0)
        self._samples: list[Sample] = []
        self._speculator = speculator

    def run(self) -> TurnFinished:
        """Generate to the end. Raises EngineError if llama.cpp fails."""
        request = self._request
        self._cached = self._cache.prepare(
            self._prompt, request.conversation, is_cold=request.is_cold, is_aside=request.is_aside
        )
        seqs = [self._cached.seq]
        try:
            self._prefill()
            seqs += self._cache.fork(self._cached.seq, self._request.n_samples - 1)
            self._samples = [
                Sample(self._context, self._request, i, seq, self._prompt, self._send) for i, seq in enumerate(seqs)
            ]
            self._decode()
        except DecodeAborted:
            pass
        finally:
            for seq in seqs:
                self._give_back(seq)
        for sample in self._samples:
            sample.finish("cancelled")
        first = self._samples[0] if self._samples else None
        return TurnFinished(
            id=self._request.id,
            finish_reason=first.finish_reason or "cancelled" if first is not None else "cancelled",
            stats=self._stats(),
            context_tokens=len(self._context.tokens(seqs[0])),
        )

    @property
    def answers(self) -> list[list[int]]:
        """The tokens of the answers so far."""
        return [sample.tokens for sample in self._samples]

    def _give_back(self, seq: int) -> None:
        self._context.seal(seq)
        if self._request.is_aside:
            self._cache.release(seq)
        else:
            self._cache.settle(seq)

    def _prefill(self) -> None:
        context, cache, seq, prompt = self._context, self._cache, self._cached.seq, self._prompt
        stops = [] if context.any_position else [t for t in self._request.turn_starts if 0 < t < len(prompt)]
        started = time.monotonic()
        done = first = len(context.tokens(seq))
        if done in stops:
            cache.checkpoint(seq)
        while done < len(prompt):
            end = min([len(prompt), done + context.n_batch, *(t for t in stops if t > done)])
            self._with_room([seq], lambda part=prompt[done:end]: context.decode(part, seq))  # type: ignore[misc]
            done = end
            if done in stops:
                cache.checkpoint(seq)
            self._send(PrefillProgressed(id=self._request.id, done_tokens=done, total_tokens=len(prompt)))
        context.synchronize()
        self._prefill_s = time.monotonic() - started
        cache.speeds.prefill.measured(done - first, self._prefill_s)

    def _with_room(self, seqs: list[int], decode: Callable[[], None]) -> None:
        """Decode; sequences that are not in work make room. Raises NoRoom if there are none."""
        while True:
            try:
                decode()
            except NoRoom:  # noqa: PERF203  (it happens when the context is full)
                if not self._cache.make_room(*seqs):
                    raise
            else:
                return

    def _decode(self) -> None:
        """Draw and decode, until every answer has ended."""
        context = self._context
        if self._request.max_tokens == 0:
            for sample in self._samples:
                sample.finish("length")
            return
        if self._speculator is not None and len(self._samples) == 1:
            self._decode_with_drafts(self._samples[0], self._speculator)
            return
        active = self._samples
        drawn = {s.seq: s.draw(-1) for s in active}
        while True:
            active = [s for s in active if s.take(drawn[s.seq])]
            if not active:
                return
            step = {s.seq: drawn[s.seq] for s in active}
            try:
                self._with_room([s.seq for s in self._samples], lambda step=step: context.decode_each(step))  # type: ignore[misc]
            except NoRoom:
                for sample in active:
                    sample.finish("length")
                return
            drawn = {s.seq: s.draw(i) for i, s in enumerate(active)}

    def _decode_with_drafts(self, sample: Sample, speculator: Speculator) -> None:
        """The same for one answer, several tokens at a time where what was said before may be said again.

        Every position is drawn by the whole sampler, and what was drawn is what is said: a draft only saves time.
        """
        context, seq = self._context, sample.seq
        token = sample.draw(-1)
        if sample.take(token):
            speculator.begin([*self._prompt, token])
        while sample.finish_reason is None:
            depth = len(context.tokens(seq))
            draft = speculator.propose(min(sample.room, context.max_undo), depth)
            started = time.monotonic()
            try:
                draft = self._try(seq, token, draft)
            except NoRoom:
                sample.finish("length")
                return
            context.synchronize()
            seconds = time.monotonic() - started
            token, n_right = self._verify(sample, draft)
            context.undo(seq, len(draft) - n_right)
            speculator.verified(len(draft), n_right, token, depth, seconds)
            speculator.append([*draft[:n_right], token])

    def _try(self, seq: int, token: int, draft: list[int]) -> list[int]:
        """Decode a token with a draft, or without one if there is no room for it; returns what was decoded of it."""
        if draft:
            try:
                self._context.decode_chain([token, *draft], seq)
            except NoRoom:
                pass  # for a guess nothing is given up
            else:
                return draft
        self._with_room([seq], lambda: self._context.decode_chain([token], seq))
        return []

    def _verify(self, sample: Sample, draft: list[int]) -> tuple[int, int]:
        """Draw and take until a draw differs from the draft, or the answer ends; the last draw, and how many agreed."""
        for i, guess in enumerate(draft):
            token = sample.draw(i)
            goes_on = sample.take(token)
            if token != guess or not goes_on:
                return token, i
        token = sample.draw(len(draft))
        sample.take(token)
        return token, len(draft)

    def _stats(self) -> GenerationStats:
        cached, samples = self._cached, self._samples
        drafts = self._speculator.stats if self._speculator is not None else SpeculationStats()
        n_cached = cached.live_tokens + cached.ram_tokens + cached.disk_tokens
        computed = len(self._prompt) - n_cached
        n_tokens = sum(s.n_tokens for s in samples)
        first_s = min((s.first_token_s for s in samples if s.n_tokens), default=0.0)
        decode_s = max((s.last_token_s for s in samples), default=0.0) - first_s
        return GenerationStats(
            prompt_tokens=len(self._prompt),
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
