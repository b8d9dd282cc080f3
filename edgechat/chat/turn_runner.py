"""Runner of turns: saves the user's message, generates the replies, and cleans up after errors."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from edgechat.chat import events
from edgechat.chat.conversation import StoredConversation
from edgechat.chat.idle import IdleGate
from edgechat.chat.messages import Message, first_line, new_reply
from edgechat.chat.reply_source import Generation, JsonSchema, ReplyOptions, ReplySource, SourcePrompt
from edgechat.config import Settings
from edgechat.engine import protocol
from edgechat.engine.cancellation import Cancellation
from edgechat.engine.client import EngineClient
from edgechat.errors import (
    ContextOverflowError,
    EngineDiedError,
    GrammarError,
    RequestCancelledError,
    TemplateError,
    UsageError,
)
from edgechat.models.events import CpuFallback
from edgechat.models.loaded_model import LoadedModel

if TYPE_CHECKING:
    from edgechat.prompt.agreement.picker import ReplyPicker


class Turn(NamedTuple):
    """Input of one turn: the replies to generate or continue, and the new user message."""

    replies: list[Message]
    """Empty replies to generate in parallel, or one earlier reply to continue."""
    message: Message | None = None
    """New user message; None if the turn only generates replies."""
    files: Mapping[str, bytes] = MappingProxyType({})
    """Bytes of the message's attachments by SHA-256 hash."""
    search_event: events.DocumentsSearched | None = None
    """Passages of documents that were found for the message; None if no documents were searched."""
    original_reply: Message | None = None
    """Previous state of the reply that the turn continues in place; None for new replies."""
    picker: ReplyPicker | None = None
    """Picker that receives the replies, and can end them early; None if none is picked."""
    indexes: range = range(0)
    """Numbers of `replies` among all replies of `picker`."""
    output_rule: str = ""
    """Grammar rule of the content of the replies; "" for free text."""
    output_schema: JsonSchema | None = None
    """JSON schema of the content, from which `output_rule` was made; None for free text."""
    needs_logprob: bool = False
    """True if the mean logprob of the replies is to be computed."""

    @property
    def options(self) -> ReplyOptions:
        """What the turn demands of its replies."""
        return ReplyOptions(self.picker, self.indexes, self.output_rule, self.output_schema, self.needs_logprob)


def new_replies(parent_id: str, model: str, n_replies: int, max_replies: int) -> list[Message]:
    """Create empty replies for parallel generation. Raises UsageError for more than `max_replies`."""
    if not 1 <= n_replies <= max_replies:
        raise UsageError(
            f"Cannot generate {n_replies} parallel replies: the loaded model allows at most {max_replies}. "
            "Use a smaller number."
        )
    return [new_reply(parent_id, model) for _ in range(n_replies)]


