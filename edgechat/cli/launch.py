"""`edgechat launch`: start a coding agent with a model on this machine."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from edgechat.cli.json_output import echo_json
from edgechat.cli.options import complete_model, generation_options
from edgechat.cli.progress import StderrStatus
from edgechat.cli.serve import make_api_name
from edgechat.errors import UsageError
from edgechat.launch.agent import KEY_VARIABLE, Endpoint
from edgechat.launch.agents import AGENTS
from edgechat.terminal import escape_controls

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from edgechat.launch.agent import Agent, AgentSettings
    from edgechat.launch.server import LaunchedServer

# Values that only a running server has, as --print shows them.
_ADDRESS: Final = "http://127.0.0.1:PORT"
_KEY: Final = "KEY"
_FOLDER: Final = Path("FOLDER")


@click.command()
@click.argument("name", metavar="[AGENT]", type=click.Choice(list(AGENTS)), required=False)
@click.argument("arguments", nargs=-1, metavar="[-- ARGUMENTS]", type=click.UNPROCESSED)
@click.option(
    "-m",
    "--model",
    metavar="NAME",
    shell_complete=complete_model,
    help="Model name or .gguf file. `edgechat models` lists and downloads models.",
)
@click.option("--server", "url", metavar="URL", help="Use this running `edgechat serve`; its key is in "
              f"{KEY_VARIABLE}.")  # fmt: skip
@click.option("--print", "prints", is_flag=True, help="Print the settings of the agent, and start nothing.")
@click.option("--force", is_flag=True, help="Start the agent even if the context is too short for it.")
@click.option("--json", "as_json", is_flag=True, help="Print the settings, or the list of agents, as JSON.")
@generation_options
@click.pass_context
def launch(
    context: click.Context,
    /,
    *,
    name: str | None,
    arguments: tuple[str, ...],
    model: str | None,
    url: str | None,
    prints: bool,
    force: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Start a coding agent with a model on this machine.

    Starts a server for the model, checks the model, starts the agent with settings for this run only, and ends the
    server with the agent. The exit code is the agent's. Without AGENT, lists the agents.
    """
    if arguments and name is None:
        raise UsageError("Name the agent before its arguments, for example `edgechat launch claude -- --help`.")
    if url is not None and any(value is not None for value in flags.values()):
        raise UsageError("Options of the model have no effect with --server. Set them when you start that server.")
    if prints:
        _print_settings([AGENTS[name]] if name is not None else list(AGENTS.values()), model, url, flags,
                        arguments=arguments, as_json=as_json)  # fmt: skip
    elif name is None:
        _print_agents(as_json=as_json)
    elif as_json:
        raise UsageError("--json needs --print, because the output of a started agent is its own.")
    else:
        context.exit(_run(AGENTS[name], arguments, model, url, flags, force=force))


def _print_agents(*, as_json: bool) -> None:
    from edgechat.launch.program import find_program

    programs = {agent.name: find_program(agent) for agent in AGENTS.values()}
    if as_json:
        echo_json({"agents": [
            {"name": agent.name, "title": agent.title, "is_installed": programs[agent.name] is not None,
             "program": programs[agent.name], "min_n_ctx": agent.min_n_ctx, "usual_n_ctx": agent.usual_n_ctx}
            for agent in AGENTS.values()
        ]})  # fmt: skip
        return
    for agent in AGENTS.values():
        click.echo(f"{agent.name:<10}{agent.title:<14}{escape_controls(programs[agent.name] or 'not installed')}")
    click.echo("\nStart one with `edgechat launch AGENT`.")


def _run(
    agent: Agent, arguments: tuple[str, ...], model: str | None, url: str | None, flags: Mapping[str, object],
    *, force: bool,
) -> int:  # fmt: skip
    """Start the server unless `url` names one, check the model, run the agent and return its exit code."""
    from edgechat.launch.checks import check_context, list_warnings
    from edgechat.launch.program import open_folder, require_program, run_program

    program = require_program(agent)
    status = StderrStatus()
    server = None
    try:
        if url is not None:
            endpoint = _find_endpoint(url, model)
        else:
            server, endpoint = _start_server(agent, model, flags, status, force=force)
        if not force:
            check_context(agent, endpoint.model, endpoint.n_ctx, is_running=url is not None)
        for warning in list_warnings(agent, endpoint):
            status.note(warning)
        with open_folder() as folder:
            exit_code = run_program(program, agent.make_settings(endpoint, folder), folder, arguments)
        if server is not None:
            status.note(server.describe_early_exit())
        return exit_code
    finally:
        status.clear()
        if server is not None:
            server.close()


