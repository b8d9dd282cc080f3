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


def session_maker(**flags: object) -> tuple[Callable[[], Session], list[Problem]]:
    """What makes the session (not opened yet), and what is wrong with the settings.

    Checks everything first; what a session stands on is imported only when it is made, so that a screen can
    be painted before. Raises click.BadParameter for a flag that cannot be used, and EdgechatError if there is
    no such model.
    """
    import msgspec

    from edgechat import config
    from edgechat.catalogue.library import find_model

    given = {name: value for name, value in flags.items() if value is not None}
    for name, value in given.items():
        wrong = config.check(name, value)
        if wrong:
            raise click.BadParameter(wrong, param_hint=_flag(name))
    settings, problems = config.load()
    values = msgspec.structs.asdict(settings) | given
    path = find_model(str(values.pop("model")))

    def make() -> Session:
        from edgechat.chat.session import Options, Session

        return Session(path, Options(**values))

    return make, problems


def _flag(name: str) -> str:
    named = {"n_ctx": "--ctx", "n_threads": "--threads", "system_prompt": "--system"}
    return named.get(name) or "--" + name.replace("_", "-")
