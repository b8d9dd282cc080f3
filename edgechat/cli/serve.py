"""`edgechat serve`: run the OpenAI-compatible server."""

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

INSTALL_HINT = (
    "`edgechat serve` needs additional packages. Install edgechat[serve] instead of edgechat, "
    "for example with `pipx install 'edgechat[serve]'`."
)


@click.command()
@click.option(
    "-m",
    "--model",
    "models",
    metavar="NAME",
    multiple=True,
    shell_complete=complete_model,
    help="Model name or .gguf file; may be repeated. The first is the default for requests without a model.",
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; any but a loopback address requires an API key.",
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="Port; 0 chooses a free one."
)
@click.option(
    "--api-key",
    envvar="EDGECHAT_API_KEY",
    metavar="KEY",
    help="Key that clients must send. Prefer the variable EDGECHAT_API_KEY: command lines are visible to other users.",
)
@click.option(
    "--allow-origin", "origins", metavar="ORIGIN", multiple=True, help="Origin of a web page that may send requests."
)
@click.option(
    "--max-requests",
    type=click.IntRange(1, 10_000),
    default=64,
    show_default=True,
    help="Maximum running and waiting requests per model; others get status 503.",
)
@click.option("--log-requests", is_flag=True, help="Log method, endpoint, status and time of each request.")
@click.option("--json", "as_json", is_flag=True, help="Print address and models as JSON.")
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
    """Serve models over the OpenAI API until Ctrl-C.

    Requests run concurrently and share one prompt cache.
    """
    try:
        from edgechat.serve import server
        from edgechat.serve.app import Api
        from edgechat.serve.middleware import AccessRules, is_loopback
    except ModuleNotFoundError as error:
        raise UsageError(f"{INSTALL_HINT} (missing: {error.name})") from error
    if api_key is not None and not re.fullmatch(r"[!-~]+", api_key):
        raise UsageError("An API key may contain only printable ASCII characters without spaces.")
    wrong = next((o for o in origins if not o.partition("://")[2] or o.endswith("/") or "*" in o), None)
    if wrong is not None:
        raise UsageError(f"{wrong!r} is not an origin. Example: https://chat.example:8443")
    if not is_loopback(host) and not api_key:
        raise UsageError(f"{host} is reachable from other machines: set a key with --api-key, or listen on 127.0.0.1.")
    with contextlib.ExitStack() as stack:
        bound = stack.enter_context(server.bind_socket(host, port))
        served = _load_models(models, max_requests, flags, stack)
        rules = AccessRules(host=host, api_key=api_key or "", origins=origins, log_requests=log_requests)
        address = f"http://{f'[{host}]' if ':' in host else host}:{bound.getsockname()[1]}/v1"
        bound.listen(server.BACKLOG)  # the socket accepts connections from here on
        _print_address(address, list(served), has_key=bool(api_key), as_json=as_json)
        server.run(Api(served).app(rules), served, bound, lambda words: click.echo(f"edgechat: {words}", err=True))


def _load_models(
    names: tuple[str, ...], max_requests: int, flags: dict[str, Any], stack: contextlib.ExitStack
) -> dict[str, ModelQueue]:
    """Load the models and return their queues by served name; `stack` closes them. Raises EdgechatError."""
    import msgspec

    from edgechat import config
    from edgechat.cli.ask import Status
    from edgechat.cli.session_factory import chosen_model, flag_settings
    from edgechat.serve.model_lease import ModelLease
    from edgechat.serve.model_queue import ModelQueue

    settings, problems = config.load()
    settings = config.with_overrides(settings, flag_settings(**flags))
    status = Status()
    for problem in problems:
        status.note(f"{problem} (ignored)")
    served: dict[str, ModelQueue] = {}
    lease = ModelLease()
    try:
        for requested in names or (settings.model,):
            name, path = chosen_model(msgspec.structs.replace(settings, model=requested))
            model = ModelQueue(_served_name(name, served), path, settings, max_requests, lease)
            served[model.name] = model
            stack.callback(model.close)
            model.open(status.show)
            for warning in model.warnings:
                status.note(warning)
    finally:
        status.clear()
    return served


def _served_name(name: str, other_names: Iterable[str]) -> str:
    """Return the name of a model in the API. Raises UsageError if another served model has it."""
    name = Path(name).stem if name.endswith(".gguf") else name
    if name in other_names:
        raise UsageError(f"Two models would be served as {name!r}. Rename one with `edgechat models alias`.")
    return name


def _print_address(address: str, names: list[str], *, has_key: bool, as_json: bool) -> None:
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode({"url": address, "models": names, "has_key": has_key}).decode())
        return
    key = "key required" if has_key else "no key required"
    click.echo(f"Serving {', '.join(names)} at {address} ({key}; Ctrl-C stops the server)")
