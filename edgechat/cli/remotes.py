"""`edgechat remotes`: add, list, test and remove servers with an OpenAI-compatible API."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import click

from edgechat.cli.json_output import echo_json
from edgechat.cli.options import json_option
from edgechat.cli.progress import StderrStatus, echo_note
from edgechat.errors import EdgechatError, UsageError
from edgechat.humanize import format_count
from edgechat.terminal import escape_controls

if TYPE_CHECKING:
    from edgechat.config import Settings
    from edgechat.remote.model_lists import ModelList
    from edgechat.remote_settings import RemoteSettings

# Maximum number of models that `test` prints.
_MAX_SHOWN_MODELS: Final = 20


def complete_remote(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of remotes that start with `incomplete`, for shell completion."""
    from edgechat.config import load

    return [name for name in load()[0].remotes if name.startswith(incomplete.lower())]


@click.group()
def remotes() -> None:
    """Use models of other machines, or of other programs.

    A remote is a server with an OpenAI-compatible API, such as llama-server, vLLM, Ollama, LM Studio, or `edgechat
    serve` on another machine. `edgechat -m NAME/MODEL` chats with one of its models. Nothing is sent to a remote unless
    you choose one of its models.
    """


@remotes.command()
@click.argument("name")
@click.argument("url")
@click.option("--key-env", metavar="VARIABLE", help="Environment variable with the API key.")
@click.option("--keyring", is_flag=True, help="The API key is in the keyring of the system.")
@click.option("--model", metavar="MODEL", help="Model that `-m NAME` means.")
@json_option
def add(name: str, url: str, key_env: str | None, keyring: bool, model: str | None, as_json: bool) -> None:
    """Add a remote to the settings.

    URL is the address of the API, such as http://192.168.1.5:8080/v1; without a path, /v1 is added. The key itself is
    never saved: --key-env names the variable that has it, and with --keyring, `keyring set edgechat NAME` saves it.
    Does not use the network; `edgechat remotes test NAME` does.
    """
    import urllib.parse

    from edgechat.config import save_remote
    from edgechat.remote_settings import KEYRING, RemoteSettings, check_remote

    if key_env and keyring:
        raise UsageError("Give --key-env or --keyring, not both.")
    settings = _load()
    if name in settings.remotes:
        raise UsageError(f"There is a remote {name} already. Remove it with `edgechat remotes remove {name}`.")
    if url.count("://") == 1 and urllib.parse.urlsplit(url).path in {"", "/"}:
        url = url.rstrip("/") + "/v1"
    remote = RemoteSettings(url=url, api_key_env=KEYRING if keyring else key_env or "", model=model or "")
    if problem := check_remote(name, remote):
        raise UsageError(f"The remote {problem}.")
    _check_local_names(name)
    save_remote(name, remote)
    if as_json:
        echo_json(_make_object(name, remote, None))
        return
    click.echo(f"Added {name}: {url}")
    if settings.model == "auto" or model:
        echo_note(f"edgechat: Test it with `edgechat remotes test {name}`; chat with `edgechat -m {name}/MODEL`.")
    if key_env and not os.environ.get(key_env):
        echo_note(f"edgechat: {key_env} is not set yet. Set it to the API key before you use the remote.")


