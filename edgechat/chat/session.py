"""One conversation with one model at a time: what the command line and the terminal both stand on."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

import msgspec

from edgechat.chat import events, titles
from edgechat.chat.attachments import load_attachments
from edgechat.chat.conversation import StoredConversation
from edgechat.chat.conversation_prompt import ConversationOptions, ConversationPrompt, ConversationPromptBuilder
from edgechat.chat.idle import IdleGate
from edgechat.chat.messages import Attachment, Conversation, Message, first_line, new_id, new_reply, now_ms
from edgechat.chat.personas import PERSONA_SETTINGS
from edgechat.chat.store import Store
from edgechat.chat.tree import MessageTree
from edgechat.chat.turn_runner import TurnRunner
from edgechat.config import Settings, check, with_overrides
from edgechat.engine import protocol
from edgechat.engine.client import EngineClient
from edgechat.errors import (
    ContextOverflowError,
    EngineError,
    StoreError,
    TemplateError,
    UsageError,
)
from edgechat.models.events import LoadCallback, ModelLoadProgressed
from edgechat.models.loaded_model import LoadedModel
from edgechat.planner.load_plan import LoadPlan
from edgechat.prompt.builder import PromptBuilder

# An answer ends at once when its engine does; only a disk that hangs takes longer to write its last word.
_LAST_WORD_S: Final = 5.0

# A model thinks for some hundreds of tokens before it answers; below this speed that is most of a minute.
_THINKING_TPS: Final = 15.0


class Session:
    """A conversation: call `open` once, then `send` and its siblings for each turn, and `close` at the end.

    Methods that answer are generators: nothing happens until they are iterated, and the answer stops when the
    iteration does. One at a time; `stop`, `make_title`, `warm`, `context_use` and `close` may be called from other threads.
    Whatever is said is in the store before the engine sees it, and stays there whatever happens after.
    """

    def __init__(
        self, store: Store, settings: Settings, model_path: Path, conversation: Conversation | None = None,
        flags: Mapping[str, object] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        """Go on with `conversation`, which may also be a new one that only has its settings.

        `settings` hold for every conversation, under what was chosen for one; `flags` over that.
        """
        self.store = store
        self._base, self._flags = settings, flags
        self._chosen: dict[str, object] = {}
        """Of this conversation, since the program started: over the flags."""
        self.settings = with_overrides(settings, conversation.settings if conversation else {}, flags)
        self.model_path = model_path
        self._kept = StoredConversation(
            store, conversation or Conversation(id=new_id(), model=settings.model, created_at_ms=now_ms())
        )
        self.model = LoadedModel()
        self._turn: TurnRunner | None = None
        self._stop_asked = False
        self._has_generated = False
        self._idle = IdleGate(self.model.engine)

    @property
    def engine(self) -> EngineClient:
        """What generates."""
        return self.model.engine

    @property
    def plan(self) -> LoadPlan | None:
        """How the model is loaded, and why."""
        return self.model.plan

    @property
    def warnings(self) -> list[str]:
        """What is not as the user may think."""
        return self.model.warnings

    @property
    def conversation(self) -> Conversation:
        """Title, model, settings and the like, as they are in the store."""
        return self._kept.about

    @property
    def tree(self) -> MessageTree:
        """What was said; not to be changed."""
        return self._kept.tree

    @property
    def loaded(self) -> protocol.Loaded | None:
        """What the engine said of the model; None until it is loaded."""
        return self.engine.loaded

    @property
    def reasoning_enabled(self) -> bool:
        """True if the model reasons before it answers: as chosen, else where that is no long wait on this machine."""
        if not self.model.is_open or self.model.builder.reasoning_format is None:
            return False
        chosen = self.settings.reasoning
        if chosen is not None:
            return chosen
        speed = self.store.decode_tps(self.model_path.name)
        return speed is not None and speed >= _THINKING_TPS

    def load_messages(self) -> None:
        """Read what was said, if that was not done yet. Raises StoreError."""
        if not len(self.tree) and self.conversation.head_id is not None:
            self._kept.reload()

    def switch_conversation(self, conversation: Conversation | None = None) -> None:
        """Go on with another conversation, or begin a new one; the model stays. Raises StoreError.

        Where what was said here could not be written yet, and still cannot, this conversation stays.
        """
        with self._idle.turn():
            self._kept.save_pending()
            new = Conversation(id=new_id(), model=self.conversation.model, created_at_ms=now_ms())
            kept = StoredConversation(self.store, conversation or new)
            if conversation is not None:
                kept.reload()
            self._kept = kept
            self._chosen = {}
            self._settle()

    def open(self, on_event: LoadCallback = lambda event: None) -> protocol.Loaded:
        """Read the conversation, check the model file, plan, and load it. Raises EdgechatError."""
        self.load_messages()
        return self.model.open(self.model_path, self.settings, on_event)

    def change_model(
        self, model: str, model_path: Path, on_event: LoadCallback = lambda event: None
    ) -> protocol.Loaded:
        """Let another model answer from here on; it reads the whole conversation. Raises EdgechatError."""
        with self._idle.turn():
            before, self.model_path = self.model_path, model_path
            try:
                loaded = self.open(on_event)
            except Exception:
                self.model_path = before
                if self.loaded is None:  # the engine gave up the old model for one that it could not load
                    self.open(on_event)
                raise
        self._kept.update_metadata(model=model)
        return loaded

    # Saying something

    def send(self, text: str, attachments: Sequence[Path] = (), n_replies: int = 1) -> Iterator[events.SessionEvent]:
        """Say something and yield the answer as it comes; the last event is TurnFinished or TurnInterrupted.

        The message stays in the conversation, and so does what was answered before a stop, an error, or the end
        of the iteration. With `n_answers` several are made side by side, alternatives to each other. Only a message that the model cannot be asked (ContextOverflowError, TemplateError) is
        taken back: with it in the conversation, no later one could be asked either. Raises EdgechatError.
        """
        yield from self._say(self.tree.head_id, text, *load_attachments(attachments, self.model_path.stem), n_replies)

    def edit(self, message_id: str, text: str) -> Iterator[events.SessionEvent]:
        """Say it differently: an alternative beside a message of the user, and its answer."""
        message = self.tree[message_id]
        if message.role != "user":
            raise UsageError("only what you said can be edited; an answer can be regenerated or continued")
        yield from self._say(message.parent_id, text, message.attachments, {})

    def regenerate(self, message_id: str | None = None, n_replies: int = 1) -> Iterator[events.SessionEvent]:
        """Other answers beside this one (the last one), or the first to a message that has none."""
        message = self._at(message_id)
        asked = message.parent_id if message.role == "assistant" else message.id
        if asked is None or self.tree[asked].role != "user":
            raise UsageError("there is nothing that this would be an answer to")
        yield from self._answer([], self._new_answers(asked, n_replies))

    def continue_reply(self, message_id: str | None = None) -> Iterator[events.SessionEvent]:
        """Go on with an answer (the last one) where it stopped; with a copy of it if the conversation went on."""
        answer = self._at(message_id)
        if answer.role != "assistant" or answer.parent_id is None:
            raise UsageError("only an answer can be continued")
        if any(m.id != answer.id for m in self.tree.subtree(answer.id)):
            copy = msgspec.structs.replace(answer, id=new_id(), created_at_ms=now_ms(), active_child_id=None)
            yield from self._answer([], [msgspec.structs.replace(copy, finish_reason="streaming")])
        else:
            yield from self._answer([], [msgspec.structs.replace(answer, finish_reason="streaming")], before=answer)

    def _at(self, message_id: str | None) -> Message:
        message = self.tree.head if message_id is None else self.tree[message_id]
        if message is None:
            raise UsageError("nothing was said in this conversation yet")
        return message

    def _say(
        self,
        parent_id: str | None,
        text: str,
        attachments: tuple[Attachment, ...],
        files: Mapping[str, bytes],
        n_answers: int = 1,
    ) -> Iterator[events.SessionEvent]:
        message = Message(
            id=new_id(), parent_id=parent_id, role="user", text=text, attachments=attachments, created_at_ms=now_ms()
        )
        yield from self._answer([message], self._new_answers(message.id, n_answers), files=files)

    def _new_answers(self, asked_id: str, n_answers: int) -> list[Message]:
        most = self.plan.options.n_seqs if self.plan is not None else 1
        if not 1 <= n_answers <= most:
            raise UsageError(f"{n_answers} answers side by side are not possible: 1 to {most} are, with this model")
        return [new_reply(asked_id, self.model_path.name) for _ in range(n_answers)]

    def _answer(
        self,
        said: list[Message],
        answers: list[Message],
        before: Message | None = None,
        files: Mapping[str, bytes] = MappingProxyType({}),
    ) -> Iterator[events.SessionEvent]:
        """Keep what is `said` and the answers to it, and have them written; `before` is an answer that goes on."""
        with self._idle.turn():
            yield from self._kept_answer(said, answers, before, files)

    def _kept_answer(
        self, said: list[Message], answers: list[Message], before: Message | None, files: Mapping[str, bytes]
    ) -> Iterator[events.SessionEvent]:
        self._kept.save_pending()
        head_id = self.tree.head_id
        new = [*said, *answers] if before is None else []
        if before is None:
            first = next((first_line(m.text) or m.attachments[0].name for m in said), "")
            self._kept.append(new, files, title=first)
            if len(answers) > 1:
                self.branch_from(answers[0].id)
        else:
            self._kept.claim_reply(answers[0])
        self._has_generated = False
        try:
            yield events.TurnStarted(message=self.tree[answers[0].parent_id or ""], reply=answers[0])
            yield from self._generate(answers)
        except (ContextOverflowError, TemplateError):
            if before is not None:
                self._kept.save_reply(before)
            else:
                self._kept.discard(new)
            if head_id is not None:
                self.branch_from(head_id)
            raise
        finally:
            for answer in answers:
                if not self._has_generated and answer.id in self.tree:
                    self._kept.save_reply(msgspec.structs.replace(answer, finish_reason="interrupted"))

    def _generate(self, answers: list[Message]) -> Iterator[events.SessionEvent]:
        started_s = time.monotonic()
        builder = self.model.builder
        if self.engine.needs_restart:
            yield ModelLoadProgressed(phase="loading", message="restarting the engine")
            self.model.revive()
        path = self.tree.path_to(answers[0].id)
        built = self._build(builder, path)
        if built.start:
            start_id = path[built.start].id
            answers = [msgspec.structs.replace(a, context_start_id=start_id) for a in answers]
            yield events.TurnsDropped(n_messages=built.start, context_start_id=start_id)
        turn = TurnRunner(self.engine, builder, self.settings)
        self._turn = turn
        if self._stop_asked:
            turn.stop()
        try:
            yield from turn.run(self.store, self.conversation, answers, built, started_s)
        except EngineError as error:
            if self.model.fall_back_to_cpu(error, self.settings):
                error.args = (f"{error}\nthe GPU failed: from here on the CPU computes; ask again",)
            raise
        finally:
            self._turn, self._stop_asked = None, False
            for answer, (written, problem) in zip(answers, turn.written):  # noqa: B905  (none, before it began)
                self._has_generated = True
                self._kept.finish_reply(answer.id, written, saved=not problem)

    def _build(
        self, builder: PromptBuilder, path: list[Message], *, think: bool | None = None,
        files: Mapping[str, bytes] = MappingProxyType({}),
    ) -> ConversationPrompt:  # fmt: skip
        manner = self._manner(path)
        prompts = ConversationPromptBuilder(builder, self.store.read_attachment)
        return prompts.build(path, manner if think is None else manner._replace(think=think), files)

    def _manner(self, path: list[Message]) -> ConversationOptions:
        answered = next((m for m in reversed(path) if m.role == "assistant" and m.stats), None)
        last_start = answered.context_start_id if answered is not None else None
        previous = next((i for i, m in enumerate(path) if m.id == last_start), 0)
        return ConversationOptions(
            self.settings.system_prompt, self.reasoning_enabled, self.settings.max_tokens, previous
        )

    def stop(self) -> None:
        """Stop the answer that is coming, also before its first word, or before `send` began; from any thread."""
        self._stop_asked = True
        turn = self._turn
        if turn is not None:
            turn.stop()

    def clear_stop(self) -> None:
        """Forget a `stop` that came too late for the last answer: the next one is to be heard."""
        self._stop_asked = False

    # Moving about in the tree

    def branch_from(self, message_id: str) -> None:
        """Go on from this message: the next one becomes an alternative to what followed it."""
        self._kept.set_head(message_id)

    def select_alternative(self, message_id: str) -> None:
        """Go on with this alternative, and below it with what was active there last."""
        self._kept.select_branch(message_id)

    def delete(self, message_id: str) -> int:
        """Delete a message and all below it; returns how many. `undo_delete` brings them back."""
        return self._kept.delete(message_id)

    def undo_delete(self) -> bool:
        """Bring back what was deleted last; False if there is nothing. Raises StoreError if it is gone for good."""
        return self._kept.undo_delete()

    # Around a turn

    def context_usage(self, text: str = "", files: Sequence[Path] = ()) -> tuple[int, int]:
        """Tokens of the prompt if `text` were sent now, and how many messages at the front would leave for it.

        Raises ContextOverflowError if it does not fit, AttachmentError, TemplateError, EngineError.
        """
        attachments, contents = load_attachments(files, self.model_path.stem)
        draft = Message(id="", role="user", text=text, attachments=attachments)
        path = self.tree.path
        built = self._build(self.model.builder, [*path, draft] if text or files else path, files=contents)
        return len(built.prompt.tokens), built.start

    def warm_cache(self) -> None:
        """Have the engine read the conversation while nobody waits, or fetch what it read of it on another day."""
        if not self.model.is_open:
            return
        prompts, path = ConversationPromptBuilder(self.model.builder, self.store.read_attachment), self.tree.path
        request = protocol.Generate(
            id=self.engine.next_id(), tokens=prompts.next_turn_prefix(path, self._manner(path)), max_tokens=0,
            conversation=self.conversation.id if self.store.is_persistent else "",
        )  # fmt: skip
        if request.tokens:
            self._idle.generate_if_idle(request)

    def override_settings(self, **values: object) -> None:
        """Answer this conversation otherwise, from here on: some of a persona's settings. Raises UsageError."""
        if "model" in values:
            raise UsageError("the model is changed with /model")
        for name, value in values.items():
            wrong = (
                check(name, value) if name in PERSONA_SETTINGS else f"only these can be: {', '.join(PERSONA_SETTINGS)}"
            )
            if wrong:
                raise UsageError(f"{name} cannot be chosen: {wrong}")
        self._kept.update_metadata(settings={**self.conversation.settings, **values})
        self._chosen |= values
        self._settle()

    def rename(self, title: str) -> None:
        """Give the conversation another title."""
        self._kept.update_metadata(title=first_line(title, 200))

    def pin(self, *, on: bool) -> None:
        """List the conversation first, or no longer."""
        self._kept.update_metadata(pinned=on)

    def _settle(self) -> None:
        self.settings = with_overrides(self._base, self.conversation.settings, self._flags, self._chosen)

    def set_base_settings(self, settings: Settings) -> None:
        """Let other settings hold from here on, under what was chosen; the model is loaded as it is."""
        self._base = settings
        self._settle()

    def generate_title(self) -> str | None:
        """Let the model name a new conversation, in idle time; None if it has a name, or something came between."""
        path = self.tree.path
        if not (self.settings.titles and self.model.is_open and titles.needs_title(self.conversation, path)):
            return None
        builder = self.model.builder
        if builder.reasoning_format is not None and not builder.can_switch_reasoning:
            return None
        asked = Message(id="", role="user", text=titles.REQUEST)
        built = self._build(builder, [*path, asked], think=False)
        request = protocol.Generate(
            id=self.engine.next_id(), tokens=built.prompt.tokens, max_tokens=titles.MAX_TOKENS, ephemeral=True,
            sampling=msgspec.structs.replace(self.settings.sampling, temperature=0.0),
        )  # fmt: skip
        heard = self._idle.generate_if_idle(request)
        title = titles.parse_title(heard or ())
        # Meanwhile it may have got another one, here or in another process.
        if not title or not titles.needs_title(self.store.conversation(self.conversation.id), path):
            return None
        self._kept.update_metadata(title=title)
        return title

    def close(self) -> None:
        """End the processes behind this conversation; what was said is written before this returns.

        An answer that another thread is hearing ends with EngineDiedError there.
        """
        self.model.close()
        self._idle.wait_until_idle(_LAST_WORD_S)
        try:
            self._kept.save_pending()
        except StoreError as error:
            self.warnings.append(str(error))
        self.store.close()
