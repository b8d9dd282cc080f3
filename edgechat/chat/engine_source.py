"""Replies of a model that is loaded in an engine on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import cast

from edgechat.chat.conversation_prompt import ConversationPrompt, ConversationPromptBuilder
from edgechat.chat.messages import Message
from edgechat.chat.reply_generation import ReplyGeneration
from edgechat.chat.reply_source import Generation, ReplyOptions, SourcePrompt
from edgechat.config import Settings
from edgechat.engine.cancellation import Cancellation
from edgechat.models.events import LoadCallback, ModelLoadProgressed
from edgechat.models.loaded_model import LoadedModel


class EngineSource:
    """Source of replies that uses the engine of `model`. Implements `ReplySource`."""

    is_remote = False
    description = ""

    def __init__(
        self, model: LoadedModel, path: Path, create_prompt_builder: Callable[[], ConversationPromptBuilder]
    ) -> None:
        """`create_prompt_builder` returns a builder for the current settings and model, or raises EngineError."""
        self.model = model
        self.path = path
        """Model file that `open` loads."""
        self._create_prompt_builder = create_prompt_builder

    @property
    def is_open(self) -> bool:
        return self.model.engine.model_properties is not None  # None after a failed load, too

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def max_replies(self) -> int:
        return self.model.plan.options.n_seqs if self.model.plan is not None else 1

    def open(self, settings: Settings, on_event: LoadCallback) -> None:
        self.model.open(self.path, settings, on_event)

    def check_conversation(self, model: str) -> None:
        """Do nothing, because nothing leaves this machine."""

    def prepare_turn(self) -> Iterator[ModelLoadProgressed]:
        if self.model.needs_restart:
            yield ModelLoadProgressed(phase="loading", message="Restarting the engine")
            self.model.restart_if_dead()

    def build_prompt(
        self, path: Sequence[Message], cancellation: Cancellation, max_n_ctx: int | None, options: ReplyOptions
    ) -> SourcePrompt:
        return self._create_prompt_builder().build(
            path, cancellation=cancellation, max_n_ctx=max_n_ctx, output_rule=options.output_rule
        )

    def create_generation(
        self, prompt: SourcePrompt | None, settings: Settings, options: ReplyOptions,
        rebuild_prompt: Callable[[int], SourcePrompt | None],
    ) -> Generation:  # fmt: skip
        # The prompts are those of `build_prompt`.
        return ReplyGeneration(
            self.model, settings, cast("ConversationPrompt | None", prompt),
            cast("Callable[[int], ConversationPrompt | None]", rebuild_prompt), options,
        )  # fmt: skip

    def expect_end(self) -> None:
        self.model.engine.expect_end()

    def count_tokens(self, text: str) -> int:
        return len(self.model.engine.tokenize(text))

    @property
    def n_ctx(self) -> int:
        return self.model.builder.n_ctx

    @property
    def tokenizer(self) -> object:
        return self.model.builder

    def close(self) -> None:
        self.model.close()
