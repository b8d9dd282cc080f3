"""Interface of what generates the replies of a session: a model in an engine of this machine, or a remote model.

A session has one source at a time, and its turns use only this interface. Front ends read `description` to show where
words go. What a source does not know, such as token counts of a remote model, is None or absent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Union

from edgechat.chat import events
from edgechat.chat.messages import Conversation, Message
from edgechat.chat.store import Store
from edgechat.config import Settings
from edgechat.engine.cancellation import Cancellation
from edgechat.models.events import LoadCallback, ModelLoadProgressed

if TYPE_CHECKING:
    from edgechat.chat.route_target import Route
    from edgechat.prompt.agreement.picker import ReplyPicker
    from edgechat.remote.target import RemoteModel

JsonSchema = dict[str, Any] | bool
"""JSON schema, which can be a boolean."""
SingleTarget = Union[Path, "RemoteModel"]
"""One model: a model file on this machine, or a model of a remote."""
ModelTarget = Union[Path, "RemoteModel", "Route"]
"""Model that the user chose: a model file on this machine, a model of a remote, or a route between two of them."""


class ReplyOptions(NamedTuple):
    """What the turn demands of its replies."""

    picker: ReplyPicker | None = None
    """Picker that receives the replies, and can end them early; None if none is picked."""
    indexes: range = range(0)
    """Numbers of the replies among all replies of `picker`."""
    output_rule: str = ""
    """Grammar rule of the content of the replies; "" for free text."""
    output_schema: JsonSchema | None = None
    """JSON schema of the content, from which `output_rule` was made; None for free text."""
    needs_logprob: bool = False
    """True if the mean logprob of the replies is to be computed; a remote model reports none."""


class SourcePrompt(Protocol):
    """Prompt that a source has built from a path of messages."""

    @property
    def start(self) -> int:
        """Index, in the path, of the first message in the prompt."""

    @property
    def start_id(self) -> str | None:
        """ID of the first message in the prompt; None if the prompt contains all messages."""


class Generation(Protocol):
    """Generation of the replies of one turn. `stop` and `end_thinking` are thread-safe."""

    @property
    def results(self) -> list[tuple[Message, str]]:
        """Saved state of each reply, with the error of its last write ("" for success); empty before `run`."""

    def stop(self) -> None:
        """Cancel the generation, also before `run`."""

    def end_thinking(self) -> bool:
        """End the reasoning of all replies, now and later; return False if the source cannot do that."""

    def run(
        self, store: Store, conversation: Conversation, replies: Sequence[Message], started_at: float
    ) -> Iterator[events.SessionEvent]:
        """Generate `replies`, which must be in the store, and yield events; continue replies that have text.

        `started_at` is the start of the turn on the monotonic clock. The replies are also saved after a stop or an
        error. Raises EdgechatError.
        """


class ReplySource(Protocol):
    """Source of replies. The methods that start work are called while no other turn of the session is running."""

    @property
    def is_open(self) -> bool:
        """True if the source can generate replies: a model is loaded, or a remote is chosen."""

    @property
    def is_remote(self) -> bool:
        """True if messages leave this machine, or at least this program."""

    @property
    def name(self) -> str:
        """Name of the model that new replies record: a file name, or `REMOTE/MODEL`."""

    @property
    def description(self) -> str:
        """Name and place of a remote model, such as `box/llama3 (remote, 192.168.1.5:8080)`; "" for a local model."""

    @property
    def max_replies(self) -> int:
        """Maximum number of replies that can be generated in parallel."""

    def open(self, settings: Settings, on_event: LoadCallback) -> None:
        """Prepare to generate replies: load the model, or find the API key of a remote. Raises EdgechatError."""

    def check_conversation(self, model: str) -> None:
        """Raise UsageError if the messages of a conversation must not be sent to this source.

        `model` is the name of the model that the user chose for the conversation.
        """

    def prepare_turn(self) -> Iterator[ModelLoadProgressed]:
        """Make the source ready for the next turn, for example after a crash. Raises EdgechatError."""

    def build_prompt(
        self, path: Sequence[Message], cancellation: Cancellation, max_n_ctx: int | None, options: ReplyOptions
    ) -> SourcePrompt:
        """Build the prompt for a reply at the end of `path`.

        `max_n_ctx` is the length of the context if it cannot grow to the length that it has at most. Raises
        ContextOverflowError, TemplateError, GrammarError, EngineError, and RequestCancelledError after `cancellation`.
        """

    def create_generation(
        self, prompt: SourcePrompt | None, settings: Settings, options: ReplyOptions,
        rebuild_prompt: Callable[[int], SourcePrompt | None],
    ) -> Generation:  # fmt: skip
        """Create the generation of replies to `prompt`.

        `prompt` is None if the turn was stopped before its prompt was built; the replies then remain unchanged. If the
        context cannot grow to hold it, `rebuild_prompt` builds one for the length in its argument.
        """

    def expect_end(self) -> None:
        """Note that the turn was stopped: a source that does not end it within some seconds is broken."""

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens of a text, or an estimate of it for the budget of documents."""

    @property
    def n_ctx(self) -> int:
        """Context length in tokens, or an estimate of it for the budget of documents."""

    @property
    def tokenizer(self) -> object:
        """Object that stays the same as long as the token counts of texts stay the same."""

    def close(self) -> None:
        """End the processes or connections of the source. Thread-safe."""


def describe_remote_plan(description: str) -> str:
    """Return the text that a front end shows in place of a plan; `description` is that of the remote source."""
    return (
        f"Model: {description}. Its server decides how it runs. Every message of this conversation is sent there, with "
        "its attachments and passages of documents."
    )
