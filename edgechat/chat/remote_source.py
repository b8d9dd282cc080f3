"""Replies of a model of a remote."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, cast

from edgechat.chat.messages import Message
from edgechat.chat.remote_generation import RemoteGeneration
from edgechat.chat.remote_prompt import RemotePrompt
from edgechat.chat.reply_source import Generation, ReplyOptions, SourcePrompt
from edgechat.config import Settings
from edgechat.engine.cancellation import Cancellation
from edgechat.errors import UsageError
from edgechat.models.events import LoadCallback, ModelLoadProgressed
from edgechat.remote.client import RemoteClient
from edgechat.remote.connection import DEFAULT_TIMEOUTS, Timeouts
from edgechat.remote.keys import read_key
from edgechat.remote.model_lists import find_n_ctx
from edgechat.remote.target import RemoteModel

MAX_PARALLEL_REPLIES: Final = 8
# Budget of documents in a prompt: bytes of text for each token, and a context length that most servers have.
_BYTES_PER_TOKEN: Final = 3
_ASSUMED_N_CTX: Final = 8192


class RemoteSource:
    """Source of replies that sends prompts to a remote. Implements `ReplySource`.

    Only the prompts of turns are sent: no titles, no comparisons of replies, and nothing before the first message.
    """

    is_remote = True
    max_replies = MAX_PARALLEL_REPLIES

    def __init__(
        self, target: RemoteModel, read_attachment: Callable[[str], bytes], get_settings: Callable[[], Settings],
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
    ) -> None:  # fmt: skip
        """`read_attachment` returns the bytes of an attachment by SHA-256 hash, or raises StoreError.

        `get_settings` returns the current settings of the session.
        """
        self.target = target
        self._read_attachment = read_attachment
        self._get_settings = get_settings
        self._timeouts = timeouts
        self._generation: RemoteGeneration | None = None
        self.is_open = False

    @property
    def name(self) -> str:
        return self.target.name

    @property
    def description(self) -> str:
        return f"{self.target.name} (remote, {self.target.host})"

    def open(self, settings: Settings, on_event: LoadCallback) -> None:  # noqa: ARG002  (nothing is loaded)
        read_key(self.target.remote, self.target.settings)
        self.is_open = True

    def check_conversation(self, model: str) -> None:
        target = self.target
        names = {target.name, *([target.remote] if target.model == target.settings.model else [])}
        if model not in names:
            raise UsageError(
                f"This conversation is not one with {target.name}, so nothing was sent to {target.host}. "
                f"Use /model {target.name} to send it there, or /model NAME for another model."
            )

    def prepare_turn(self) -> Iterator[ModelLoadProgressed]:
        return iter(())

    def build_prompt(
        self, path: Sequence[Message], cancellation: Cancellation, max_n_ctx: int | None, options: ReplyOptions  # noqa: ARG002
    ) -> SourcePrompt:  # fmt: skip
        return RemotePrompt(path, self._get_settings(), self._read_attachment)

    def create_generation(
        self, prompt: SourcePrompt | None, settings: Settings, options: ReplyOptions,
        rebuild_prompt: Callable[[int], SourcePrompt | None],  # noqa: ARG002  (the server knows the length of its context)
    ) -> Generation:  # fmt: skip
        self._generation = RemoteGeneration(
            self.target, cast("RemotePrompt | None", prompt), settings, options,
            lambda: RemoteClient(self.target.remote, self.target.settings, self._timeouts),
        )  # fmt: skip
        return self._generation

    def expect_end(self) -> None:
        """Do nothing: a stop closes the connection, whatever the server does."""

    def count_tokens(self, text: str) -> int:
        return len(text.encode("utf-8", "replace")) // _BYTES_PER_TOKEN + 1

    @property
    def n_ctx(self) -> int:
        return find_n_ctx(self.target) or _ASSUMED_N_CTX

    @property
    def tokenizer(self) -> object:
        return type(self)

    def close(self) -> None:
        if self._generation is not None:
            self._generation.stop()
