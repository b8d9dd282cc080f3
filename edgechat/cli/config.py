"""`edgechat config`: show, check and edit the settings."""

from __future__ import annotations

import os
import sys
import textwrap
from typing import Final

import click

from edgechat.cli.json_output import echo_json
from edgechat.cli.progress import echo_note
from edgechat.errors import EdgechatError, SettingsError, UsageError

_SETTINGS_FILE_HEADER = """\
# Settings of edgechat. Environment variables (EDGECHAT_MODEL, EDGECHAT_N_CTX, ...)
# and command-line options override this file.
# To change a setting, remove the # at the start of its last line and edit the value.
"""
# Examples in the settings file, for settings without a default value.
_EXAMPLES: Final[dict[str, object]] = {
    "seed": 42, "n_ctx": 8192, "budget": "4GB", "n_threads": 4, "max_tokens": 1000, "reasoning": True, "ascii": True,
    "thinking": "medium",
}  # fmt: skip
_KEYS_EXAMPLE: Final = '{ "chat.search" = "ctrl+f,f7" }'
_ROUTE_EXAMPLE: Final = '{ small = "starter", large = "box/llama3", min_logprob = -0.5 }'
_REMOTES_EXAMPLE: Final = '{ box = { url = "http://192.168.1.5:8080/v1", api_key_env = "BOX_API_KEY" } }'
_COMMENT_WIDTH: Final = 90


@click.group()
def config() -> None:
    """Show, check and edit the settings."""


@config.command()
@click.option("--json", "as_json", is_flag=True, help="Print the settings as one JSON object.")
def show(as_json: bool) -> None:
    """Print the settings in effect, from file and environment."""
    import msgspec

    from edgechat.cli.session_factory import report_problems
    from edgechat.config import load

    settings, problems = load()
    if as_json:
        echo_json(settings)
    else:
        for name, value in msgspec.structs.asdict(settings).items():
            click.echo(f"# {name} is not set" if value is None else f"{name} = {_format_toml(value)}")
    report_problems(problems)


@config.command()
def path() -> None:
    """Print the path of the settings file."""
    from edgechat.paths import config_file

    click.echo(os.fsencode(config_file()))  # as bytes, because the name of a folder may be in any encoding


@config.command()
@click.option("--json", "as_json", is_flag=True, help="Print the personas as JSON.")
def personas(as_json: bool) -> None:
    """List the personas for the option --persona.

    A persona is a TOML file with a system prompt, and optionally a model and sampling settings.
    """
    from edgechat.chat.personas import list_names, load
    from edgechat.paths import personas_dir
    from edgechat.terminal import escape_controls

    loaded_personas = [load(name) for name in list_names()]
    if as_json:
        echo_json(loaded_personas)
        return
    for persona in loaded_personas:
        values = ", ".join(f"{name} = {_format_toml(value)}" for name, value in persona.values.items())
        click.echo(f"{escape_controls(persona.name)}: {escape_controls(values)}")
        for problem in persona.problems:
            echo_note(f"edgechat: {escape_controls(str(problem))} (ignored)")
    if not loaded_personas:
        echo_note(f"No personas yet. To create one, write {personas_dir() / 'NAME.toml'}.")


@config.command()
def validate() -> None:
    """Check the settings; exit with code 2 if any is invalid."""
    _check_settings()
    click.echo("The settings are valid.")


@config.command()
def edit() -> None:
    """Open the settings file in $EDITOR, then check it.

    The editor is $VISUAL or $EDITOR, or else nano or vi. If the file does not exist, a file that explains each setting
    is created.

    Exits with code 2 if any setting is invalid.
    """
    from edgechat.paths import config_file
    from edgechat.tui.editor import Editor, find_editor

    file = config_file()
    is_editor_set = bool(os.environ.get("VISUAL") or os.environ.get("EDITOR"))
    [editor, *_] = find_editor()
    if not sys.stdin.isatty() and not is_editor_set:
        raise UsageError(f"An editor needs a terminal. Run this command in a terminal, or edit {file} directly.")
    if not file.exists():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(make_settings_template(), encoding="utf-8")
        except OSError as error:
            raise SettingsError(f"Cannot create {file}: {error.strerror or error}") from error
    if not is_editor_set:
        echo_note(f"edgechat: Opening the settings file with {editor}. Set $EDITOR to use another editor.")
    Editor().edit_file(file)
    _check_settings()


def make_settings_template() -> str:
    """Return a settings file that contains every setting as a comment, with a help text and a default or an example.

    Without its first character `#`, the line of a setting is valid TOML.
    """
    import msgspec

    from edgechat.config import Settings, describe_settings

    descriptions = describe_settings()
    lines = [_SETTINGS_FILE_HEADER]
    for name, default in msgspec.structs.asdict(Settings()).items():
        lines += [f"# {line}" for line in textwrap.wrap(descriptions[name], _COMMENT_WIDTH)]
        if name == "keys":
            lines.append(f"# Default: no changes. Example:\n#{name} = {_KEYS_EXAMPLE}\n")
        elif name == "remotes":
            lines.append(f"# Default: none. Example:\n#{name} = {_REMOTES_EXAMPLE}\n")
        elif name == "route":
            lines.append(f"# Default: none. Example:\n#{name} = {_ROUTE_EXAMPLE}\n")
        elif default is None:
            lines.append(f"# Default: unset. Example:\n#{name} = {_format_toml(_EXAMPLES[name])}\n")
        else:
            lines.append(f"#{name} = {_format_toml(default)}\n")
    return "\n".join(lines)


def _check_settings() -> None:
    from edgechat.chat.model_targets import find_model_target
    from edgechat.config import AUTO, OFF, load
    from edgechat.models.draft_models import check_draft_file
    from edgechat.remote_settings import ROUTE
    from edgechat.tui.app import ChatApp

    settings, problems = load()
    all_problems = [str(problem) for problem in problems]
    all_problems += map(_add_location, ChatApp.find_appearance_problems(settings))
    if settings.model != AUTO:
        try:
            find_model_target(settings)
        except EdgechatError as error:
            text = str(error)
            if text.startswith(f"{ROUTE}."):
                all_problems.append(f"{_locate(ROUTE).removesuffix(ROUTE)}{text}")
            elif not any(str(problem) in text for problem in problems):
                all_problems.append(f"{_locate('model')}: {text}")
    if settings.draft_model not in {AUTO, OFF}:
        try:
            check_draft_file(settings.draft_model)
        except EdgechatError as error:
            all_problems.append(f"{_locate('draft_model')}: {error}")
    if all_problems:
        raise SettingsError("\n".join(["Problems in the settings:", *(f"  {problem}" for problem in all_problems)]))


def _add_location(problem: str) -> str:
    """Replace the name of a setting at the beginning of a problem by the location of the setting."""
    name, _, text = problem.partition(": ")
    if name not in ("theme", "keys"):  # the problem begins with the file of a theme
        return problem
    return f"{_locate(name)}: {text}"


def _locate(name: str) -> str:
    """Return the location of a setting: its environment variable, if set, or else the settings file and `name`."""
    from edgechat.config import ENVIRONMENT_PREFIX
    from edgechat.paths import config_file

    variable = ENVIRONMENT_PREFIX + name.upper()
    return variable if variable in os.environ else f"{config_file()}: {name}"


def _format_toml(value: object) -> str:
    from edgechat.remote_settings import RemoteSettings

    if isinstance(value, RemoteSettings):
        value = value.to_table()
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        pairs = ", ".join(f"{_format_toml(str(k))} = {_format_toml(v)}" for k, v in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_format_toml, value))}]"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
    return str(value)
