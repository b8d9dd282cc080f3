"""Conversation, settings and model of a session, without its turns."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

from edgechat.catalogue import library
from edgechat.chat.conversation import StoredConversation
from edgechat.chat.conversation_prompt import ConversationPromptBuilder, create_prompt_builder
from edgechat.chat.engine_source import EngineSource
from edgechat.chat.messages import Conversation, first_line, new_id, now_ms
from edgechat.chat.personas import PERSONA_SETTINGS
from edgechat.chat.reply_source import ModelTarget, ReplySource, SingleTarget
from edgechat.chat.store import Store
from edgechat.chat.tree import MessageTree
from edgechat.chat.turn_runner import TurnRunner
from edgechat.config import LOAD_SETTINGS, Settings, check, with_overrides
from edgechat.engine import protocol
from edgechat.errors import EdgechatError, UsageError
from edgechat.models.events import LoadCallback
from edgechat.models.loaded_model import LoadedModel
from edgechat.prompt.renderer import Renderer
from edgechat.prompt.thinking import THINKING_OFF
from edgechat.remote_settings import ROUTE

if TYPE_CHECKING:
    from edgechat.chat.route_target import Route
    from edgechat.chat.routed_source import RoutedSource
    from edgechat.remote.target import RemoteModel


class SessionBase:
    """Base class of `Session`: the open conversation, its settings, and the model that replies."""

    def __init__(
        self, store: Store, settings: Settings, target: ModelTarget, conversation: Conversation | None = None,
        flags: Mapping[str, object] = MappingProxyType({}), renderer: Renderer | None = None,
    ) -> None:  # fmt: skip
        """Create a session for `conversation` (existing or new); None creates a new conversation.

        `target` is a model file, or a model of a remote. `renderer` is a render process that has already been started;
        None starts one in `open`.

        Settings in increasing priority: `settings` of all conversations, settings of `conversation`, command-line
        `flags`, and values set by `override_settings`.
        """
        self.store = store
        self._base_settings, self._flags = settings, flags
        self._overrides: dict[str, object] = {}
        self.settings = with_overrides(settings, conversation.settings if conversation else {}, flags)
        self.model_path = Path()
        """File of the local model; for a remote model, its name as a path, under which no file exists."""
        self.model_error: EdgechatError | None = None
        """Error that `open` raises because there is no model at `model_path`; None if the model exists."""
        if conversation is None:
            model_name = settings.model if isinstance(target, Path) else target.name
            conversation = Conversation(id=new_id(), model=model_name, created_at_ms=now_ms())
        self._chosen_model = conversation.model
        """Name by which the user chose the current model; new conversations record it."""
        self._stored_conversation = StoredConversation(store, conversation)
        self.model = LoadedModel(renderer=renderer)
        self._engine_source = EngineSource(self.model, Path(), self._create_prompt_builder)
        self.source: ReplySource = self._engine_source
        """What generates the replies: the engine of `model`, or a remote."""
        self._set_target(target)
        self._model_names: dict[Path, str] = {}
        self._turn_runner = TurnRunner(self.model, lambda: self.source)

    def _set_target(self, target: ModelTarget) -> None:
        """Choose the source of the next replies; does not open it."""
        if isinstance(target, Path):
            self.model_path = self._engine_source.path = target
            self.source = self._engine_source
        elif target.name == ROUTE:
            self._set_route(cast("Route", target))
        else:
            self.model_path = Path(target.name)
            self.source = self._create_source(cast("RemoteModel", target))

    def _set_route(self, route: Route) -> None:
        from edgechat.chat.routed_source import RoutedSource, find_engine_path

        path = find_engine_path(route)
        self.model_path = self._engine_source.path = path or Path(route.name)
        small, large = (
            self._engine_source if target is path else self._create_source(target)
            for target in (route.small, route.large)
        )
        self.source = RoutedSource(
            route, {"small": small, "large": large}, self._engine_source,
            lambda: not self.store.is_persistent or self.conversation.model != ROUTE,
        )  # fmt: skip

    def _create_source(self, target: SingleTarget) -> ReplySource:
        """Return a source for a remote model, or for a local one beside the model of this session."""
        if isinstance(target, Path):
            model = LoadedModel(self.model.client_name)
            return EngineSource(
                model, target,
                lambda: create_prompt_builder(model.builder, self.store, self.settings, target.name, think=None),
            )  # fmt: skip
        from edgechat.chat.remote_source import RemoteSource

        return RemoteSource(target, self.store.read_attachment, lambda: self.settings)

    @property
    def _routed_source(self) -> RoutedSource | None:
        """Source of the replies if the model is a route; None for other models."""
        return cast("RoutedSource", self.source) if hasattr(self.source, "route") else None

    @property
    def _opens_engine(self) -> bool:
        """True if `open` loads a model; False for a remote model, and for a route whose small model is remote."""
        routed = self._routed_source
        return self.source is self._engine_source if routed is None else routed.opens_engine

    @property
    def is_open(self) -> bool:
        """True if the session can generate replies: its model is loaded, or belongs to a remote."""
        return self.source.is_open

    @property
    def reply_model(self) -> str:
        """Name of the model that new replies record: a file name, or `REMOTE/MODEL`."""
        return self.source.name if self.source.is_remote else self.model_path.name

    @property
    def warnings(self) -> list[str]:
        """Warnings for the user. Callers may add and remove warnings."""
        return self.model.warnings

    @property
    def conversation(self) -> Conversation:
        """Metadata of the conversation."""
        return self._stored_conversation.metadata

    @property
    def model_name(self) -> str:
        """Name of the model in the list of models. The first call for a local model may read the disk."""
        path = self.model_path
        if self.source.is_remote:
            return self.reply_model
        if path not in self._model_names:
            self._model_names[path] = library.find_display_name(path)
        return self._model_names[path]

    @property
    def base_settings(self) -> Settings:
        """Settings of all conversations. `settings` adds the settings of this conversation and of the command line."""
        return self._base_settings

    @property
    def save_error(self) -> str:
        """Reason why the last reply is not saved; "" if it is saved. If not empty after `close`, the reply is lost."""
        return self._stored_conversation.save_error

    @property
    def tree(self) -> MessageTree:
        """Messages of the conversation; read-only for callers."""
        return self._stored_conversation.tree

    @property
    def model_properties(self) -> protocol.Loaded | None:
        """Properties of the loaded model, as the engine reports them; None without one, and for a remote model."""
        return None if self.source.is_remote else self.model.engine.model_properties

    def load_messages(self) -> None:
        """Read the messages of the conversation from the store, unless they are loaded already. Raises StoreError."""
        if not len(self.tree) and self.conversation.head_id is not None:
            self._stored_conversation.reload()
            is_sent = self.source.is_remote or self._routed_source is not None
            if is_sent and self.conversation.model != self._chosen_model:
                self._stored_conversation.update_metadata(model=self._chosen_model)
            self.warnings.extend(self.store.take_notices())

    def switch_conversation(self, conversation: Conversation | None = None) -> None:
        """Switch to another conversation, or to a new one if `conversation` is None; the model stays loaded.

        A remote model receives no message of a conversation for which the user did not choose it.

        Raises StoreError if an unsaved reply cannot be saved or if `conversation` cannot be read; the session then
        keeps its current conversation.
        """
        with self._turn_runner.idle_gate.block_requests():
            self._stored_conversation.save_pending()
            new_conversation = Conversation(id=new_id(), model=self._chosen_model, created_at_ms=now_ms())
            stored_conversation = StoredConversation(self.store, conversation or new_conversation)
            if conversation is not None:
                stored_conversation.reload()
            self._stored_conversation = stored_conversation
            self._overrides = {}
            self._apply_settings()

    def open(self, on_event: LoadCallback = lambda event: None) -> None:
        """Load the messages of the conversation, then plan and load the model. Raises EdgechatError.

        A remote model is only checked for its API key; its server is not asked before the first message.
        """
        self.load_messages()
        if self.model_error is not None:
            raise self.model_error
        self.source.open(self.settings, on_event)
        if not self._opens_engine:  # a model that was loaded before, and its processes
            self.model.unload()
        if "thinking" in self._flags and (problem := self.describe_useless_limit()):
            self.warnings.append(problem)

    def describe_useless_limit(self) -> str:
        """Return a sentence if the limit of reasoning has no effect, because the model does not reason; else ""."""
        is_on = self.settings.thinking is not None and str(self.settings.thinking) not in THINKING_OFF
        if not is_on or self.source.is_remote or not self.model.is_open or self.model.builder.can_reason:
            return ""
        return f"The limit has no effect, because {self.model_name} is not a reasoning model."

    def change_model(self, model: str, target: ModelTarget, on_event: LoadCallback = lambda event: None) -> None:
        """Use another model for the next replies. If this raises EdgechatError, the previous model is kept."""
        with self._turn_runner.idle_gate.block_requests():
            previous_source, previous_path, previous_error = self.source, self.model_path, self.model_error
            self._set_target(target)
            self.model_error = None
            if not self.source.is_remote:
                self._model_names[self.model_path] = library.find_display_name(self.model_path)
            try:
                self.open(on_event)
            except Exception:
                self.source, self.model_path, self.model_error = previous_source, previous_path, previous_error
                self._engine_source.path = previous_path
                # The failed load has already unloaded the previous model.
                if not previous_source.is_remote and self.model_properties is None and previous_error is None:
                    self.open(on_event)
                raise
            if previous_source is not self._engine_source:
                previous_source.close()
        self._chosen_model = model
        self._stored_conversation.update_metadata(model=model)

    def _create_prompt_builder(self, *, think: bool | None = None) -> ConversationPromptBuilder:
        """Create a prompt builder for the current model and settings; `think` is as in `create_prompt_builder`."""
        return create_prompt_builder(self.model.builder, self.store, self.settings, self.model_path.name, think=think)

    def _read_decode_speed(self) -> float | None:
        return self.store.decode_tps(self.reply_model) if self.model.plan is not None else None

    # Settings

    def override_settings(self, **values: object) -> None:
        """Change settings of this conversation. `values` may contain all `PERSONA_SETTINGS` except the model.

        Raises UsageError and StoreError.
        """
        if "model" in values:
            raise UsageError("Use /model to change the model")
        for name, value in values.items():
            if name in PERSONA_SETTINGS:
                problem = check(name, value)
            elif name in LOAD_SETTINGS and name in self._flags:
                problem = "was set on the command line. To change it, start edgechat again with another value."
            elif name in LOAD_SETTINGS:
                problem = (
                    "is used when a model is loaded. Change it in /settings, then load the model with /model NAME."
                )
            else:
                problem = "is not a conversation setting. /set and Tab list those; /settings changes the others."
            if problem:
                raise UsageError(f"{name} {problem}")
        if values.get("thinking") is not None:
            values = {"reasoning": None, **values}  # the new limit also turns reasoning on or off
        self._stored_conversation.update_metadata(settings={**self.conversation.settings, **values})
        self._overrides |= values
        self._apply_settings()

    def set_base_settings(self, settings: Settings) -> None:
        """Replace the settings that apply to all conversations. Does not reload the model."""
        self._base_settings = settings
        self._apply_settings()

    def _apply_settings(self) -> None:
        self.settings = with_overrides(self._base_settings, self.conversation.settings, self._flags, self._overrides)

    def rename(self, title: str) -> None:
        """Change the title of the conversation to the first line of `title`. Raises StoreError."""
        self._stored_conversation.update_metadata(title=first_line(title, 200))

    def pin(self, *, on: bool) -> None:
        """Pin the conversation to the top of the list, or unpin it. Raises StoreError."""
        self._stored_conversation.update_metadata(pinned=on)
