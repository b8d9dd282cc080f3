"""`edgechat serve`: run the OpenAI-compatible server."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgechat.cli.json_output import echo_json
from edgechat.cli.options import IntRange, complete_model, generation_options
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
    help="Model name or .gguf file; may be repeated. Requests without a model name use the first model.",
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; a non-loopback address requires an API key.",
)
@click.option(
    "--port",
    type=IntRange(0, 65535),
    default=8080,
    show_default=True,
    help="Port to listen on; 0 chooses a free port.",
)
@click.option(
    "--ollama",
    "use_ollama_port",
    is_flag=True,
    help="Also listen on 127.0.0.1:11434, where Ollama's clients look for it, if the port is free.",
)
@click.option(
    "--api-key",
    envvar="EDGECHAT_API_KEY",
    metavar="KEY",
    help="Key that clients must send. EDGECHAT_API_KEY is safer, because other users can see command lines.",
)
@click.option(
    "--allow-origin",
    "origins",
    metavar="ORIGIN",
    multiple=True,
    help="Accept requests from web pages of this origin; may be repeated.",
)
@click.option(
    "--max-requests",
    type=IntRange(1, 10_000),
    default=64,
    show_default=True,
    help="Maximum number of running and waiting requests per model; further requests get status 503.",
)
@click.option(
    "--no-prompt-rule",
    "disabled_rules",
    multiple=True,
    metavar="RULE",
    help="Turn off a rule that removes volatile text from system prompts: billing-header, seconds, request-id, or all. "
    "May be repeated.",
)
@click.option(
    "--alias",
    "aliases",
    multiple=True,
    metavar="NAME",
    help="Additional name of the first model, or MODEL=NAME for another one. May be repeated.",
)
@click.option(
    "--strict-models",
    is_flag=True,
    help="Answer a request for an unknown model with 404, even if only one model is served.",
)
@click.option("--log-requests", is_flag=True, help="Log the method, endpoint, status and duration of each request.")
@click.option("--json", "as_json", is_flag=True, help="Print the address and the models as JSON.")
@click.option(
    "--stop-on-stdin-eof",
    is_flag=True,
    help="Stop when standard input ends, so that the server ends with the program that started it.",
)
@generation_options
def serve(
    *,
    models: tuple[str, ...],
    host: str,
    port: int,
    use_ollama_port: bool,
    api_key: str | None,
    origins: tuple[str, ...],
    max_requests: int,
    disabled_rules: tuple[str, ...],
    aliases: tuple[str, ...],
    strict_models: bool,
    log_requests: bool,
    as_json: bool,
    stop_on_stdin_eof: bool,
    **flags: Any,
) -> None:
    """Serve models through an OpenAI-compatible API.

    Also speaks the Responses API, and the APIs of Anthropic (Messages) and Ollama. Runs until Ctrl-C. Requests run
    concurrently and share one prompt cache.
    """
    from edgechat.cli.progress import echo_note

    try:
        from edgechat.serve import server
        from edgechat.serve.addresses import is_loopback
        from edgechat.serve.app import Api
        from edgechat.serve.middleware import AccessRules
        from edgechat.serve.served_models import ServedModels, parse_aliases
    except ModuleNotFoundError as error:
        raise UsageError(f"{INSTALL_HINT} (missing: {error.name})") from error
    if not host.strip():
        raise UsageError("The host is empty. Set --host to an address of this machine, such as 127.0.0.1.")
    if api_key is not None and not re.fullmatch(r"[!-~]+", api_key):
        raise UsageError("An API key must consist of printable ASCII characters without spaces.")
    invalid_origin = next((o for o in origins if not o.partition("://")[2] or o.endswith("/") or "*" in o), None)
    if invalid_origin is not None:
        raise UsageError(f"{invalid_origin!r} is not an origin. Example: https://chat.example:8443")
    if not is_loopback(host) and not api_key:
        raise UsageError(f"{host} is reachable from other machines: set a key with --api-key, or listen on 127.0.0.1.")
    if stop_on_stdin_eof:
        server.stop_on_stdin_eof()
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(server.bind_socket(host, port))]
        address = f"http://{f'[{host}]' if ':' in host else host}:{listeners[0].getsockname()[1]}/v1"
        port_message = (
            f"edgechat: Port {server.OLLAMA_PORT} is in use. End Ollama, or give its clients the address "
            f"{address.removesuffix('/v1')}."
        )
        if use_ollama_port and port != server.OLLAMA_PORT:
            ollama_listener = server.bind_ollama_socket(stack)
            if ollama_listener is None:
                echo_note(port_message)
            else:
                listeners.append(ollama_listener)
        queues = _load_models(models, max_requests, _choose_prompt_rules(disabled_rules), flags, stack)
        served_models = ServedModels(
            list(queues.values()), parse_aliases(aliases, list(queues.values())), is_strict=strict_models
        )
        access_rules = AccessRules(host=host, api_key=api_key or "", allowed_origins=origins, log_requests=log_requests)
        listeners[0].listen(server.BACKLOG)  # clients can connect from now on
        addresses = [address, *(f"http://127.0.0.1:{server.OLLAMA_PORT}" for _ in listeners[1:])]
        _print_address(addresses, list(queues), has_key=bool(api_key), as_json=as_json)
        app = Api(served_models).build_app(access_rules)
        server.run(app, queues, listeners, lambda text: echo_note(f"edgechat: {text}"))


def _choose_prompt_rules(disabled_names: tuple[str, ...]) -> frozenset[str]:
    """Return the names of all rules without the disabled ones. Raises UsageError for an unknown name."""
    from edgechat.serve.prompt_rules import PROMPT_RULES

    unknown_name = next((name for name in disabled_names if name not in {*PROMPT_RULES, "all"}), None)
    if unknown_name is not None:
        raise UsageError(f"{unknown_name!r} is not a prompt rule. Rules: {', '.join(PROMPT_RULES)}, or all.")
    return frozenset() if "all" in disabled_names else frozenset(PROMPT_RULES) - set(disabled_names)


def _load_models(
    names: tuple[str, ...], max_requests: int, prompt_rules: frozenset[str], flags: dict[str, Any],
    stack: contextlib.ExitStack,
) -> dict[str, ModelQueue]:  # fmt: skip
    """Load the models and return their request queues by API name. `stack` closes the queues. Raises EdgechatError."""
    import msgspec

    from edgechat import config
    from edgechat.cli.progress import StderrStatus
    from edgechat.cli.session_factory import choose_model, load_settings, settings_from_flags
    from edgechat.serve.model_lease import ModelLease
    from edgechat.serve.model_queue import ModelQueue

    settings = config.with_overrides(load_settings(), settings_from_flags(**flags))
    status = StderrStatus()
    queues: dict[str, ModelQueue] = {}
    lease = ModelLease()
    try:
        for model_name in names or (settings.model,):
            name, path = choose_model(msgspec.structs.replace(settings, model=model_name))
            queue = ModelQueue(_choose_api_name(name, queues), path, settings, max_requests, lease, prompt_rules)
            queues[queue.name] = queue
            stack.callback(queue.close)
            queue.open(status.show)
            for warning in queue.warnings:
                status.note(warning)
    finally:
        status.clear()
    return queues


def make_api_name(name: str) -> str:
    """Return the name of a model in the API: that of a file without its folder and suffix."""
    return Path(name).stem if name.endswith(".gguf") else name


def _choose_api_name(name: str, other_names: Iterable[str]) -> str:
    """Return the name of a model in the API. Raises UsageError if `other_names` contains that name."""
    name = make_api_name(name)
    if name in other_names:
        raise UsageError(f"Two models would have the API name {name!r}. Rename one with `edgechat models alias`.")
    return name


def _print_address(addresses: list[str], names: list[str], *, has_key: bool, as_json: bool) -> None:
    """Print the address of the OpenAI API, and after it that of the Ollama port if the server listens there."""
    address, *ollama_addresses = addresses
    if as_json:
        ollama = {"ollama_url": ollama_addresses[0]} if ollama_addresses else {}
        echo_json({"url": address, "models": names, "has_key": has_key, **ollama})
        return
    key = "key required" if has_key else "no key required"
    click.echo(f"Serving {', '.join(names)} at {' and '.join(addresses)} ({key}; Ctrl-C stops the server)")
