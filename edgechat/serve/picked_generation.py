"""Generation of a response whose choices are picked from more replies."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Sequence

import msgspec

from edgechat.engine import protocol
from edgechat.errors import ContextOverflowError, EngineError
from edgechat.prompt.agreement.judge import make_verdict_request
from edgechat.prompt.agreement.picker import ReplyPick, ReplyPicker
from edgechat.prompt.agreement.vote import rank_logprob
from edgechat.prompt.renderer import PromptMessage
from edgechat.prompt.reply_formats import PromptOptions
from edgechat.serve.choices import Choice, Delta, UsageTotals, feed_choices
from edgechat.serve.generation import Generation
from edgechat.serve.model_queue import ModelQueue
from edgechat.serve.pick_options import PickOptions


class PickedGeneration(Generation):
    """Generates more replies than the response has choices, in rounds, and picks the choices from them."""

    async def _generate(self, requests: list[protocol.Generate]) -> tuple[Delta, AsyncIterator[Delta]]:
        options = self._builder.pick_options
        if options is None:
            raise EngineError("Nothing to pick from. Send the request again.")
        choices, self.choices = self.choices, []
        for index, request in enumerate(requests):
            candidates = choices[index * options.n_replies : (index + 1) * options.n_replies]
            run = _PickRun(self._builder.queue, request, candidates, options, self.totals)
            self.choices += await run.run(self._builder.question)
        return None, _iterate_nothing()


async def _iterate_nothing() -> AsyncIterator[Delta]:
    for delta in list[Delta]():
        yield delta


class _PickRun:
    """Replies to one prompt, of which some are picked."""

    def __init__(
        self, queue: ModelQueue, request: protocol.Generate, choices: Sequence[Choice], options: PickOptions,
        totals: UsageTotals,
    ) -> None:  # fmt: skip
        self._queue = queue
        self._request = request
        self._choices = choices
        self._options = options
        self._totals = totals
        self._picker = ReplyPicker(options.method, options.n_replies, queue.max_parallel_replies)
        self._mean_logprobs: dict[int, float | None] = {}

    async def run(self, question: str) -> list[Choice]:
        """Generate the replies, and return the picked ones, the best first. Raises ApiError and EdgechatError."""
        picker = self._picker
        while indexes := picker.start_round():
            await self._run_round(indexes)
        pick = picker.pick(await self._judge(question))
        order = [pick.index]
        if self._options.n_choices > 1:
            order += sorted(
                (i for i in picker.list_complete() if i != pick.index),
                key=lambda i: (-rank_logprob(self._mean_logprobs.get(i)), i),
            )
            order += [i for i in range(picker.n_started) if i not in order]
        picked = [self._choices[i] for i in order[: self._options.n_choices]]
        for index, choice in zip(order, picked, strict=False):
            choice.pick = self._describe(pick, index)
        return picked

    def _describe(self, pick: ReplyPick, index: int) -> dict[str, object]:
        """Return the `pick` object of a choice."""
        candidate = self._picker.candidates[index]
        answer = candidate.answer if candidate is not None else None
        mean_logprob = self._mean_logprobs.get(index)
        return {
            "method": pick.method, "result": pick.describe(), "n_agreeing": pick.n_agreeing,
            "n_counted": pick.n_counted, "n_started": pick.n_started,
            "answer": answer.value if answer is not None else None,
            "mean_logprob": mean_logprob if math.isfinite(rank_logprob(mean_logprob)) else None,
        }  # fmt: skip

    async def _run_round(self, indexes: range) -> None:
        sampling = self._request.sampling
        if sampling.seed is not None and indexes.start:  # earlier rounds used the seeds before
            sampling = msgspec.structs.replace(sampling, seed=(sampling.seed + indexes.start) % (1 << 32))
        request = self._queue.copy_request(
            self._request, n_sequences=len(indexes), sampling=sampling, mean_logprob=True,
            prompt_logprobs=self._request.prompt_logprobs and not indexes.start,
        )  # fmt: skip
        choices = self._choices[indexes.start : indexes.stop]
        events = await self._queue.submit([request])
        try:
            while (request_event := await events.next()) is not None:
                event = request_event.event
                fed_choices = self._choices if isinstance(event, protocol.PromptLogprobs) else choices
                # In a thread, because parsing may wait for the render process.
                await asyncio.to_thread(lambda: list(feed_choices(fed_choices, event)))  # noqa: B023
                if isinstance(event, protocol.SequenceFinished):
                    self._finish_reply(request, event, indexes)
                elif isinstance(event, protocol.RequestFinished):
                    self._add_stats(event, is_first=not indexes.start)
        finally:
            events.close()

    def _finish_reply(self, request: protocol.Generate, event: protocol.SequenceFinished, indexes: range) -> None:
        picker, index = self._picker, indexes[event.sequence]
        self._mean_logprobs[index] = event.mean_logprob
        picker.finish_reply(index, self._choices[index].content, event.mean_logprob, event.finish_reason)
        unfinished = [i for i in indexes if picker.candidates[i] is None]
        if unfinished and picker.is_decided:
            self._queue.end_replies(request, [i - indexes.start for i in unfinished])

    def _add_stats(self, event: protocol.RequestFinished, *, is_first: bool) -> None:
        """Add the tokens of a round to the usage. The rounds share the prompt, which counts once."""
        stats = event.stats
        if not is_first:
            stats = msgspec.structs.replace(stats, prompt_tokens=0, cached_tokens=0, prefill_tps=0.0)
        self._totals.add(stats, event.cache_miss if is_first else None)

    async def _judge(self, question: str) -> int | None:
        """Let the model compare the complete replies; return the winner among them, or None without a comparison."""
        tournament = self._picker.start_tournament(question)
        with contextlib.suppress(ContextOverflowError):
            for messages in tournament:
                tournament.verdict = await self._compare(messages)
        return tournament.winner

    async def _compare(self, messages: list[PromptMessage]) -> str:
        """Ask the model which of two replies is better; return its verdict."""
        prompt = await self._queue.build_prompt(messages, PromptOptions(think=False))
        request = self._queue.copy_request(make_verdict_request(0, prompt.tokens))
        verdict = Choice(0)
        events = await self._queue.submit([request])
        try:
            while (request_event := await events.next()) is not None:
                list(feed_choices([verdict], request_event.event))
                if isinstance(request_event.event, protocol.RequestFinished):
                    self._totals.add(request_event.event.stats)
        finally:
            events.close()
        return verdict.content
