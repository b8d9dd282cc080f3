"""Command-line options shared by the chat, `ask`, `plan` and `serve`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from edgechat.errors import EdgechatError

F = TypeVar("F", bound=Callable[..., Any])


def complete_model(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Complete model names in the shell: installed models, aliases and catalogue IDs."""
    from edgechat.catalogue import curated, library

    try:
        installed = [name for entry in library.scan() if entry.is_usable for name in (entry.name, *entry.aliases)]
        return sorted({name for name in [*installed, *curated.load()] if name.lower().startswith(incomplete.lower())})
    except EdgechatError:
        return []


_MODEL_OPTIONS = (
    click.option(
        "-m",
        "--model",
        metavar="NAME",
        shell_complete=complete_model,
        help="Model name or .gguf file (`edgechat models` lists and downloads models).",
    ),
    click.option("--system", "system_prompt", metavar="TEXT", help="System prompt."),
)
_GENERATION_OPTIONS = (
    click.option("--max-tokens", type=int, metavar="N", help="Maximum length of a reply in tokens."),
    click.option("--temperature", type=float, metavar="T", help="Sampling temperature; 0 is greedy."),
    click.option("--top-p", type=float, metavar="P", help="Nucleus sampling: cumulative probability to keep."),
    click.option("--seed", type=int, metavar="N", help="Random seed of the sampler."),
    click.option("--ctx", "n_ctx", type=int, metavar="N", help="Context length in tokens."),
    click.option("--budget", metavar="SIZE", help="Memory budget, such as 4GB."),
    click.option("--threads", "n_threads", type=int, metavar="N", help="Number of compute threads."),
    click.option("--reasoning/--no-reasoning", default=None, help="Let the model reason before it replies, or not."),
    click.option(
        "--speculation/--no-speculation",
        default=None,
        help="Turn speculative decoding on or off; it does not change the text.",
    ),
)
_CONVERSATION_OPTIONS = (
    click.option("--persona", metavar="NAME", help="Use a persona: system prompt, model and sampling settings."),
    click.option(
        "-c",
        "--continue",
        "continue_last",
        is_flag=True,
        default=None,
        help="Continue the most recent conversation.",
    ),
    click.option("--conversation", "conversation_id", metavar="ID", help="Continue this conversation."),
    click.option("--ephemeral", is_flag=True, default=None, help="Write nothing of this conversation to disk."),
)


def conversation_options(function: F) -> F:
    """Add the options for model, generation and conversation to a command."""
    for option in reversed((*_MODEL_OPTIONS, *_GENERATION_OPTIONS, *_CONVERSATION_OPTIONS)):
        function = option(function)
    return function


def generation_options(function: F) -> F:
    """Add the options for loading a model and generating to a command."""
    for option in reversed(_GENERATION_OPTIONS):
        function = option(function)
    return function
