"""One answer, from its prompt to its last word, written down while it grows."""

from __future__ import annotations

import time
from collections.abc import Iterator

import msgspec

from edgechat.chat import events
from edgechat.chat.messages import Conversation, FinishReason, Message
from edgechat.chat.prompting import BuiltPrompt, PromptBuilder
from edgechat.chat.reasoning import Splitter
from edgechat.chat.recorder import Recorder
from edgechat.chat.store import Store
from edgechat.chat.stream import until
from edgechat.config import Settings
from edgechat.engine import protocol
from edgechat.engine.client import EngineClient


class Turn:
    """The generation of one answer. `run` it once; `stop` it from any thread."""

    def __init__(self, engine: EngineClient, builder: PromptBuilder, settings: Settings) -> None:
        self._engine = engine
        self._builder = builder
        self._settings = settings
        self._request_id: int | None = None
        self._stopped = False
        self._recorder: Recorder | None = None
        self._said_problem = ""
        self._kept_for = ""

    @property
    def answer(self) -> Message | None:
        """The answer as it is kept; None before `run`."""
        return self._recorder.answer if self._recorder is not None else None

    @property
    def problem(self) -> str:
        """Why the answer could not be written the last time; "" if it could."""
        return self._recorder.problem if self._recorder is not None else ""

    def stop(self) -> None:
        """End the answer, also before its first word."""
        self._stopped = True
        if self._request_id is not None:
            self._engine.cancel(self._request_id)

    def run(
        self, store: Store, conversation: Conversation, answer: Message, built: BuiltPrompt, started_s: float
    ) -> Iterator[events.SessionEvent]:
        """Generate `answer`, which is in the store and may have been begun; `started_s` is when it was asked for.

        However this ends, what was said is written, and `answer` and `problem` tell how. Raises EngineError.
        """
        recorder = self._recorder = Recorder(store, conversation, answer)
        self._kept_for = conversation.id if store.is_kept else ""
        splitter = Splitter(self._builder.form, built.place, fresh=not answer.reasoning)
        finished: protocol.TurnFinished | None = None
        ttft_s = 0.0
        try:
            for event in self._generate(built):
                if isinstance(event, protocol.PrefillProgressed):
                    yield events.PrefillProgressed(done_tokens=event.done_tokens, total_tokens=event.total_tokens)
                elif isinstance(event, protocol.TokensGenerated):
                    ttft_s = ttft_s or time.monotonic() - started_s
                    yield from self._add(recorder, *splitter.feed(event.text), len(event.tokens))
                elif isinstance(event, protocol.TurnFinished):
                    finished = event
                    yield from self._add(recorder, *splitter.finish(), 0)
        finally:
            self._finish(recorder, finished, ttft_s)
        if recorder.problem:
            yield events.NotSaved(words=recorder.problem)
        kept = recorder.answer
        ended = events.TurnInterrupted if kept.interrupted else events.TurnFinished
        yield ended(answer=kept, context_tokens=finished.context_tokens if finished is not None else 0)

    def _generate(self, built: BuiltPrompt) -> Iterator[protocol.AnyEvent]:
        engine, settings = self._engine, self._settings
        request = protocol.Generate(
            id=engine.next_id(), tokens=built.tokens, max_tokens=settings.max_tokens, sampling=settings.sampling,
            shown_tokens=self._builder.shown_tokens, conversation=self._kept_for, turn_starts=built.turn_starts,
        )  # fmt: skip
        self._request_id = request.id
        if self._stopped:
            engine.cancel(request.id)
        return until(engine.generate(request), self._builder.stop, lambda: engine.cancel(request.id))

    def _add(self, recorder: Recorder, thought: str, text: str, n_tokens: int) -> Iterator[events.SessionEvent]:
        if thought or text or n_tokens:
            recorder.add(text, thought, n_tokens)
            yield events.TokensGenerated(text=text, reasoning=thought, n_tokens=n_tokens)
        problem = recorder.problem
        if problem and not self._said_problem:
            yield events.NotSaved(words=problem)
        self._said_problem = problem

    def _finish(self, recorder: Recorder, finished: protocol.TurnFinished | None, ttft_s: float) -> None:
        reason: FinishReason = "cancelled" if self._stopped else "interrupted"
        stats = None
        if finished is None:
            if self._request_id is not None:
                self._engine.cancel(self._request_id)
        else:
            reason = finished.finish_reason
            # As the user sees it: rendering and both pipes included.
            stats = msgspec.structs.replace(finished.stats, ttft_s=ttft_s)
        reasoning = recorder.answer.reasoning.rstrip("\n")
        recorder.finish(finish_reason=reason, stats=stats, reasoning=reasoning)
