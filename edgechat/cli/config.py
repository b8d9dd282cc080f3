"""`edgechat config`: look at the settings, and change them."""

from __future__ import annotations

import click

from edgechat.errors import SettingsError

_TEMPLATE = """\
# Settings of edgechat. Environment variables (EDGECHAT_MODEL, EDGECHAT_N_CTX, ...) and flags go over them.
# Lines that start with # are the defaults.

"""


@click.group()
def config() -> None:
    """Look at the settings, and change them."""


@config.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(as_json: bool) -> None:
    """Print the settings in force (file and environment, without flags)."""
    import msgspec

    from edgechat.config import load

    settings, problems = load()
    if as_json:
        click.echo(msgspec.json.encode(settings).decode())
    else:
        for name, value in msgspec.structs.asdict(settings).items():
            click.echo(f"# {name} is not set" if value is None else f"{name} = {_toml(value)}")
    for problem in problems:
        click.echo(f"edgechat: {problem} (ignored)", err=True)


@config.command()
def path() -> None:
    """Print where the settings file is."""
    from edgechat.paths import config_file

    click.echo(config_file())


@config.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def personas(as_json: bool) -> None:
    """List your personas: TOML files with a system prompt, a model and sampling, used with --persona NAME."""
    import msgspec

    from edgechat.chat import personas as kept
    from edgechat.paths import personas_dir
    from edgechat.terminal import visible

    found = [kept.load(name) for name in kept.names()]
    if as_json:
        click.echo(msgspec.json.encode(found, enc_hook=str).decode())
        return
    for persona in found:
        values = ", ".join(f"{name} = {_toml(value)}" for name, value in persona.values.items())
        click.echo(f"{visible(persona.name)}: {visible(values)}")
        for problem in persona.problems:
            click.echo(f"edgechat: {visible(str(problem))} (ignored)", err=True)
    if not found:
        click.echo(f"there are none; make one: {personas_dir() / 'NAME.toml'}", err=True)


@config.command()
def validate() -> None:
    """Say what is wrong with the settings; exit code 2 if anything is."""
    _refuse_problems()
    click.echo("the settings are fine")


@config.command()
def edit() -> None:
    """Open the settings file in $EDITOR, and check it afterwards; exit code 2 if anything is wrong."""
    import msgspec

    from edgechat.config import Settings
    from edgechat.paths import config_file

    file = config_file()
    if not file.exists():
        defaults = msgspec.structs.asdict(Settings())
        lines = [f"# {name} =" if value is None else f"# {name} = {_toml(value)}" for name, value in defaults.items()]
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(_TEMPLATE + "\n".join(lines) + "\n", encoding="utf-8")
        except OSError as error:
            raise SettingsError(f"{file} cannot be made: {error.strerror or error}") from error
    try:
        click.edit(filename=str(file))
    except click.ClickException as error:
        raise SettingsError(f"{error.message} (the editor is $VISUAL or $EDITOR)") from error
    _refuse_problems()


def _refuse_problems() -> None:
    from edgechat.config import load

    _, problems = load()
    if problems:
        raise SettingsError("\n".join(["these settings are not used:", *(f"  {p}" for p in problems)]))


def _toml(value: object) -> str:
    """A value as the settings file has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
    return str(value)
