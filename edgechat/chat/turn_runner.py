"""One answer, or several side by side, from the prompt to the last word, written down while they grow."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import msgspec

from edgechat.chat import events
from edgechat.chat.conversation_prompt import ConversationPrompt
from edgechat.chat.messages import Conversation, FinishReason, Message
from edgechat.chat.recorder import ReplyRecorder
from edgechat.chat.store import Store
from edgechat.config import Settings
from edgechat.engine import protocol
from edgechat.engine.client import EngineClient
from edgechat.prompt.builder import PromptBuilder
from edgechat.prompt.reasoning import ReasoningSplitter


class _Growing:
    """One of the answers."""

    def __init__(self, recorder: ReplyRecorder, splitter: ReasoningSplitter) -> None:
        self.recorder = recorder
        self.splitter = splitter
        self.finish_reason: protocol.FinishReason | None = None
        self.said_problem = ""


class TurnRunner:
    """The generation of answers to one message. `run` it once; `stop` it from any thread."""

    def __init__(self, engine: EngineClient, builder: PromptBuilder, settings: Settings) -> None:
        self._engine = engine
        self._builder = builder
        self._settings = settings
        self._request_id: int | None = None
        self._stopped = False
        self._growing: list[_Growing] = []
        self._ttft_s = 0.0

    @property
    def written(self) -> list[tuple[Message, str]]:
        """The answers as they are kept, and why one could not be written ("" if it could); none before `run`."""
        return [(g.recorder.reply, g.recorder.write_error) for g in self._growing]

    def stop(self) -> None:
        """End the answers, also before their first word."""
        self._stopped = True
        if self._request_id is not None:
            self._engine.cancel(self._request_id)

    def run(
        self,
        store: Store,
        conversation: Conversation,
        answers: Sequence[Message],
        built: ConversationPrompt,
        started_s: float,
    ) -> Iterator[events.SessionEvent]:
        """Generate `answers`, which are in the store; one may have been begun. `started_s` is when it was asked for.

        However this ends, what was said is written, and `written` tells how. Raises EngineError.
        """
        for answer in answers:
            splitter = ReasoningSplitter(
                self._builder.reasoning_format, built.prompt.phase, continues_reasoning=bool(answer.reasoning)
            )
            recorder = ReplyRecorder(store, conversation, answer)
            self._growing.append(_Growing(recorder, splitter))
        finished: protocol.RequestFinished | None = None
        try:
            for event in self._engine.generate(self._request(built, conversation.id if store.is_persistent else "")):
                if isinstance(event, protocol.RequestFinished):
                    finished = event
                yield from self._heard(event, started_s)
        finally:
            self._finish(finished)
        for growing in self._growing:
            if growing.recorder.write_error:
                yield events.NotSaved(reason=growing.recorder.write_error)
        first, *others = (g.recorder.reply for g in self._growing)
        ended = events.TurnInterrupted if first.is_interrupted else events.TurnFinished
        context_tokens = finished.context_tokens if finished is not None else 0
        yield ended(reply=first, context_tokens=context_tokens, alternatives=tuple(others))

    def _request(self, built: ConversationPrompt, conversation: str) -> protocol.Generate:
        settings = self._settings
        request = protocol.Generate(
            id=self._engine.next_id(), tokens=built.prompt.tokens, max_tokens=settings.max_tokens, sampling=settings.sampling,
            visible_control_tokens=self._builder.visible_control_tokens, conversation=conversation, turn_starts=built.prompt.turn_starts,
            n_sequences=len(self._growing), speculate=not settings.strict, bypass_cache=settings.strict, attached_texts=built.attached_texts,
            stop=self._builder.stop_strings,
        )  # fmt: skip
        self._request_id = request.id
        if self._stopped:
            self._engine.cancel(request.id)
        return request

    def _heard(self, event: protocol.AnyEvent, started_s: float) -> Iterator[events.SessionEvent]:
        if isinstance(event, protocol.PrefillProgressed):
            yield events.PromptProgressed(done_tokens=event.done_tokens, total_tokens=event.total_tokens)
        elif isinstance(event, protocol.TokensGenerated):
            self._ttft_s = self._ttft_s or time.monotonic() - started_s
            splitter = self._growing[event.sequence].splitter
            yield from self._add(event.sequence, *splitter.feed(event.text), len(event.tokens))
        elif isinstance(event, protocol.SequenceFinished):
            self._growing[event.sequence].finish_reason = event.finish_reason
        elif isinstance(event, protocol.RequestFinished):
            for number, growing in enumerate(self._growing):
                growing.finish_reason = growing.finish_reason or event.finish_reason
                yield from self._add(number, *growing.splitter.finish(), 0)

    def _add(self, number: int, thought: str, text: str, n_tokens: int) -> Iterator[events.SessionEvent]:
        growing = self._growing[number]
        if thought or text or n_tokens:
            growing.recorder.add(text, thought, n_tokens)
            yield events.ReplyTextGenerated(text=text, reasoning=thought, n_tokens=n_tokens, reply_index=number)
        problem = growing.recorder.write_error
        if problem and not growing.said_problem:
            yield events.NotSaved(reason=problem)
        growing.said_problem = problem

    def _finish(self, finished: protocol.RequestFinished | None) -> None:
        if finished is None and self._request_id is not None:
            self._engine.cancel(self._request_id)
        for growing in self._growing:
            reason: FinishReason = "cancelled" if self._stopped else "interrupted"
            stats = None
            if finished is not None:
                reason = growing.finish_reason or finished.finish_reason
                # As the user sees it: rendering and both pipes included.
                stats = msgspec.structs.replace(finished.stats, ttft_s=self._ttft_s or finished.stats.ttft_s)
            reasoning = growing.recorder.reply.reasoning.rstrip("\n")
            growing.recorder.finish(finish_reason=reason, stats=stats, reasoning=reasoning)