class TurnRunner:
    """Runs turns, one at a time. `stop` is thread-safe."""

    def __init__(self, model: LoadedModel, get_source: Callable[[], ReplySource]) -> None:
        """`get_source` returns the source of the replies of the next turn; `model` runs requests without a reply."""
        self.idle_gate = IdleGate(model)
        self._model = model
        self._get_source = get_source
        self._source = get_source()
        self._generation: Generation | _EphemeralRequest | None = None
        self._is_running = False
        self._cancellation = Cancellation()
        self._is_stop_requested = False
        self._is_thinking_ended = False
        self._are_replies_finished = False
        self.was_stopped = False
        """True if `stop` ended the last turn."""

    def stop(self) -> None:
        """Stop the current reply, or the next one if none is being generated.

        If the engine process does not end the current turn within ten seconds, the process is killed.
        """
        self._is_stop_requested = True
        self._cancellation.cancel()
        generation = self._generation
        if generation is not None:
            generation.stop()
        if self._is_running:
            self._source.expect_end()

    def end_thinking(self) -> bool:
        """End the reasoning of the current replies, now and later; return False if no reply is being generated.

        This also applies to a reply whose prompt is still being built, and to later rounds of picked replies.
        """
        generation = self._generation
        if not self._is_running or isinstance(generation, _EphemeralRequest):
            return False
        if generation is not None and not generation.end_thinking():
            return False
        self._is_thinking_ended = True
        return True

    @property
    def growing_replies(self) -> list[Message]:
        """Current states of the replies that are being generated. Thread-safe."""
        generation = self._generation
        if generation is None or isinstance(generation, _EphemeralRequest):
            return []
        return [reply for reply, _ in generation.results]

    def is_stop_requested(self) -> bool:
        """Return whether `stop` was called since the end of the last turn."""
        return self._is_stop_requested

    def clear_stop(self) -> None:
        """Clear a `stop` request that arrived after the end of the last reply."""
        self._is_stop_requested = False

    def run(self, conversation: StoredConversation, turn: Turn, settings: Settings) -> Iterator[events.SessionEvent]:
        """Save the messages of a turn, generate its replies, and yield events.

        If the prompt cannot be built (ContextOverflowError, TemplateError), the turn is undone, because its message
        would prevent all later replies; likewise if the output rule cannot be enforced (GrammarError). After other
        errors, the messages remain saved. Raises EdgechatError, and UsageError for a conversation with messages for
        which the user did not choose the remote model.
        """
        with self.idle_gate.block_requests():
            self._source = self._choose_source(conversation)
            conversation.save_pending()
            previous_head_id = conversation.tree.head_id
            first_reply = turn.replies[0]
            new_messages = [] if turn.original_reply else [*([turn.message] if turn.message else []), *turn.replies]
            if new_messages:
                conversation.append(new_messages, turn.files, title=_make_provisional_title(turn.message))
                if len(turn.replies) > 1:
                    conversation.set_head(first_reply.id)
            else:
                conversation.claim_reply(first_reply)
            self._are_replies_finished = False
            if not turn.indexes.start:  # a later round of picked replies belongs to the same turn
                self._is_thinking_ended = False
            self._is_running = True
            try:
                yield events.TurnStarted(message=conversation.tree[first_reply.parent_id or ""], reply=first_reply)
                if turn.search_event is not None:
                    yield turn.search_event
                yield from self._generate(conversation, turn, settings)
            except (ContextOverflowError, GrammarError, TemplateError):
                if turn.original_reply is not None:
                    conversation.save_reply(turn.original_reply)
                    self._are_replies_finished = True
                else:
                    conversation.discard(new_messages)
                if previous_head_id is not None:
                    conversation.set_head(previous_head_id)
                raise
            finally:
                self._is_running = False
                for reply in turn.replies:
                    if not self._are_replies_finished and reply.id in conversation.tree:
                        conversation.save_reply(msgspec.structs.replace(reply, finish_reason="interrupted"))

    def _choose_source(self, conversation: StoredConversation) -> ReplySource:
        """Return the source of the next replies. Raises UsageError if the conversation must not be sent to it."""
        source = self._get_source()
        if len(conversation.tree):
            source.check_conversation(conversation.metadata.model)
        return source

    def run_ephemeral_request(self, request: protocol.Generate) -> list[protocol.AnyEvent] | None:
        """Run a request that belongs to the turn but generates no reply; return its events, or None after `stop`.

        Raises EngineError.
        """
        with self.idle_gate.block_requests():
            ephemeral = _EphemeralRequest(self._model.engine, request.id)
            self._generation, self._is_running = ephemeral, True
            try:
                if self._is_stop_requested:
                    return None
                engine_events: list[protocol.AnyEvent] = []
                for event in self._model.generate(request):
                    if isinstance(event, CpuFallback):
                        self._model.cpu_notice = event.notice  # the reply of this turn reports it
                    elif isinstance(event, protocol.Event):
                        engine_events.append(event)
                return None if ephemeral.is_stopped else engine_events
            finally:
                self.was_stopped = self._is_stop_requested
                self._generation, self._is_running, self._is_stop_requested = None, False, False

    def _build_prompt(
        self, path: Sequence[Message], options: ReplyOptions, max_n_ctx: int | None = None
    ) -> SourcePrompt | None:
        """Build the prompt for the reply at the end of `path`; return None if `stop` was called."""
        self._cancellation = Cancellation()
        if self._is_stop_requested:
            return None
        try:
            return self._source.build_prompt(path, self._cancellation, max_n_ctx, options)
        except RequestCancelledError:
            return None

    def _generate(
        self, conversation: StoredConversation, turn: Turn, settings: Settings
    ) -> Iterator[events.SessionEvent]:
        started_at = time.monotonic()
        source, replies, options = self._source, turn.replies, turn.options
        yield from source.prepare_turn()
        path = conversation.tree.path_to(replies[0].id)
        try:
            prompt = self._build_prompt(path, options)
        except EngineDiedError:  # for example with the reply of another program that shares the engine
            yield from source.prepare_turn()
            prompt = self._build_prompt(path, options)
        if prompt is not None and prompt.start_id is not None:
            replies = [msgspec.structs.replace(r, context_start_id=prompt.start_id) for r in replies]
            yield events.TurnsDropped(n_messages=prompt.start, context_start_id=prompt.start_id)
        generation = source.create_generation(
            prompt, settings, options, lambda n_ctx: self._build_prompt(path, options, n_ctx)
        )
        self._generation = generation
        if self._is_stop_requested:
            generation.stop()
        if self._is_thinking_ended:
            generation.end_thinking()
        try:
            yield from generation.run(conversation.store, conversation.metadata, replies, started_at)
        finally:
            self.was_stopped = self._is_stop_requested
            self._generation, self._is_stop_requested = None, False
            for reply, (final_reply, write_error) in zip(replies, generation.results):  # noqa: B905  (empty before run)
                self._are_replies_finished = True
                conversation.finish_reply(reply.id, final_reply, write_error)


class _EphemeralRequest:
    """Engine request of a turn that generates no reply."""

    def __init__(self, engine: EngineClient, request_id: int) -> None:
        self._engine = engine
        self._request_id = request_id
        self.is_stopped = False

    def stop(self) -> None:
        self.is_stopped = True
        self._engine.cancel(self._request_id)


def _make_provisional_title(message: Message | None) -> str:
    """Return the provisional title of a conversation that begins with `message`; "" if `message` is None."""
    if message is None:
        return ""
    return first_line(message.text) or next((a.name for a in message.attachments if not a.is_passages), "")
