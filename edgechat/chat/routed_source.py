"""Source of replies with two models, of which one is active; a private conversation never goes to a remote."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from edgechat.chat import events
from edgechat.chat.engine_source import EngineSource
from edgechat.chat.messages import Message
from edgechat.chat.reply_source import Generation, ReplyOptions, ReplySource, SourcePrompt
from edgechat.chat.route_target import Route
from edgechat.config import AUTO, OFF, Settings, parse_size
from edgechat.engine.cancellation import Cancellation
from edgechat.errors import PlanError, UsageError
from edgechat.models.events import LoadCallback, ModelLoadProgressed
from edgechat.route_settings import Side


class RoutedSource:
    """Source of replies that uses the small or the large model of a route. Implements `ReplySource`.

    `use` makes one of them active, and loads it; the other methods use the active one. Both local models stay in memory
    if they fit; otherwise each one is loaded after the other has left.
    """

    def __init__(
        self, route: Route, sources: dict[Side, ReplySource], engine: ReplySource, is_private: Callable[[], bool]
    ) -> None:
        """`engine` is the source that the session owns and closes; it can be one of `sources`.

        `is_private` returns True if the open conversation must stay on this machine.
        """
        self.route = route
        self.active: Side = "small"
        self._sources = sources
        self._engine = engine
        self._is_private = is_private
        self._is_open = False

    @property
    def is_private(self) -> bool:
        """True if the open conversation must stay on this machine."""
        return self._is_private()

    @property
    def source(self) -> ReplySource:
        """Source of the active model."""
        return self._sources[self.active]

    def model_name(self, side: Side) -> str:
        """Return the name of a model that replies record: a file name, or `REMOTE/MODEL`."""
        target = self.route.target(side)
        return target.name

    def may_use(self, side: Side) -> bool:
        """Return False if the open conversation must not be sent to this model."""
        return not (self._sources[side].is_remote and self.is_private)

    def choose_allowed(self, side: Side) -> Side:
        """Return `side`, or the other one if the conversation must stay on this machine. Raises UsageError."""
        other: Side = "large" if side == "small" else "small"
        for candidate in (side, other):
            if self.may_use(candidate):
                return candidate
        raise UsageError(
            "This conversation stays on this machine, but both models of the route are remote, so nothing was sent. "
            "Choose a model for it with -m NAME, or with /model NAME in the chat."
        )

    @property
    def local_side(self) -> Side:
        """Side of the model in the engine of the session: the small model if it is local, or else a local large one."""
        return "small" if not self._sources["small"].is_remote or self._sources["large"].is_remote else "large"

    @property
    def is_open(self) -> bool:
        return self._is_open

    @property
    def opens_engine(self) -> bool:
        """True if `open` loads a model into the engine of the session."""
        return self._sources["small"] is self._engine

    @property
    def is_remote(self) -> bool:
        """True if both models are remote."""
        return all(source.is_remote for source in self._sources.values())

    @property
    def name(self) -> str:
        """Name of the model in the engine of the session; that of the small model if both are remote."""
        return self.model_name(self.local_side)

    @property
    def description(self) -> str:
        small, large = (self._sources[side].description or self.model_name(side) for side in ("small", "large"))
        return f"route: {small}, or {large}".replace(".gguf", "")

    @property
    def max_replies(self) -> int:
        return self.source.max_replies

    def open(self, settings: Settings, on_event: LoadCallback) -> None:
        """Find the API keys of remote models, and load the small model if it is local. Raises EdgechatError."""
        for side, source in self._sources.items():
            if source.is_remote or side == "small":
                source.open(settings, on_event)
        self._is_open = True

    def use(self, side: Side, settings: Settings) -> Iterator[ModelLoadProgressed | events.EngineReplaced]:
        """Make a model active, and load it if necessary; yield the progress. Raises EdgechatError."""
        source = self._sources[side]
        if not source.is_open:
            name = self.model_name(side).removesuffix(".gguf")
            yield ModelLoadProgressed(phase="loading", message=f"Loading {name}")
            own_settings = settings
            if source is not self._engine and settings.draft_model not in {AUTO, OFF}:  # it drafts for the first model
                own_settings = msgspec.structs.replace(settings, draft_model=AUTO)
            other = self._sources["large" if side == "small" else "small"]
            try:
                source.open(_leave_room(own_settings, other), lambda event: None)
            except PlanError:
                if not isinstance(other, EngineSource) or not other.is_open:
                    raise
                other.model.unload(ends_engine=True)
                yield events.EngineReplaced(
                    notice=f"{name} and {other.path.stem} do not fit in memory together, so {name} was loaded in its "
                    "place."
                )
                source.open(own_settings, lambda event: None)
        self.active = side

    def check_conversation(self, model: str) -> None:  # noqa: ARG002  (`is_private` depends on it)
        self._check_privacy()

    def _check_privacy(self) -> None:
        """Raise UsageError if the active model is remote, and the conversation must stay on this machine."""
        if not self.may_use(self.active):
            raise UsageError("This conversation stays on this machine, so nothing was sent to a remote model.")

    def prepare_turn(self) -> Iterator[ModelLoadProgressed]:
        return self.source.prepare_turn()

    def build_prompt(
        self, path: Sequence[Message], cancellation: Cancellation, max_n_ctx: int | None, options: ReplyOptions
    ) -> SourcePrompt:
        self._check_privacy()
        return self.source.build_prompt(path, cancellation, max_n_ctx, options)

    def create_generation(
        self, prompt: SourcePrompt | None, settings: Settings, options: ReplyOptions,
        rebuild_prompt: Callable[[int], SourcePrompt | None],
    ) -> Generation:  # fmt: skip
        self._check_privacy()
        return self.source.create_generation(prompt, settings, options, rebuild_prompt)

    def expect_end(self) -> None:
        self.source.expect_end()

    def count_tokens(self, text: str) -> int:
        return self.source.count_tokens(text)

    @property
    def n_ctx(self) -> int:
        return self.source.n_ctx

    @property
    def tokenizer(self) -> object:
        return self.source.tokenizer

    def close(self) -> None:
        for source in self._sources.values():
            if source is not self._engine:
                source.close()


def _leave_room(settings: Settings, other: ReplySource) -> Settings:
    """Return settings whose memory budget excludes the model of `other`. Raises PlanError if nothing is left."""
    budget_bytes = parse_size(settings.budget) if settings.budget else None
    plan = other.model.plan if isinstance(other, EngineSource) and other.is_open else None
    if budget_bytes is None or plan is None:
        return settings
    if budget_bytes <= plan.estimate.engine:
        raise PlanError("The other model of the route uses the whole memory budget.")
    return msgspec.structs.replace(settings, budget=str(budget_bytes - plan.estimate.engine))


def find_engine_path(route: Route) -> Path | None:
    """Return the file that the engine of the session loads: the small model if it is local, or else the large one.

    Returns None if both models are remote.
    """
    return next((target for target in (route.small, route.large) if isinstance(target, Path)), None)
