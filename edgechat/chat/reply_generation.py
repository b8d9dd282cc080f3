"""Generation of one or more parallel replies to a prompt. Partial replies are saved during generation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import msgspec

from edgechat.chat import events
from edgechat.chat.context_hash import hash_context
from edgechat.chat.conversation_prompt import ConversationPrompt
from edgechat.chat.messages import Conversation, FinishReason, Message, format_live_gain
from edgechat.chat.recorder import ReplyRecorder
from edgechat.chat.reply_source import ReplyOptions
from edgechat.chat.store import Store
from edgechat.config import Settings
from edgechat.engine import protocol
from edgechat.engine.overflow import format_growth_refusal
from edgechat.errors import ContextOverflowError
from edgechat.models.events import CpuFallback, ModelLoadProgressed
from edgechat.models.loaded_model import LoadedModel
from edgechat.prompt.reply_parser import ReplyDelta, ReplyParser

# The larger one applies: a minimum for a reply without a penalty, or a step above a penalty that was too small.
_MIN_PENALTY: Final = 1.3
_PENALTY_STEP: Final = 0.1
NO_OPTIONS: Final = ReplyOptions()

_GenerationEvent = protocol.AnyEvent | events.TurnsDropped | ModelLoadProgressed | CpuFallback


def add_repetition_penalty(settings: Settings) -> Settings:
    """Return settings with which a model can continue a reply that repeats itself: with a penalty for repetition."""
    return msgspec.structs.replace(settings, repeat_penalty=max(settings.repeat_penalty + _PENALTY_STEP, _MIN_PENALTY))


class _StreamingReply:
    """State of one reply during generation: recorder, parser, finish reason and last reported error."""

    def __init__(self, recorder: ReplyRecorder, parser: ReplyParser) -> None:
        self.recorder = recorder
        self.parser = parser
        self.is_continued = bool(recorder.reply.text or recorder.reply.reasoning)
        self.finish_reason: protocol.FinishReason | None = None
        self.mean_logprob: float | None = None
        self.reported_error = ""


class ReplyGeneration:
    """Generates parallel replies to one message. Call `run` once; `stop` is thread-safe."""

    def __init__(
        self, model: LoadedModel, settings: Settings, prompt: ConversationPrompt | None,
        rebuild_prompt: Callable[[int], ConversationPrompt | None], options: ReplyOptions = NO_OPTIONS,
    ) -> None:  # fmt: skip
        """Prepare the generation of replies of `model` to `prompt`.

        `prompt` is None if the generation was stopped before its prompt was built; the replies then remain unchanged.
        If the context cannot grow to hold it, `rebuild_prompt` builds one for the length in its argument.
        """
        self._model, self._engine = model, model.engine
        self._prompt = prompt
        self._rebuild_prompt = rebuild_prompt
        self._picker = options.picker
        self._indexes = options.indexes
        self._needs_logprob = options.needs_logprob or options.picker is not None
        self._builder = model.builder
        self._settings = settings
        self._request_id: int | None = None
        self._is_stopped = False
        self._is_thinking_ended = False
        self._replies: list[_StreamingReply] = []
        self._ttft_s = 0.0
        self._refused_growth: protocol.ContextGrowthRefused | None = None
        self._context_hash = hash_context(settings.system_prompt)
        self._rebuilt_prompt: ConversationPrompt | None = None
        """Prompt for a context that could not grow; None if the first prompt fits."""

    @property
    def results(self) -> list[tuple[Message, str]]:
        """Saved state of each reply, with the error of its last write ("" for success); empty before `run`."""
        return [(r.recorder.reply, r.recorder.write_error) for r in self._replies]

    def stop(self) -> None:
        """Cancel the generation. If `run` has not been called yet, `run` will cancel its request immediately."""
        self._is_stopped = True
        if self._request_id is not None:
            self._engine.cancel(self._request_id)

    def end_thinking(self) -> bool:
        """End the reasoning of all replies, now and later, and return True. Thread-safe."""
        self._is_thinking_ended = True
        if self._request_id is not None:
            self._engine.end_thinking(self._request_id)
        return True

    def run(
        self, store: Store, conversation: Conversation, replies: Sequence[Message], started_at: float
    ) -> Iterator[events.SessionEvent]:
        """Generate `replies`, which must be in the store; continue replies that have text.

        `started_at` is the start of the turn on the monotonic clock, from which the time to first token is measured.
        The replies are also saved after a stop or an error; `results` returns their saved state. Raises EngineError.
        """
        prompt = self._prompt
        for reply in replies:
            parser = self._builder.create_reply_parser(prompt.prompt if prompt is not None else None)
            self._replies.append(_StreamingReply(ReplyRecorder(store, conversation, reply), parser))
        request_finished: protocol.RequestFinished | None = None
        try:
            if prompt is not None:
                self._context_hash = hash_context(self._settings.system_prompt, prompt.grammar)
                conversation_id = conversation.id if store.is_persistent else ""
                if (thinking := prompt.thinking) is not None and (thinking.max_tokens, thinking.max_s) != (None, None):
                    yield events.ThinkingLimited(max_tokens=thinking.max_tokens, max_s=thinking.max_s)
                for event in self._generate(prompt, conversation_id):
                    if isinstance(event, protocol.RequestFinished):
                        request_finished = event
                    yield from self._handle_event(event, started_at)
        finally:
            self._finish(request_finished)
        for streaming_reply in self._replies:
            if streaming_reply.recorder.write_error:
                yield events.ReplySaveFailed(reason=streaming_reply.recorder.write_error)
        first_reply, *alternatives = (r.recorder.reply for r in self._replies)
        final_event = events.TurnInterrupted if first_reply.is_interrupted else events.TurnFinished
        context_tokens = request_finished.context_tokens if request_finished is not None else 0
        yield final_event(reply=first_reply, context_tokens=context_tokens, alternatives=tuple(alternatives))

    def _generate(self, prompt: ConversationPrompt, conversation_id: str) -> Iterator[_GenerationEvent]:
        """Yield the engine's events. If the context cannot grow for the prompt, generate with a shorter prompt."""
        try:
            yield from self._model.generate(self._create_request(prompt, conversation_id))
        except ContextOverflowError as error:
            if self._refused_growth is None:
                raise
            try:
                shorter_prompt = self._rebuild_prompt(self._refused_growth.n_ctx)
            except ContextOverflowError:  # its text recommends --ctx, the engine's says how much memory is free
                raise error from None
        else:
            return
        if shorter_prompt is None:
            return
        self._rebuilt_prompt = shorter_prompt
        if shorter_prompt.start_id is not None and shorter_prompt.start != prompt.start:
            yield events.TurnsDropped(n_messages=shorter_prompt.start, context_start_id=shorter_prompt.start_id)
        yield from self._model.generate(self._create_request(shorter_prompt, conversation_id))

    def _create_request(self, prompt: ConversationPrompt, conversation_id: str) -> protocol.Generate:
        settings, sampling = self._settings, self._settings.sampling
        if sampling.seed is not None and self._indexes.start:  # earlier rounds used the seeds before
            sampling = msgspec.structs.replace(sampling, seed=(sampling.seed + self._indexes.start) % (1 << 32))
        request = protocol.Generate(
            id=self._engine.next_id(), tokens=prompt.prompt.tokens, turn_starts=prompt.prompt.turn_starts,
            attached_texts=prompt.attached_texts, conversation=conversation_id, shared_prefix=prompt.shared_prefix,
            n_sequences=len(self._replies),
            max_tokens=settings.max_tokens, sampling=sampling, mean_logprob=self._needs_logprob,
            speculate=not settings.strict, bypass_cache=settings.strict, stop_repetition=settings.stop_repetition,
            visible_control_tokens=self._builder.visible_control_tokens(prompt.prompt.reply_format),
            grammars=[prompt.grammar] if prompt.grammar else [],
            stop=self._builder.stop_strings(prompt.prompt.reply_format), thinking=prompt.thinking,
        )  # fmt: skip
        self._request_id = request.id
        self._repeat_commands(request.id)
        return request

    def _repeat_commands(self, request_id: int) -> None:
        """Send the user's stop and end of reasoning again, because a new engine process does not know them."""
        if self._is_stopped:
            self._engine.cancel(request_id)
        if self._is_thinking_ended:
            self._engine.end_thinking(request_id)

    def _handle_event(self, event: _GenerationEvent, started_at: float) -> Iterator[events.SessionEvent]:
        if isinstance(event, (events.TurnsDropped, ModelLoadProgressed)):
            yield event
        elif isinstance(event, CpuFallback):
            yield event
            if self._request_id is not None:
                self._repeat_commands(self._request_id)
        elif isinstance(event, protocol.ContextResizing):
            yield events.ContextSizeChanging(n_ctx=event.n_ctx, is_growing=event.is_growing)
        elif isinstance(event, protocol.ContextGrowthRefused):
            # A rebuilt prompt is another request, which gets its own event.
            notice = format_growth_refusal(event) if self._refused_growth is None else ""
            self._refused_growth = event
            yield from [events.ContextLimitReached(notice=notice)] if notice else []
        elif isinstance(event, protocol.PrefillProgressed):
            yield events.PromptProgressed(done_tokens=event.done_tokens, total_tokens=event.total_tokens)
        elif isinstance(event, protocol.TokensGenerated):
            self._ttft_s = self._ttft_s or time.monotonic() - started_at
            delta = self._replies[event.sequence].parser.feed(event.text)
            drafts = format_live_gain(event.draft_gain, event.draft_source)
            yield from self._append_text(event.sequence, delta, len(event.tokens), drafts)
        elif isinstance(event, protocol.SequenceFinished):
            yield from self._finish_reply(event)
        elif isinstance(event, protocol.RequestFinished):
            yield from self._finish_replies(event)

    def _finish_replies(self, event: protocol.RequestFinished) -> Iterator[events.SessionEvent]:
        """Complete the replies that have not ended on their own: a single reply, or all of a cancelled request.

        Reports a model drafter that failed, once.
        """
        for index, streaming_reply in enumerate(self._replies):
            if streaming_reply.finish_reason is None:
                streaming_reply.finish_reason = event.finish_reason
                yield from self._append_text(index, streaming_reply.parser.finish(), 0)
        if failure := self._model.find_drafter_failure(event.drafter):
            yield events.DrafterFailed(notice=f"Decoding without the drafter: {failure}")

    def _finish_reply(self, event: protocol.SequenceFinished) -> Iterator[events.SessionEvent]:
        """Complete one of several replies, and end the others if the picker needs no more."""
        streaming_reply, picker = self._replies[event.sequence], self._picker
        streaming_reply.finish_reason = event.finish_reason
        yield from self._append_text(event.sequence, streaming_reply.parser.finish(), 0)
        streaming_reply.mean_logprob = event.mean_logprob
        if picker is None or self._request_id is None:
            return
        picker.finish_reply(
            self._indexes[event.sequence], streaming_reply.parser.reply.content, event.mean_logprob, event.finish_reason
        )
        unfinished = [i for i, r in enumerate(self._replies) if r.finish_reason is None]
        if unfinished and picker.is_decided:
            self._engine.cancel_sequences(self._request_id, unfinished)

    def _append_text(
        self, index: int, delta: ReplyDelta, n_tokens: int, drafts: str = ""
    ) -> Iterator[events.SessionEvent]:
        streaming_reply, reasoning, text = self._replies[index], delta.reasoning, delta.content
        if reasoning or text or n_tokens:
            streaming_reply.recorder.add(text, reasoning, n_tokens)
            yield events.ReplyTextGenerated(
                text=text, reasoning=reasoning, n_tokens=n_tokens, reply_index=index, drafts=drafts
            )
        write_error = streaming_reply.recorder.write_error
        if write_error and not streaming_reply.reported_error:
            yield events.ReplySaveFailed(reason=write_error)
        streaming_reply.reported_error = write_error

    def _finish(self, request_finished: protocol.RequestFinished | None) -> None:
        if request_finished is None and self._request_id is not None:
            self._engine.cancel(self._request_id)
        for streaming_reply in self._replies:
            reason: FinishReason = "cancelled" if self._is_stopped else "interrupted"
            stats = None
            if request_finished is not None:
                engine_reason = streaming_reply.finish_reason or request_finished.finish_reason
                repeats_itself = engine_reason == "repetition"
                reason = "length" if engine_reason == "repetition" else engine_reason
                # Time to first token as the user experiences it, including template rendering and both engine pipes.
                stats = msgspec.structs.replace(
                    request_finished.stats, ttft_s=self._ttft_s or request_finished.stats.ttft_s,
                    repeats_itself=repeats_itself or msgspec.UNSET, context_hash=self._context_hash,
                )  # fmt: skip
                mean_logprob = streaming_reply.mean_logprob
                if mean_logprob is not None and math.isfinite(mean_logprob):
                    stats = msgspec.structs.replace(stats, mean_logprob=mean_logprob)
            recorder, parsed = streaming_reply.recorder, streaming_reply.parser.reply
            changes: dict[str, object] = {"reasoning": recorder.reply.reasoning.rstrip("\n")}
            if parsed.reasoning and not recorder.reply.reasoning and not streaming_reply.is_continued:
                changes = {
                    "reasoning": parsed.reasoning,
                    "text": parsed.content,
                }  # the reasoning had no start tag, so only its end tag revealed it
            if self._rebuilt_prompt is not None:
                changes["context_start_id"] = self._rebuilt_prompt.start_id
            recorder.finish(finish_reason=reason, stats=stats, **changes)
