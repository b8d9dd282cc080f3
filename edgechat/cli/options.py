"""Options that a conversation has wherever it is held, and how they become a session."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from edgechat.chat.session import Session
    from edgechat.config import Problem

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.option("-m", "--model", metavar="NAME", help="A .gguf file, or a model's name."),
    click.option("--system", "system_prompt", metavar="TEXT", help="What the model is told first."),
    click.option("--max-tokens", type=int, metavar="N", help="Longest answer, in tokens."),
    click.option("--temperature", type=float, metavar="T", help="0 always takes the likeliest token."),
    click.option("--top-p", type=float, metavar="P", help="Keep the likeliest tokens up to this probability."),
    click.option("--seed", type=int, metavar="N", help="Same seed, same text."),
    click.option("--ctx", "n_ctx", type=int, metavar="N", help="Context in tokens."),
    click.option("--threads", "n_threads", type=int, metavar="N", help="Compute threads."),
)


def conversation_options(function: F) -> F:
    """Add the options that choose a model and how it answers."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def open_session(**flags: object) -> tuple[Session, list[Problem]]:
    """A session (not opened yet) from settings with flags over them, and what is wrong with the settings.

    Raises click.BadParameter for a flag that cannot be used, and EdgechatError if there is no such model.
    """
    import msgspec

    from edgechat import config
    from edgechat.catalogue.library import find_model
    from edgechat.chat.session import Options, Session

    given = {name: value for name, value in flags.items() if value is not None}
    for name, value in given.items():
        wrong = config.check(name, value)
        if wrong:
            raise click.BadParameter(wrong, param_hint=_flag(name))
    settings, problems = config.load()
    settings = msgspec.structs.replace(settings, **given)
    values = msgspec.structs.asdict(settings)
    path = find_model(values.pop("model"))
    return Session(path, Options(**values)), problems


def _flag(name: str) -> str:
    named = {"n_ctx": "--ctx", "n_threads": "--threads", "system_prompt": "--system"}
    return named.get(name) or "--" + name.replace("_", "-")
