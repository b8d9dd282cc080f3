"""Command-line options shared by the chat, `ask`, `plan` and `serve`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from edgechat.errors import EdgechatError

F = TypeVar("F", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


def complete_model(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the installed models, aliases and catalogue IDs that start with `incomplete`, for shell completion."""
    from edgechat.catalogue import curated, library

    try:
        installed_names = [name for entry in library.scan() if entry.is_usable for name in (entry.name, *entry.aliases)]
        return sorted(
            {
                name
                for name in [*installed_names, *curated.load_catalogue()]
                if name.lower().startswith(incomplete.lower())
            }
        )
    except EdgechatError:
        return []


MAX_ROWS: Final = 10**9
"""Largest number of rows to show or skip. SQLite refuses numbers from 2**63 on."""


class FilePath(click.Path):
    """Path of a file or folder. An empty path is an error; click would use the current folder."""

    def __init__(self, **options: Any) -> None:
        super().__init__(path_type=Path, **options)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value):
            self.fail("the path is empty", param, ctx)
        return super().convert(value, param, ctx)


class IntRange(click.IntRange):
    """Integer from `min` to `max`; click would describe the range with an inequality."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        number: int = click.INT.convert(value, param, ctx)
        if (self.min is not None and number < self.min) or (self.max is not None and number > self.max):
            self.fail(f"must be {_describe_bounds(self.min, self.max)}, not {number}", param, ctx)
        return number


class FloatRange(click.FloatRange):
    """Number from `min` to `max`; click would describe the range with an inequality."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = click.FLOAT.convert(value, param, ctx)
        if (self.min is not None and not number >= self.min) or (self.max is not None and not number <= self.max):
            self.fail(f"must be {_describe_bounds(self.min, self.max)}, not {number:g}", param, ctx)
        return number


def _describe_bounds(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return f"at least {low}" if high is None else f"at most {high}"
    return f"from {low} to {high}"


_MODEL_OPTIONS = (
    click.option(
        "-m",
        "--model",
        metavar="NAME",
        shell_complete=complete_model,
        help="Model name or .gguf file. `edgechat models` lists and downloads models.",
    ),
    click.option("--system", "system_prompt", metavar="TEXT", help="System prompt."),
)
_GENERATION_OPTIONS = (
    click.option("--max-tokens", type=int, metavar="N", help="Maximum length of a reply in tokens."),
    click.option("--temperature", type=float, metavar="T", help="Sampling temperature; 0 is greedy."),
    click.option("--top-p", type=float, metavar="P", help="Nucleus sampling: total probability of the tokens to keep."),
    click.option("--seed", type=int, metavar="N", help="Random seed of the sampler."),
    click.option(
        "--ctx", "n_ctx", type=int, metavar="N", help="Context length in tokens, rounded up to a multiple of 256."
    ),
    click.option("--budget", metavar="SIZE", help="Memory budget, such as 4GB."),
    click.option("--threads", "n_threads", type=int, metavar="N", help="Number of compute threads."),
    click.option("--reasoning/--no-reasoning", default=None, help="Turn reasoning before the reply on or off."),
    click.option(
        "--speculation/--no-speculation",
        default=None,
        help="Turn speculative decoding on or off; this does not change replies.",
    ),
)
_CONVERSATION_OPTIONS = (
    click.option("--persona", metavar="NAME", help="Persona to use: system prompt, model and sampling settings."),
    click.option(
        "-c",
        "--continue",
        "continue_last",
        is_flag=True,
        default=None,
        help="Continue the most recent conversation.",
    ),
    click.option("--conversation", "conversation_id", metavar="ID", help="Continue the conversation with this ID."),
    click.option("--ephemeral", is_flag=True, default=None, help="Do not save this conversation to disk."),
)


def conversation_options(function: F) -> F:
    """Decorate a command with the options for the model, generation and conversation."""
    for option in reversed((*_MODEL_OPTIONS, *_GENERATION_OPTIONS, *_CONVERSATION_OPTIONS)):
        function = option(function)
    return function


def generation_options(function: F) -> F:
    """Decorate a command with the options for loading a model and generating text."""
    for option in reversed(_GENERATION_OPTIONS):
        function = option(function)
    return function
