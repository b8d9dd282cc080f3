"""Command-line options shared by the chat, `ask`, `plan` and `serve`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from click.shell_completion import CompletionItem

from edgechat.errors import EdgechatError
from edgechat.humanize import shorten

F = TypeVar("F", bound=Callable[..., Any])

# Maximum number of conversations whose IDs shell completion offers, newest first.
_MAX_COMPLETED_IDS: Final = 200
# Length of an abbreviated conversation ID, as in `edgechat history list`.
_SHORT_ID_CHARS: Final = 8
# Maximum length of a title in a completion, and of a value in an error message.
_MAX_VALUE_CHARS: Final = 60

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


def complete_model(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the model names that start with `incomplete`: first installed ones, last the catalogue."""
    from edgechat import config
    from edgechat.catalogue import curated, library

    settings = config.load()[0]
    remote_names: list[str] = []
    if settings.remotes:
        from edgechat.remote.model_lists import list_names

        remote_names = list_names(settings.remotes)
    if settings.route:
        from edgechat.remote_settings import ROUTE

        remote_names.append(ROUTE)
    try:
        entries = [entry for entry in library.scan() if entry.is_usable]
        installed_names = sorted(name for entry in entries for name in (entry.name, *entry.aliases))
        names = dict.fromkeys([*installed_names, *remote_names, *sorted(curated.load_catalogue())])
    except EdgechatError:
        return []
    return [name for name in names if name.lower().startswith(incomplete.lower())]