@remotes.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List the remotes and their known models. Does not use the network."""
    from edgechat.remote.model_lists import find_list

    settings = _load()
    rows = [(name, remote, find_list(name, remote)) for name, remote in settings.remotes.items()]
    if as_json:
        echo_json([_make_object(*row) for row in rows])
        return
    if not rows:
        echo_note("No remotes yet. Add one with `edgechat remotes add NAME URL`.")
    for name, remote, model_list in rows:
        parts = [f"{name:<12} {remote.url}", _describe_key(remote)]
        if remote.model:
            parts.append(f"default model {remote.model}")
        if model_list is not None:
            parts.append(format_count(len(model_list.models), "model"))
        click.echo(escape_controls(", ".join(filter(None, parts))))


@remotes.command()
@click.argument("name", shell_complete=complete_remote)
@click.option("--model", metavar="MODEL", help="Model that replies; by default that of the settings, or the first one.")
@json_option
def test(name: str, model: str | None, as_json: bool) -> None:
    """List the models of a remote, and ask one for a short reply.

    Prints the time of the list, and the time until the first token and until the end of the reply. The list is saved
    for completions.
    """
    from edgechat.remote.probe import probe_list, probe_reply
    from edgechat.remote.target import RemoteModel

    remote = _find_remote(name)
    status = StderrStatus()
    try:
        status.show(f"Asking {name} for its models")
        probed = probe_list(name, remote)
        names = [listed.id for listed in probed.models]
        if not as_json:
            status.clear()
            click.echo(f"{format_count(len(names), 'model')} in {probed.elapsed_s:.2f} s")
            for listed in probed.models[:_MAX_SHOWN_MODELS]:
                length = f", context of {listed.n_ctx:,} tokens" if listed.n_ctx else ""
                click.echo(escape_controls(f"  {name}/{listed.id}{length}"))
            if len(names) > _MAX_SHOWN_MODELS:
                click.echo(f"  and {len(names) - _MAX_SHOWN_MODELS} more")
        chosen = model or remote.model or next(iter(names), "")
        if not chosen:
            raise UsageError(f"{name} lists no models. Name one with --model.")
        status.show(f"Asking {name}/{chosen} for a short reply")
        reply = probe_reply(RemoteModel(remote=name, model=chosen, settings=remote))
    finally:
        status.clear()
    if as_json:
        echo_json(
            {"name": name, "url": remote.url, "models": probed.models, "list_s": probed.elapsed_s, "reply": reply}
        )
        return
    text = " ".join(reply.text.split())
    click.echo(
        escape_controls(
            f"{reply.model} replied {text!r}: first token after {reply.first_token_s:.2f} s, "
            f"end after {reply.total_s:.2f} s"
        )
    )


@remotes.command()
@click.argument("name", shell_complete=complete_remote)
@json_option
def remove(name: str, as_json: bool) -> None:
    """Remove a remote from the settings. Conversations with its models stay."""
    from edgechat.config import save_remote
    from edgechat.remote.model_lists import remove_list

    remote = _find_remote(name)
    users = _find_users(name)
    save_remote(name, None)
    remove_list(name)
    if users:
        subject = f"{' and '.join(users)} in the settings still {'uses' if len(users) == 1 else 'use'}"
        echo_note(f"edgechat: {subject} {name}. `edgechat config edit` changes this.")
    if as_json:
        echo_json(_make_object(name, remote, None))
    else:
        click.echo(f"Removed {name}: {remote.url}")


def _load() -> Settings:
    from edgechat.cli.session_factory import load_settings

    return load_settings()


def _find_remote(name: str) -> RemoteSettings:
    """Return the settings of the remote `name`. Raises UsageError if there is none."""
    known = _load().remotes
    if name not in known:
        names = f"Remotes: {', '.join(known)}." if known else "Add one with `edgechat remotes add NAME URL`."
        raise UsageError(f"There is no remote {name}. {names}")
    return known[name]


def _find_users(name: str) -> list[str]:
    """Return the names of the settings that use models of the remote `name`."""
    from edgechat.config import load

    settings = load()[0]
    models = {"model": settings.model, **{f"route.{side}": settings.route.get(side) for side in ("small", "large")}}
    return [setting for setting, model in models.items() if str(model).partition("/")[0] == name]


def _check_local_names(name: str) -> None:
    """Raise UsageError if a model on this machine has the name, which would then mean that model."""
    from edgechat.catalogue.resolve import find_model

    try:
        find_model(name)
    except EdgechatError:
        return
    raise UsageError(f"{name} is the name of a model on this machine. Choose another name for the remote.")


def _describe_key(remote: RemoteSettings) -> str:
    from edgechat.remote.keys import has_keyring
    from edgechat.remote_settings import KEYRING

    variable = remote.api_key_env
    if not variable:
        return "no key"
    if variable == KEYRING:
        return "key in the keyring" if has_keyring() else "key in the keyring, but the package keyring is not installed"
    return f"key in {variable}" if os.environ.get(variable) else f"key missing in {variable}"


def _make_object(name: str, remote: RemoteSettings, model_list: ModelList | None) -> dict[str, Any]:
    from edgechat.remote_settings import KEYRING

    variable = remote.api_key_env
    return {
        "name": name, "url": remote.url, "api_key_env": variable, "model": remote.model,
        "is_key_set": None if variable in {"", KEYRING} else bool(os.environ.get(variable)),
        "models": model_list.models if model_list is not None else None,
        "listed_at_ms": model_list.listed_at_ms if model_list is not None else None,
    }  # fmt: skip
