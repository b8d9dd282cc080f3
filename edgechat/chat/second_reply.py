"""Replies of another model to the same message, which grow as alternatives beside the present reply."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Protocol

import msgspec

from edgechat.chat import events
from edgechat.chat.conversation import StoredConversation
from edgechat.chat.conversation_prompt import create_prompt_builder
from edgechat.chat.engine_source import EngineSource
from edgechat.chat.messages import Message, new_reply
from edgechat.chat.reply_source import Generation, ReplyOptions, ReplySource, SingleTarget, SourcePrompt
from edgechat.chat.store import Store
from edgechat.chat.tree import MessageTree
from edgechat.chat.turn_runner import TurnRunner
from edgechat.config import AUTO, OFF, Settings, parse_size
from edgechat.engine.cancellation import Cancellation
from edgechat.errors import (
    CatalogueError,
    EdgechatError,
    PlanError,
    RequestCancelledError,
    UsageError,
)
from edgechat.humanize import format_size, shorten
from edgechat.models.events import ModelLoadProgressed
from edgechat.models.loaded_model import LoadedModel

# Maximum wait for the end of a stopped reply.
_END_TIMEOUT_S: Final = 5.0
# Maximum length of the name of a remote model in a list, so that its host is visible.
_MAX_NAME_CHARS: Final = 28
_OPTIONS: Final = ReplyOptions()


class Chat(Protocol):
    """What a second reply needs of the session beside whose turns it grows."""

    @property
    def settings(self) -> Settings:
        """Settings of the conversation."""

    @property
    def model(self) -> LoadedModel:
        """Model in an engine on this machine; its plan is None if none is loaded."""

    @property
    def source(self) -> ReplySource:
        """Source of the replies of the chat."""

    @property
    def model_path(self) -> Path:
        """File of the local model of the chat; for a remote model, its name as a path."""

    @property
    def model_name(self) -> str:
        """Name of the model of the chat."""


def create_source(
    target: SingleTarget, store: Store, settings: Settings, client_name: str = "chat"
) -> EngineSource | ReplySource:
    """Return a source of replies for a second model, which is independent of the model of the chat."""
    if isinstance(target, Path):
        model = LoadedModel(client_name)
        return EngineSource(
            model, target, lambda: create_prompt_builder(model.builder, store, settings, target.name, think=None)
        )
    from edgechat.chat.remote_source import RemoteSource

    return RemoteSource(target, store.read_attachment, lambda: settings)


def find_last_message(tree: MessageTree) -> Message:
    """Return the last user message of the active path, which a second model answers. Raises UsageError."""
    message = next((m for m in reversed(tree.path) if m.role == "user"), None)
    if message is None:
        raise UsageError("There is no message to reply to yet. Send a message first.")
    return message


def list_second_models(session: Chat) -> list[tuple[str, str]]:
    """Return (name, label) of the models that can answer beside the model of `session`. Asks no server."""
    from edgechat.catalogue import library

    try:
        models = [m for m in library.scan() if m.is_usable and m.path != session.model_path]
    except CatalogueError:  # the records of models are damaged; `edgechat models` reports that
        models = []
    entries = [(m.name, f"{m.name}  {format_size(m.facts.size_bytes)}") for m in models]
    if session.settings.remotes:
        from edgechat.remote.model_lists import find_hosts

        hosts = find_hosts(session.settings.remotes)
        entries += [(name, f"{shorten(name, _MAX_NAME_CHARS)}  (remote, {host})") for name, host in hosts.items()]
    return entries


class SecondReplies:
    """Generates the replies of other models for a session, one at a time, beside its turns.

    A reply has a source of its own: an engine process or a connection, which is closed when the reply ends. So the end
    of one engine leaves the other reply unharmed. `stop`, `end` and the properties are thread-safe.
    """

    def __init__(
        self, session: Chat, turn_runner: TurnRunner, get_conversation: Callable[[], StoredConversation]
    ) -> None:
        """`get_conversation` returns the open conversation of `session`, whose turns `turn_runner` runs."""
        self._session = session
        self._turn_runner = turn_runner
        self._get_conversation = get_conversation
        self.create_source: Callable[[SingleTarget, Store, Settings], ReplySource] = create_source
        self.last_name = ""
        """Name of the model that the user chose last; "" if none was chosen yet."""
        self._busy = threading.Lock()
        self._ended = threading.Event()
        self._ended.set()
        self._source: ReplySource | None = None
        self._generation: Generation | None = None
        self._cancellation = Cancellation()
        self._is_stopped = False
        self._reply: Message | None = None

    @property
    def is_running(self) -> bool:
        """True while a model is loaded for a second reply, or the reply is generated."""
        return not self._ended.is_set()

    @property
    def growing_reply(self) -> Message | None:
        """Current state of the reply that is being generated; None if there is none."""
        generation, reply = self._generation, self._reply
        results = generation.results if generation is not None else []
        return results[0][0] if results else reply

    @property
    def growing_replies(self) -> list[Message]:
        """Current states of all replies that are being generated, by the turn of the session and by a second model."""
        second = self.growing_reply
        return [*self._turn_runner.growing_replies, *([second] if second is not None else [])]

    def stop_reply(self, message_id: str) -> bool:
        """Stop only the reply `message_id`, whichever model generates it; return False if it is not being generated."""
        if any(reply.id == message_id for reply in self._turn_runner.growing_replies):
            self._turn_runner.stop()
            return True
        second = self.growing_reply
        return second is not None and second.id == message_id and self.stop()

    def stop(self) -> bool:
        """Stop the reply that is being generated, and keep its text; return False if there is none."""
        if self._ended.is_set():
            return False
        self._is_stopped = True
        self._cancellation.cancel()
        source, generation = self._source, self._generation
        if generation is not None:
            generation.stop()
        if source is not None and generation is not None:
            source.expect_end()
        elif source is not None:  # the model is being loaded
            source.close()
        return True

    def end(self) -> None:
        """Stop the reply, and wait some seconds until it is saved."""
        if self.stop():
            self._ended.wait(_END_TIMEOUT_S)

    def close(self) -> None:
        """End the processes or connections of the reply, and wait some seconds until it is saved."""
        if self.stop():
            source = self._source
            if source is not None:
                source.close()
            self._ended.wait(_END_TIMEOUT_S)

    def answer(self, name: str, target: SingleTarget) -> Iterator[events.SessionEvent]:
        """Generate a reply of the model `name` to the last message of the active path, and yield events.

        The head of the conversation does not change. The last event is SecondReplyEnded. Raises UsageError if a second
        reply is being generated already or if `target` is the model of the chat, PlanError if the model does not fit
        in memory beside it, and EdgechatError. The text so far remains saved.
        """
        session = self._session
        if isinstance(target, Path) and target == session.model_path and not session.source.is_remote:
            raise UsageError(f"{name} is the model of this chat. /retry generates another reply of it.")
        conversation = self._get_conversation()
        message = find_last_message(conversation.tree)
        if not self._busy.acquire(blocking=False):
            raise UsageError("Another model is replying already. Wait for its end, or stop it with Esc or Ctrl-C.")
        try:
            self._is_stopped, self._cancellation = False, Cancellation()
            self.last_name = name
            self._ended.clear()
            yield from self._answer(name, target, conversation, message)
        finally:
            self._source = self._generation = self._reply = None
            self._ended.set()
            self._busy.release()

    def _answer(
        self, name: str, target: SingleTarget, conversation: StoredConversation, message: Message
    ) -> Iterator[events.SessionEvent]:
        settings = self._leave_room(name, target)
        source = self._source = self.create_source(target, conversation.store, settings)
        try:
            if not source.is_remote:
                yield ModelLoadProgressed(phase="loading", message=f"Loading {name}, too")
            self._open(name, source, settings)
            model = target.name
            reply = self._reply = new_reply(message.id, model)
            conversation.append_beside(reply)
            yield from self._generate(conversation, source, settings, reply)
        except PlanError:
            raise
        except EdgechatError as error:
            if self._is_stopped and self._reply is None:
                raise RequestCancelledError(f"{name} was stopped before it replied.") from error
            error.args = (f"{name}: {error}",)
            raise
        finally:
            source.close()

    def _leave_room(self, name: str, target: SingleTarget) -> Settings:
        """Return the settings of the second model, whose memory budget excludes the model of the chat.

        Raises PlanError if that leaves nothing.
        """
        session, settings = self._session, self._session.settings
        if settings.draft_model not in {AUTO, OFF}:  # it drafts for the model of the chat
            settings = msgspec.structs.replace(settings, draft_model=AUTO)
        plan = session.model.plan
        budget_bytes = parse_size(settings.budget) if settings.budget else None
        if budget_bytes is None or plan is None or not isinstance(target, Path):
            return settings
        left_bytes = budget_bytes - plan.estimate.engine
        if left_bytes <= 0:
            raise PlanError(
                f"{name} does not fit beside {session.model_name}, which uses {format_size(plan.estimate.engine)} of "
                f"the budget of {format_size(budget_bytes)}. {_describe_way_out(name)}"
            )
        return msgspec.structs.replace(settings, budget=str(left_bytes))

    def _open(self, name: str, source: ReplySource, settings: Settings) -> None:
        try:
            source.open(settings, lambda event: None)
        except PlanError as error:
            raise PlanError(
                f"{name} does not fit beside {self._session.model_name}. {error} {_describe_way_out(name)}"
            ) from error
        if self._is_stopped:
            raise RequestCancelledError("stopped")

    def _generate(
        self, conversation: StoredConversation, source: ReplySource, settings: Settings, reply: Message
    ) -> Iterator[events.SessionEvent]:
        started_at = time.monotonic()
        is_finished = False
        final_reply: Message | None = None
        try:
            path = conversation.tree.path_to(reply.id)
            yield events.TurnStarted(message=path[-2], reply=reply)

            def build_prompt(max_n_ctx: int | None = None) -> SourcePrompt | None:
                try:
                    return source.build_prompt(path, self._cancellation, max_n_ctx, _OPTIONS)
                except RequestCancelledError:
                    return None

            prompt = build_prompt() if not self._is_stopped else None
            if prompt is not None and prompt.start_id is not None:
                reply = msgspec.structs.replace(reply, context_start_id=prompt.start_id)
                yield events.TurnsDropped(n_messages=prompt.start, context_start_id=prompt.start_id)
            generation = self._generation = source.create_generation(prompt, settings, _OPTIONS, build_prompt)
            if self._is_stopped:
                generation.stop()
            for event in generation.run(conversation.store, conversation.metadata, [reply], started_at):
                if isinstance(event, events.ReplyTextGenerated):
                    conversation.update_beside(generation.results[0][0])
                yield event
        finally:
            results = self._generation.results if self._generation is not None else []
            interrupted_reply = msgspec.structs.replace(reply, finish_reason="interrupted")
            final_reply, write_error = results[0] if results else (interrupted_reply, "")
            if not results and reply.id in conversation.tree:
                conversation.save_reply(final_reply)
            is_finished = conversation.finish_beside(reply.id, final_reply, write_error)
        number, count = 0, 0
        if is_finished and final_reply.id in conversation.tree:
            ids = conversation.tree.alternatives(final_reply.id)
            number, count = ids.index(final_reply.id) + 1, len(ids)
        yield events.SecondReplyEnded(reply=final_reply, number=number, n_alternatives=count)


def _describe_way_out(name: str) -> str:
    return f"To free memory, close other programs; /model {name} and then /retry use it instead of the present model."