def complete_draft_model(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the values of `--draft-model` that start with `incomplete`: auto, off, and installed models and heads."""
    from edgechat.catalogue import library

    try:
        names = sorted(name for entry in library.scan() if entry.may_draft for name in (entry.name, *entry.aliases))
    except EdgechatError:
        names = []
    return [name for name in ("auto", "off", *names) if name.lower().startswith(incomplete.lower())]


def complete_conversation(
    _context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return the IDs of recent conversations that start with `incomplete`, with their titles, for shell completion."""
    from edgechat.chat.messages import format_title
    from edgechat.paths import history_file
    from edgechat.store.database import Database
    from edgechat.store.sqlite import SqliteStore

    if not history_file().exists():
        return []
    try:
        store = SqliteStore(Database(history_file()))  # does not recover a damaged database
    except EdgechatError:
        return []
    try:
        summaries = store.list_conversations(archived=None, limit=_MAX_COMPLETED_IDS) if store.is_readable else []
    except EdgechatError:
        return []
    finally:
        store.close()
    n_same_start = Counter(s.conversation.id[:_SHORT_ID_CHARS] for s in summaries)
    items = []
    for conversation in (s.conversation for s in summaries if s.conversation.id.startswith(incomplete.lower())):
        short_id = conversation.id[:_SHORT_ID_CHARS]
        is_short = n_same_start[short_id] == 1 and len(incomplete) <= _SHORT_ID_CHARS
        title = format_title(conversation.title, _MAX_VALUE_CHARS)
        items.append(CompletionItem(short_id if is_short else conversation.id, help=title))
    return items


def complete_collection(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of collections of documents that start with `incomplete`, for shell completion."""
    from edgechat import paths
    from edgechat.documents.library import DocumentLibrary

    try:
        names = DocumentLibrary(paths.documents_dir()).names()
    except EdgechatError:
        return []
    return [name for name in names if name.lower().startswith(incomplete.lower())]


MAX_ROWS: Final = 10**9
"""Maximum number of rows to show or skip. SQLite rejects numbers of 2**63 and more."""


class FilePath(click.Path):
    """Path of a file or folder. An empty path is an error; click would use the current folder."""

    def __init__(self, **options: Any) -> None:
        super().__init__(path_type=Path, **options)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value):
            self.fail("the path is empty", param, ctx)
        return super().convert(value, param, ctx)


class IntRange(click.IntRange):
    """Parameter type for integers, which may have a range. Errors and help describe type and range in plain words."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            number: int = click.INT.convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f"must be a whole number, not {shorten(str(value), _MAX_VALUE_CHARS)!r}", param, ctx)
        if (self.min is not None and number < self.min) or (self.max is not None and number > self.max):
            self.fail(f"must be {_describe_bounds(self.min, self.max)}, not {number}", param, ctx)
        return number

    def _describe_range(self) -> str:
        return _describe_bounds(self.min, self.max)


class FloatRange(click.FloatRange):
    """Parameter type for numbers, which may have a range. Errors and help describe type and range in plain words."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number: float = click.FLOAT.convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f"must be a number, not {shorten(str(value), _MAX_VALUE_CHARS)!r}", param, ctx)
        if (self.min is not None and not number >= self.min) or (self.max is not None and not number <= self.max):
            self.fail(f"must be {_describe_bounds(self.min, self.max)}, not {number:g}", param, ctx)
        return number

    def _describe_range(self) -> str:
        return _describe_bounds(self.min, self.max)


def _describe_bounds(low: float | None, high: float | None) -> str:
    """Return a range in words; "" for a range without bounds. `MAX_ROWS` counts as no bound."""
    has_low, has_high = low is not None, high is not None and high != MAX_ROWS
    if has_low and has_high:
        return f"from {low} to {high}"
    return f"at least {low}" if has_low else f"at most {high}" if has_high else ""


_MODEL_OPTIONS = (
    click.option(
        "-m",
        "--model",
        metavar="NAME",
        shell_complete=complete_model,
        help="Model name, .gguf file, or REMOTE/MODEL. See `edgechat models` and `edgechat remotes`.",
    ),
    click.option("--system", "system_prompt", metavar="TEXT", help="System prompt."),
)
_GENERATION_OPTIONS = (
    click.option("--max-tokens", type=IntRange(), metavar="N", help="Maximum length of a reply in tokens."),
    click.option("--temperature", type=FloatRange(), metavar="T", help="Sampling temperature; 0 is greedy."),
    click.option(
        "--top-p", type=FloatRange(), metavar="P", help="Nucleus sampling: total probability of the tokens to keep."
    ),
    click.option("--seed", type=IntRange(), metavar="N", help="Random seed of the sampler."),
    click.option(
        "--ctx",
        "n_ctx",
        type=IntRange(),
        metavar="N",
        help="Fixed context length in tokens, rounded up to a multiple of 256; by default it grows.",
    ),
    click.option("--budget", metavar="SIZE", help="Memory budget, such as 4GB."),
    click.option("--threads", "n_threads", type=IntRange(), metavar="N", help="Number of compute threads."),
    click.option("--reasoning/--no-reasoning", default=None, help="Turn reasoning before the reply on or off."),
    click.option(
        "--thinking",
        metavar="LIMIT",
        help="Limit of reasoning: off, low, medium, high, auto, on, or tokens or seconds such as 500 or 30s.",
    ),
    click.option(
        "--stop-repetition/--no-stop-repetition",
        default=None,
        help="End reasoning, or a reply, that repeats the same passage over and over.",
    ),
    click.option(
        "--speculation/--no-speculation",
        default=None,
        help="Turn speculative decoding on or off; this does not change replies.",
    ),
    click.option(
        "--draft-model",
        metavar="NAME",
        shell_complete=complete_draft_model,
        help="Model or heads that draft tokens for speculative decoding; auto (default), or off for none.",
    ),
)
_CONVERSATION_OPTIONS = (
    click.option(
        "--docs",
        multiple=True,
        metavar="NAME",
        shell_complete=complete_collection,
        callback=lambda _context, _parameter, names: names or None,
        help="Answer from this collection of documents; may be repeated. `edgechat docs` adds and lists them.",
    ),
    click.option("--persona", metavar="NAME", help="Persona to use: system prompt, model and sampling settings."),
    click.option(
        "-c",
        "--continue",
        "continue_last",
        is_flag=True,
        default=None,
        help="Continue the most recent conversation.",
    ),
    click.option(
        "--conversation",
        "conversation_id",
        metavar="ID",
        shell_complete=complete_conversation,
        help="Continue the conversation with this ID.",
    ),
    click.option("--ephemeral", is_flag=True, default=None, help="Do not save this conversation to disk."),
)


def conversation_options(function: F) -> F:
    """Decorate a command with the options for the model, generation and conversation."""
    for option in reversed((*_MODEL_OPTIONS, *_GENERATION_OPTIONS, *_CONVERSATION_OPTIONS)):
        function = option(function)
    return function


def reply_options(function: F) -> F:
    """Decorate a command with the options for the model and for generating a reply."""
    for option in reversed((_MODEL_OPTIONS[0], *_GENERATION_OPTIONS)):
        function = option(function)
    return function


def generation_options(function: F) -> F:
    """Decorate a command with the options for loading a model and generating text."""
    for option in reversed(_GENERATION_OPTIONS):
        function = option(function)
    return function