def _start_server(
    agent: Agent, model: str | None, flags: Mapping[str, object], status: StderrStatus, *, force: bool
) -> tuple[LaunchedServer, Endpoint]:
    """Start a server for the model and wait until it is loaded. Raises EdgechatError."""
    from edgechat.launch.checks import check_context
    from edgechat.launch.server import LaunchedServer, fetch_endpoint

    name, longest_n_ctx = _choose_model(model, flags)
    if not force:  # without loading the model
        check_context(agent, make_api_name(name), longest_n_ctx)
    server = LaunchedServer(["-m", name, *_format_flags(flags)])
    try:
        with status.announce_wait(), status.show_elapsed():
            status.show(f"Loading {make_api_name(name)} for {agent.title}")
            address = server.wait_for_address()
        status.clear()
        for note in server.read_log_lines():
            status.note(note)
        return server, fetch_endpoint(address, server.api_key)
    except BaseException:
        server.close()
        raise


def _choose_model(model: str | None, flags: Mapping[str, object]) -> tuple[str, int]:
    """Return the name of the model and the longest context that it can have. Raises EdgechatError."""
    from edgechat import config
    from edgechat.cli.session_factory import choose_model, load_settings, settings_from_flags
    from edgechat.modelfile.split import read_header

    settings = config.with_overrides(load_settings(), settings_from_flags(model=model, **flags))
    name, path = choose_model(settings)
    n_ctx_train = read_header(path).n_ctx_train
    return name, settings.n_ctx or n_ctx_train  # a longer context than the training length is extended with YaRN


def _format_flags(flags: Mapping[str, object]) -> Iterator[str]:
    """Yield options for the command line of `edgechat serve`."""
    option_names = {"n_ctx": "--ctx", "n_threads": "--threads"}
    for name, value in flags.items():
        option = option_names.get(name, f"--{name.replace('_', '-')}")
        if value is True:
            yield option
        elif value is False:
            yield f"--no-{option.removeprefix('--')}"
        elif value is not None:
            yield f"{option}={value}"


def _find_endpoint(url: str, model: str | None) -> Endpoint:
    import os

    from edgechat.launch.server import fetch_endpoint, normalize_address

    return fetch_endpoint(normalize_address(url), os.environ.get(KEY_VARIABLE, ""), model)


def _print_settings(
    agents: list[Agent], model: str | None, url: str | None, flags: Mapping[str, object],
    *, arguments: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """Print the settings of agents. Values that only a running server has are replaced by words in capitals."""
    import msgspec

    from edgechat.launch.program import find_program

    if url is not None:
        endpoint = msgspec.structs.replace(_find_endpoint(url, model), api_key=_KEY)
    else:
        name, n_ctx = _choose_model(model, flags)
        endpoint = Endpoint(_ADDRESS, _KEY, make_api_name(name), n_ctx)
    all_settings = [(agent, agent.make_settings(endpoint, _FOLDER)) for agent in agents]
    if as_json:
        echo_json({
            "model": endpoint.model, "url": endpoint.openai_url, "n_ctx": endpoint.n_ctx,
            "agents": [
                {"name": agent.name, "title": agent.title, "program": find_program(agent),
                 "min_n_ctx": agent.min_n_ctx, "fits": endpoint.n_ctx >= agent.min_n_ctx,
                 "variables": settings.variables, "removed_variables": settings.removed_variables,
                 "arguments": [*settings.arguments, *arguments], "files": settings.files}
                for agent, settings in all_settings
            ],
        })  # fmt: skip
        return
    for index, (agent, settings) in enumerate(all_settings):
        click.echo(("\n" if index else "") + "\n".join(_format_settings(agent, settings, endpoint, arguments)))


def _format_settings(
    agent: Agent, settings: AgentSettings, endpoint: Endpoint, arguments: tuple[str, ...]
) -> Iterator[str]:
    """Yield lines for a POSIX shell."""
    yield escape_controls(
        f"# {agent.title} with {endpoint.model}, context up to {endpoint.n_ctx:,} tokens (needs {agent.min_n_ctx:,})"
    )
    if settings.removed_variables:
        yield f"unset {' '.join(settings.removed_variables)}"
    for name, value in settings.variables.items():
        yield escape_controls(f"export {name}={shlex.quote(value)}")
    for name, text in settings.files.items():
        yield f"# file {_FOLDER / name}:"
        yield from (escape_controls(f"#   {line}") for line in text.splitlines())
    yield escape_controls(shlex.join([agent.name, *settings.arguments, *arguments]))
