"""`edgechat serve`: the models here for every program that speaks the OpenAI API."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgechat.cli.options import complete_model, generation_options
from edgechat.errors import UsageError

if TYPE_CHECKING:
    from edgechat.serve.model_queue import ModelQueue

HOW_TO_GET_IT = (
    "`edgechat serve` needs some more packages: install edgechat[serve] in the place of edgechat, "
    "for example with `pipx install 'edgechat[serve]'`"
)


@click.command()
@click.option(
    "-m",
    "--model",
    "models",
    metavar="NAME",
    multiple=True,
    shell_complete=complete_model,
    help="A .gguf file, or a model's name; several times for several models, of which the first is asked where a"
    " program names none.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Another one than this machine needs a key.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 takes a free one.")
@click.option(
    "--api-key",
    envvar="EDGECHAT_API_KEY",
    metavar="KEY",
    help="What programs must send; better in the variable EDGECHAT_API_KEY, as others can see command lines.",
)
@click.option("--allow-origin", "origins", metavar="ORIGIN", multiple=True, help="A web page that may ask.")
@click.option(
    "--max-requests",
    type=click.IntRange(1, 10_000),
    default=64,
    show_default=True,
    help="So many may be in work or wait for one model; others are told to come again.",
)
@click.option("--log-requests", is_flag=True, help="Write a line for each request, without anything of its words.")
@click.option("--json", "as_json", is_flag=True, help="Say in JSON where it listens.")
@generation_options
def serve(
    *,
    models: tuple[str, ...],
    host: str,
    port: int,
    api_key: str | None,
    origins: tuple[str, ...],
    max_requests: int,
    log_requests: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Offer models here to every program that speaks the OpenAI API, until Ctrl-C.

    Requests are answered side by side, and what was computed for one is there for the next.
    """
    try:
        from edgechat.serve import server
        from edgechat.serve.app import Api
        from edgechat.serve.middleware import AccessRules, is_loopback
    except ModuleNotFoundError as error:
        raise UsageError(f"{HOW_TO_GET_IT} (missing: {error.name})") from error
    if api_key is not None and not re.fullmatch(r"[!-~]+", api_key):
        raise UsageError("an API key is made of letters, digits and signs of ASCII, without spaces")
    wrong = next((o for o in origins if not o.partition("://")[2] or o.endswith("/") or "*" in o), None)
    if wrong is not None:
        raise UsageError(f"{wrong!r} is no origin: name each one as browsers do, such as https://chat.example:8443")
    if not is_loopback(host) and not api_key:
        raise UsageError(
            f"{host} can be reached from other machines: give a key with --api-key, or listen on 127.0.0.1"
        )
    with contextlib.ExitStack() as stack:
        bound = stack.enter_context(server.bind_socket(host, port))
        served = _opened(models, max_requests, flags, stack)
        rules = AccessRules(host=host, api_key=api_key or "", origins=origins, log_requests=log_requests)
        address = f"http://{f'[{host}]' if ':' in host else host}:{bound.getsockname()[1]}/v1"
        bound.listen(server.BACKLOG)  # from here on nobody is turned away
        _say_where(address, list(served), has_key=bool(api_key), as_json=as_json)
        server.run(Api(served).app(rules), served, bound, lambda words: click.echo(f"edgechat: {words}", err=True))


def _opened(
    names: tuple[str, ...], max_requests: int, flags: dict[str, Any], stack: contextlib.ExitStack
) -> dict[str, ModelQueue]:
    """The models, loaded, by the names that programs ask for; `stack` closes them. Raises EdgechatError."""
    import msgspec

    from edgechat import config
    from edgechat.cli.ask import Status
    from edgechat.cli.session_factory import chosen_model, flag_settings
    from edgechat.serve.model_lease import ModelLease
    from edgechat.serve.model_queue import ModelQueue

    settings, problems = config.load()
    settings = config.merged(settings, flag_settings(**flags))
    status = Status()
    for problem in problems:
        status.note(f"{problem} (ignored)")
    served: dict[str, ModelQueue] = {}
    turns = ModelLease()
    try:
        for wanted in names or (settings.model,):
            name, path = chosen_model(msgspec.structs.replace(settings, model=wanted))
            model = ModelQueue(_new_name(name, served), path, settings, max_requests, turns)
            served[model.name] = model
            stack.callback(model.close)
            model.open(status.show)
            for warning in model.warnings:
                status.note(warning)
    finally:
        status.clear()
    return served


def _new_name(name: str, taken: Iterable[str]) -> str:
    """What programs call a model. Raises UsageError if another one is called that."""
    name = Path(name).stem if name.endswith(".gguf") else name
    if name in taken:
        raise UsageError(f"two models would be named {name!r}: give one another name with `edgechat models alias`")
    return name


def _say_where(address: str, names: list[str], *, has_key: bool, as_json: bool) -> None:
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode({"url": address, "models": names, "has_key": has_key}).decode())
        return
    key = "with your key" if has_key else "no key is needed"
    click.echo(f"{', '.join(names)} at {address} ({key}; Ctrl-C ends it)")
