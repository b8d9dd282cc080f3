"""Chat session: one conversation with one model. The command line and the terminal UI use this interface."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import msgspec

from edgechat.chat import events, titles
from edgechat.chat.attachments import load_attachments
from edgechat.chat.context_counter import ContextCounter
from edgechat.chat.document_turns import DocumentTurns
from edgechat.chat.messages import (
    Conversation,
    Message,
    new_id,
    new_reply,
    new_user_message,
    now_ms,
)
from edgechat.chat.reply_generation import add_repetition_penalty
from edgechat.chat.reply_source import JsonSchema, ModelTarget
from edgechat.chat.second_reply import SecondReplies
from edgechat.chat.session_base import SessionBase
from edgechat.chat.store import Store
from edgechat.chat.turn_runner import Turn, new_replies
from edgechat.config import Settings
from edgechat.engine import protocol
from edgechat.errors import ContextOverflowError, RequestCancelledError, StoreError, UsageError
from edgechat.prompt.renderer import Renderer

if TYPE_CHECKING:
    from edgechat.chat.earlier_replies import EarlierReply
    from edgechat.prompt.agreement.picker import PickMethod
    from edgechat.route_settings import Side

# Maximum wait for the last write of a reply in `close`. A write takes longer only if the disk does not respond.
_LAST_WRITE_TIMEOUT_S: Final = 5.0
# An earlier reply is offered while the conversation consists of a message and at most one reply.
_MAX_OFFER_PATH: Final = 2


class Session(SessionBase):
    """Conversation and the model that replies to its messages. Call `open` first and `close` at the end.

    The model is loaded in an engine on this machine, or belongs to a remote: `source` generates the replies of both.

    Methods that generate a reply are generators. The turn starts with the first iteration, and closing the generator
    stops the reply. Only one turn can run at a time. Other threads may call `stop`, `generate_title`, `warm_cache`,
    `context_usage` and `close`. A message is saved before the engine receives it, and remains saved after most errors.
    """

    def __init__(
        self, store: Store, settings: Settings, target: ModelTarget, conversation: Conversation | None = None,
        flags: Mapping[str, object] = MappingProxyType({}), renderer: Renderer | None = None,
    ) -> None:  # fmt: skip
        """Create a session; the arguments are those of `SessionBase`."""
        super().__init__(store, settings, target, conversation, flags, renderer)
        self._is_next_hard = False
        self.documents = DocumentTurns(lambda: self.source, store, self._read_decode_speed)
        """Searches the documents of this conversation for its new messages."""
        self.second = SecondReplies(self, self._turn_runner, lambda: self._stored_conversation)
        """Replies of other models beside the turns of this session."""
        self._counter = ContextCounter(lambda: self.source, self.documents, self._create_prompt_builder)

    def switch_conversation(self, conversation: Conversation | None = None) -> None:
        self.second.end()
        super().switch_conversation(conversation)

    # Turns

    def send(
        self, text: str, attachments: Sequence[Path] = (), n_replies: int = 1, pick: PickMethod | None = None,
        output_rule: str = "", output_schema: JsonSchema | None = None,
    ) -> Iterator[events.SessionEvent]:  # fmt: skip
        """Send a message and yield events while the model replies; the last event is TurnFinished or TurnInterrupted.

        The model generates `n_replies` alternative replies in parallel; with `pick`, one of up to `n_replies` replies
        is picked. `output_rule` is the grammar rule of their content, which was made from
        `output_schema`; "" and None for free text. The message and the partial
        replies remain saved after a stop or an error. Only ContextOverflowError and TemplateError remove the message,
        because it would prevent all later replies, and GrammarError, because the output rule cannot be enforced. Raises
        EdgechatError.

        Folders among `attachments`, and documents that do not fit in the context, become collections of documents of
        this conversation.
        """
        attachments = yield from self._add_collections(attachments)
        message_attachments, files = load_attachments(attachments)
        message = new_user_message(self.tree.head_id, text, message_attachments)

        def run_turn(turn: Turn) -> Iterator[events.SessionEvent]:
            if pick is not None:
                return self._pick_reply(message.id, turn, n_replies, pick)
            replies = new_replies(message.id, self.reply_model, n_replies, self.source.max_replies)
            return self._run_turn(turn._replace(replies=replies))

        turn = Turn([], message, files, output_rule=output_rule, output_schema=output_schema)
        try:
            yield from self.documents.run(turn, self.tree.path, self.settings, run_turn)
        except ContextOverflowError as error:
            cause = self.find_long_attachment(attachments)
            if not cause:
                raise
            raise ContextOverflowError(cause) from error

    def _add_collections(self, attachments: Sequence[Path]) -> Generator[events.SessionEvent, None, list[Path]]:
        """Create or update collections of folders and long documents; return the other files. Raises DocumentError."""
        sources = [
            path for path in attachments if path.is_dir() or self._counter.is_long_document(path, self.model_path)
        ]
        if sources:
            try:
                names = yield from self.documents.add_sources(
                    sources, self.settings, self._turn_runner.is_stop_requested
                )
            except RequestCancelledError:
                self.clear_stop()
                raise
            self.override_settings(docs=tuple(dict.fromkeys((*self.settings.docs, *names))))
        return [path for path in attachments if path not in sources]

    def count_file_tokens(self, file: Path) -> int:
        """Return the length in tokens of a text file as an attachment; 0 for a folder, which is searched.

        The length is an estimate for a remote model. Raises AttachmentError and EngineError.
        """
        return self._counter.count_file(file, self.model_path)

    def find_long_attachment(self, files: Sequence[Path]) -> str:
        """Return a warning that names the longest of `files` if that file alone exceeds the context; otherwise ""."""
        return self._counter.find_long_attachment(files, self.model_path, self.model_properties)

    def edit(self, message_id: str, text: str) -> Iterator[events.SessionEvent]:
        """Send `text` as an alternative to a user message.

        Yields the same events and raises the same errors as `send`.
        """
        original_message = self.tree[message_id]
        if original_message.role != "user":
            raise UsageError("Only your own messages can be edited. Use /retry or /continue for a reply.")
        parent_id = original_message.parent_id
        attachments = tuple(a for a in original_message.attachments if not a.is_passages)
        message = new_user_message(parent_id, text, attachments)

        def run_turn(turn: Turn) -> Iterator[events.SessionEvent]:
            return self._run_turn(turn._replace(replies=[new_reply(message.id, self.reply_model)]))

        path = self.tree.path_to(parent_id) if parent_id is not None else []
        yield from self.documents.run(Turn([], message), path, self.settings, run_turn)

    def regenerate(
        self, message_id: str | None = None, n_replies: int = 1, pick: PickMethod | None = None
    ) -> Iterator[events.SessionEvent]:
        """Generate alternatives to a reply, or replies to a user message; with `pick`, pick one of them.

        If `message_id` is None, uses the head. Yields the same events and raises the same errors as `send`.
        """
        message = self.tree.message_or_head(message_id)
        parent_id = message.parent_id if message.role == "assistant" else message.id
        if parent_id is None or self.tree[parent_id].role != "user":
            raise UsageError("There is no message to reply to. Send a message first.")
        if pick is not None:
            yield from self._pick_reply(parent_id, Turn([]), n_replies, pick)
            return
        yield from self._run_turn(Turn(new_replies(parent_id, self.reply_model, n_replies, self.source.max_replies)))

    def _run_turn(self, turn: Turn) -> Iterator[events.SessionEvent]:
        """Run a turn with new replies. A route chooses their model."""
        routed = self._routed_source
        if routed is None:
            yield from self._turn_runner.run(self._stored_conversation, turn, self.settings)
            return
        from edgechat.chat.routed_turn import RoutedTurn

        is_hard, self._is_next_hard = self._is_next_hard, False
        routed_turn = RoutedTurn(
            self._turn_runner, self._stored_conversation, routed, self.settings, is_hard=is_hard
        )  # fmt: skip
        yield from routed_turn.run(turn)

    def mark_next_hard(self) -> str:
        """Let the large model of the route reply to the next message; return its name.

        Raises UsageError if the model is not a route, or if the conversation must not be sent to the large model.
        """
        routed = self._routed_source
        if routed is None:
            advice = "Use" if self.settings.route else "Add the table [route] to the settings, and use"
            raise UsageError(f"/hard needs a route. {advice} /model route.")
        if not routed.may_use("large"):
            raise UsageError(
                f"This conversation stays on this machine, so {routed.model_name('large')} cannot reply to it."
            )
        self._is_next_hard = True
        return routed.model_name("large")

    def _use_route(self, side: Side) -> Iterator[events.SessionEvent]:
        """Make the model on one side of the route active, or the other one if the conversation requires it."""
        if (routed := self._routed_source) is not None:
            with self._turn_runner.idle_gate.block_requests():
                yield from routed.use(routed.choose_allowed(side), self.settings)

    def _pick_reply(
        self, parent_id: str, turn: Turn, n_replies: int, method: PickMethod
    ) -> Iterator[events.SessionEvent]:
        """Generate up to `n_replies` replies to the message `parent_id`, which can be new in `turn`, and pick one."""
        from edgechat.chat.reply_picking import PickedTurn  # slow to import

        if (routed := self._routed_source) is not None:
            yield from self._use_route(routed.local_side)
        picked_turn = PickedTurn(
            self._turn_runner, self._stored_conversation, self.model, self.settings, self.source, method, n_replies
        )
        yield from picked_turn.run(turn, parent_id, self.reply_model)

    def continue_reply(self, message_id: str | None = None) -> Iterator[events.SessionEvent]:
        """Continue the text of a reply; if `message_id` is None, of the head.

        If the reply has descendants, a copy of the reply is continued as an alternative. A reply that repeats itself is
        continued with a repetition penalty. Yields the same events and raises the same errors as `send`.
        """
        reply = self.tree.message_or_head(message_id)
        if reply.role != "assistant" or reply.parent_id is None:
            raise UsageError("Only a reply can be continued. Use /retry to generate a reply.")
        continued_reply = msgspec.structs.replace(reply, finish_reason="streaming")
        if any(m.id != reply.id for m in self.tree.subtree(reply.id)):
            copy = msgspec.structs.replace(continued_reply, id=new_id(), created_at_ms=now_ms(), active_child_id=None)
            turn = Turn([copy])
        else:
            turn = Turn([continued_reply], original_reply=reply)
        settings = add_repetition_penalty(self.settings) if reply.repeats_itself else self.settings
        if (routed := self._routed_source) is not None:
            yield from self._use_route("large" if reply.model == routed.model_name("large") else "small")
        yield from self._turn_runner.run(self._stored_conversation, turn, settings)

    def stop(self) -> None:
        """Stop the current reply (or else the next one) and that of a second model. Thread-safe."""
        self.second.stop()
        self._turn_runner.stop()

    def end_thinking(self) -> bool:
        """End the reasoning of the current replies, so that the model answers now; return False if there is none.

        Thread-safe.
        """
        return self._turn_runner.end_thinking()

    def clear_stop(self) -> None:
        """Clear a `stop` request that arrived after the end of the last reply."""
        self._turn_runner.clear_stop()

    # Earlier replies

    def find_earlier_reply(self, message: Message | None = None) -> EarlierReply | None:
        """Return an earlier reply to nearly the same first message; None if there is none.

        `message` is a message that is not sent yet; None stands for the first message of this conversation, as long as
        it has at most one reply below it. Only reads. Thread-safe. Raises StoreError.
        """
        from edgechat.chat.earlier_replies import find_earlier_reply

        path = self.tree.path
        if message is None and 1 <= len(path) <= _MAX_OFFER_PATH:
            message, path = path[0], []
        if message is None or path or message.role != "user":
            return None
        remote = self.reply_model.partition("/")[0] if self.source.is_remote else ""
        return find_earlier_reply(self.store, message, self.settings.system_prompt, self.conversation.id, remote)

    def insert_earlier_reply(self) -> EarlierReply:
        """Copy the earlier reply that `find_earlier_reply` returns into this conversation, and make it the head.

        A reply of the model to the same message becomes an alternative. Raises StoreError, and UsageError if there is
        no earlier reply.
        """
        from edgechat.chat.earlier_replies import copy_reply

        with self._turn_runner.idle_gate.block_requests():
            self._stored_conversation.save_pending()
            earlier = self.find_earlier_reply()
            if earlier is None:
                raise UsageError("No earlier conversation begins with the same question and has a reply.")
            self._stored_conversation.insert_reply(copy_reply(earlier, self.tree.path[0].id))
        return earlier

    # Branches

    def branch_from(self, message_id: str) -> None:
        """End the active path at a message, so that the next message starts a branch. Raises StoreError."""
        self._stored_conversation.set_head(message_id)

    def select_alternative(self, message_id: str) -> None:
        """Switch the active path to a message's branch, and extend it to the most recently active leaf below it.

        Raises StoreError.
        """
        self._stored_conversation.select_branch(message_id)

    def delete(self, message_id: str) -> int:
        """Delete a message and its descendants; return the number of deleted messages. `undo_delete` restores them."""
        return self._stored_conversation.delete(message_id)

    def undo_delete(self) -> bool:
        """Restore the messages of the last `delete`. Return whether there was a deletion to undo.

        Raises StoreError if the messages have been purged from the store.
        """
        return self._stored_conversation.undo_delete()

    # Between turns

    def context_usage(self, text: str = "", files: Sequence[Path] = ()) -> tuple[int, int]:
        """Return the prompt length in tokens with `text` as the next message, and the number of omitted messages.

        Whole documents of the conversation are counted; what a search will find is not known yet.

        Raises ContextOverflowError if the message does not fit; also AttachmentError, TemplateError and EngineError.
        """
        if self.source.is_remote:
            raise UsageError(f"{self.model_name} is a remote model, whose context tokens edgechat cannot count.")
        return self._counter.measure(self.tree.path, self.settings, self.model_path, text, files)

    def warm_cache(self) -> None:
        """Prefill the prompt of the next turn while no turn is running. Uses the prompt cache on disk if possible.

        A remote model is sent nothing.
        """
        if self.source.is_remote or not self.model.is_open:
            return
        attachments, files = self.documents.predict(self.tree.path, self.settings)
        tokens, shared_prefix = self._create_prompt_builder().next_turn_prefix(self.tree.path, attachments, files)
        request = protocol.Generate(
            id=self.model.engine.next_id(), tokens=tokens, max_tokens=0, shared_prefix=shared_prefix,
            conversation=self.conversation.id if self.store.is_persistent else "",
        )  # fmt: skip
        if request.tokens:
            self._turn_runner.idle_gate.generate_if_idle(request)

    def generate_title(self) -> str | None:
        """Generate and save a title for a new conversation while no turn is running; return the title.

        Return None if the conversation already has a final title, titles are off, a turn cancels the request, or the
        model is remote, which is sent no requests that the user did not write.
        """
        path = self.tree.path
        if self.source.is_remote or not (
            self.settings.titles and self.model.is_open and titles.needs_title(self.conversation, path)
        ):
            return None
        builder = self.model.builder
        if builder.reasoning_format is not None and not builder.can_switch_reasoning:
            return None
        request = titles.make_request(
            self.model.engine.next_id(), self._create_prompt_builder(think=False), path, self.settings
        )
        title = titles.parse_title(self._turn_runner.idle_gate.generate_if_idle(request) or ())
        # The user or another process may have changed the title during the generation.
        if not title or not titles.needs_title(self.store.conversation(self.conversation.id), path):
            return None
        self._stored_conversation.update_metadata(title=title)
        return title

    def close(self) -> None:
        """Stop the engine and render processes, save unsaved replies, and close the store.

        A thread that is generating a reply receives EngineDiedError.
        """
        self.second.close()
        self.model.close()
        if self.source is not self._engine_source:
            self.source.close()
        self.documents.close()
        self._turn_runner.idle_gate.wait_until_idle(_LAST_WRITE_TIMEOUT_S)
        try:
            self._stored_conversation.save_pending()
        except StoreError as error:
            self.warnings.append(str(error))
        self.store.close()
