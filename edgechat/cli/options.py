"""Options that a conversation has wherever it is held."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from edgechat.errors import EdgechatError

F = TypeVar("F", bound=Callable[..., Any])


def complete_model(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names for the shell: models here, given names, and the catalogue."""
    from edgechat.catalogue import curated, library

    try:
        here = [name for entry in library.scan() if entry.is_usable for name in (entry.name, *entry.aliases)]
        return sorted({name for name in [*here, *curated.load()] if name.lower().startswith(incomplete.lower())})
    except EdgechatError:
        return []


_WHOSE = (
    click.option(
        "-m",
        "--model",
        metavar="NAME",
        shell_complete=complete_model,
        help="A .gguf file, or a model's name (`edgechat models` shows and gets them).",
    ),
    click.option("--system", "system_prompt", metavar="TEXT", help="What the model is told first."),
)
_ANSWERS = (
    click.option("--max-tokens", type=int, metavar="N", help="Longest answer, in tokens."),
    click.option("--temperature", type=float, metavar="T", help="0 always takes the likeliest token."),
    click.option("--top-p", type=float, metavar="P", help="Keep the likeliest tokens up to this probability."),
    click.option("--seed", type=int, metavar="N", help="Same seed, same text."),
    click.option("--ctx", "n_ctx", type=int, metavar="N", help="Context in tokens."),
    click.option("--budget", metavar="SIZE", help="Memory that may be used, such as 4GB."),
    click.option("--threads", "n_threads", type=int, metavar="N", help="Compute threads."),
    click.option("--reasoning/--no-reasoning", default=None, help="Let a model that can think do so first, or not."),
    click.option(
        "--speculation/--no-speculation",
        default=None,
        help="Try several tokens at a time, or not; the text is the same.",
    ),
)
_WHICH = (
    click.option("--persona", metavar="NAME", help="A persona of yours: system prompt, model and sampling."),
    click.option("-c", "--continue", "go_on", is_flag=True, default=None, help="Go on with the last conversation."),
    click.option("--conversation", "conversation_id", metavar="ID", help="Go on with this conversation."),
    click.option("--ephemeral", is_flag=True, default=None, help="Keep nothing of this conversation anywhere."),
)


def conversation_options(function: F) -> F:
    """Add the options that choose a model and how it answers."""
    for option in reversed((*_WHOSE, *_ANSWERS, *_WHICH)):
        function = option(function)
    return function


def answer_options(function: F) -> F:
    """Add the options that say how a model is loaded, and how it answers."""
    for option in reversed(_ANSWERS):
        function = option(function)
    return function
