"""Generation of one or more parallel replies by a remote model. Partial replies are saved during generation."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import msgspec

from edgechat.chat import events
from edgechat.chat.context_hash import hash_context
from edgechat.chat.messages import Conversation, FinishReason, Message
from edgechat.chat.recorder import ReplyRecorder
from edgechat.chat.remote_prompt import RemotePrompt
from edgechat.chat.reply_source import ReplyOptions
from edgechat.chat.store import Store
from edgechat.config import Settings
from edgechat.engine import protocol
from edgechat.engine.generation import GenerationStats
from edgechat.errors import ContextOverflowError, EdgechatError, RequestCancelledError
from edgechat.remote.client import ChatRequest, RemoteClient, RetryScheduled
from edgechat.remote.inline_thoughts import InlineThoughts
from edgechat.remote.reply_stream import ReplyChunk, Usage
from edgechat.remote.request_options import CONTINUATION_FIELDS, make_options
from edgechat.remote.target import RemoteModel

# Maximum wait for the threads of a turn. Cancelling closes their connections, so that only connecting takes time.
_JOIN_TIMEOUT_S: Final = 5.0
# Maximum length of a reply. The text of a message is in memory several times.
_MAX_REPLY_CHARS: Final = 8 << 20

_Item = ReplyChunk | RetryScheduled | EdgechatError | None
"""What a thread reports: a chunk, a retry, the error that ended the reply, or None at its end."""


class _StreamingReply:
    """State of one reply during generation."""

    def __init__(self, recorder: ReplyRecorder) -> None:
        self.recorder = recorder
        self.thoughts = InlineThoughts(is_content=bool(recorder.reply.text))
        self.finish_reason: protocol.FinishReason | None = None
        self.usage: Usage | None = None
        self.first_text_at = 0.0
        self.last_text_at = 0.0
        self.reported_error = ""
        self.n_tokens_before = recorder.reply.n_tokens

    def add(self, chunk: ReplyChunk) -> tuple[str, str]:
        """Add a chunk, and return its reasoning and its text."""
        self.usage = chunk.usage or self.usage
        if chunk.finish_reason:
            self.finish_reason = "length" if chunk.finish_reason == "length" else "stop"
        reasoning, text = self.thoughts.feed(chunk.text)
        return chunk.reasoning + reasoning, text

    def make_stats(self, started_at: float) -> GenerationStats | None:
        """Return the statistics of the reply; None if the server reported no token counts."""
        if self.usage is None:
            return None
        elapsed_s = self.last_text_at - self.first_text_at
        n_later_tokens = self.usage.completion_tokens - 1
        return GenerationStats(
            prompt_tokens=self.usage.prompt_tokens, cached_tokens=self.usage.cached_tokens or 0,
            completion_tokens=self.usage.completion_tokens, ttft_s=max(0.0, self.first_text_at - started_at),
            prefill_tps=0.0, decode_tps=n_later_tokens / elapsed_s if elapsed_s > 0 < n_later_tokens else 0.0,
            reasoning_tokens=msgspec.UNSET if self.usage.reasoning_tokens is None else self.usage.reasoning_tokens,
            is_remote=True,
        )  # fmt: skip


class RemoteGeneration:
    """Generates parallel replies to one message, each with a request of its own. Implements `Generation`."""

    def __init__(
        self, target: RemoteModel, prompt: RemotePrompt | None, settings: Settings, options: ReplyOptions,
        create_client: Callable[[], RemoteClient],
    ) -> None:  # fmt: skip
        """`prompt` is None if the turn was stopped before its prompt was built; the replies then remain unchanged."""
        self._target = target
        self._prompt = prompt
        self._settings = settings
        self._options = options
        self._create_client = create_client
        self._replies: list[_StreamingReply] = []
        self._clients: list[RemoteClient] = []
        self._is_stopped = False
        self._lock = threading.Lock()

    @property
    def results(self) -> list[tuple[Message, str]]:
        return [(r.recorder.reply, r.recorder.write_error) for r in self._replies]

    def stop(self) -> None:
        with self._lock:
            self._is_stopped = True
            clients = list(self._clients)
        for client in clients:
            client.cancel()

    def end_thinking(self) -> bool:
        return False

    def run(
        self, store: Store, conversation: Conversation, replies: Sequence[Message], started_at: float
    ) -> Iterator[events.SessionEvent]:
        self._replies = [_StreamingReply(ReplyRecorder(store, conversation, reply)) for reply in replies]
        prompt = self._prompt
        try:
            while prompt is not None:
                try:
                    yield from self._generate(prompt)
                    break
                except ContextOverflowError:
                    shorter_prompt = None if self._has_text else prompt.shorten()
                    if shorter_prompt is None:
                        raise
                    prompt = shorter_prompt
                    yield events.TurnsDropped(n_messages=prompt.start, context_start_id=prompt.start_id or "")
        finally:
            self._finish(started_at, prompt)
        for streaming_reply in self._replies:
            if streaming_reply.recorder.write_error:
                yield events.ReplySaveFailed(reason=streaming_reply.recorder.write_error)
        first_reply, *alternatives = (r.recorder.reply for r in self._replies)
        final_event = events.TurnInterrupted if first_reply.is_interrupted else events.TurnFinished
        yield final_event(reply=first_reply, context_tokens=0, alternatives=tuple(alternatives))

    @property
    def _has_text(self) -> bool:
        return any(r.first_text_at for r in self._replies)

    def _generate(self, prompt: RemotePrompt) -> Iterator[events.SessionEvent]:
        """Send one request for each reply, and yield the events of all. Raises the error of the first that fails."""
        items: queue.SimpleQueue[tuple[int, _Item]] = queue.SimpleQueue()
        with self._lock:
            self._clients = [self._create_client() for _ in self._replies]
            clients = [] if self._is_stopped else self._clients
        threads = [
            threading.Thread(target=self._stream, args=(i, client, prompt, items), name="remote", daemon=True)
            for i, client in enumerate(clients)
        ]
        for thread in threads:
            thread.start()
        n_running = len(threads)
        try:
            while n_running:
                index, item = items.get()
                if item is None or isinstance(item, RequestCancelledError):
                    n_running -= 1
                    yield from self._end_reply(index, is_cancelled=item is not None)
                elif isinstance(item, EdgechatError):
                    raise item
                elif isinstance(item, RetryScheduled):
                    yield events.RemoteRetryScheduled(message=item.message)
                else:
                    yield from self._append(index, *self._replies[index].add(item))
        finally:
            for client in clients:
                client.cancel()
            for thread in threads:
                thread.join(_JOIN_TIMEOUT_S)

    def _stream(
        self, index: int, client: RemoteClient, prompt: RemotePrompt, items: queue.SimpleQueue[tuple[int, _Item]]
    ) -> None:
        """Put the chunks of one reply into `items`. Runs in a thread of its own."""
        seed_offset = self._options.indexes.start + index
        options = make_options(self._settings, self._options.output_schema, seed_offset)
        if prompt.continues_reply:
            options |= CONTINUATION_FIELDS
        try:
            for chunk in client.stream_reply(self._target, ChatRequest(messages=prompt.messages, options=options)):
                items.put((index, chunk))
            items.put((index, None))
        except EdgechatError as error:
            items.put((index, error))
        except Exception as error:  # noqa: BLE001  (the turn would wait for ever)
            items.put((index, EdgechatError(f"The request to {self._target.name} failed: {error!r}.")))

    def _append(self, index: int, reasoning: str, text: str) -> Iterator[events.SessionEvent]:
        streaming_reply = self._replies[index]
        recorder = streaming_reply.recorder
        if reasoning or text:
            now = time.monotonic()
            streaming_reply.first_text_at = streaming_reply.first_text_at or now
            streaming_reply.last_text_at = now
            recorder.add(text, reasoning, 0)
            yield events.ReplyTextGenerated(text=text, reasoning=reasoning, n_tokens=0, reply_index=index)
        if recorder.write_error and not streaming_reply.reported_error:
            yield events.ReplySaveFailed(reason=recorder.write_error)
        streaming_reply.reported_error = recorder.write_error
        if len(recorder.reply.text) + len(recorder.reply.reasoning) > _MAX_REPLY_CHARS:
            self._clients[index].cancel()

    def _end_reply(self, index: int, *, is_cancelled: bool) -> Iterator[events.SessionEvent]:
        """Complete one reply, and end the others if the picker needs no more."""
        streaming_reply, picker = self._replies[index], self._options.picker
        yield from self._append(index, *streaming_reply.thoughts.finish())
        streaming_reply.finish_reason = "cancelled" if is_cancelled else streaming_reply.finish_reason or "stop"
        if picker is None:
            return
        text = streaming_reply.recorder.reply.text
        picker.finish_reply(self._options.indexes[index], text, None, streaming_reply.finish_reason)
        if picker.is_decided:
            for other, client in zip(self._replies, self._clients, strict=True):
                if other.finish_reason is None:
                    client.cancel()

    def _finish(self, started_at: float, prompt: RemotePrompt | None) -> None:
        for streaming_reply in self._replies:
            recorder = streaming_reply.recorder
            reason: FinishReason = "cancelled" if self._is_stopped else "interrupted"
            if streaming_reply.finish_reason is not None and streaming_reply.finish_reason != "repetition":
                reason = streaming_reply.finish_reason
            stats = streaming_reply.make_stats(started_at)
            if stats is not None:
                schema = self._options.output_schema
                context_hash = hash_context(self._settings.system_prompt, "" if schema is None else repr(schema))
                stats = msgspec.structs.replace(stats, context_hash=context_hash)
            n_tokens = None if stats is None else stats.completion_tokens + (streaming_reply.n_tokens_before or 0)
            changes: dict[str, object] = {"reasoning": recorder.reply.reasoning.rstrip("\n"), "n_tokens": n_tokens}
            if prompt is not None:
                changes["context_start_id"] = prompt.start_id
            recorder.finish(finish_reason=reason, stats=stats, **changes)
