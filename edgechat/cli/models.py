"""`edgechat models`: list, find, download and manage models."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgechat.cli.model_info import print_info
from edgechat.cli.options import complete_model
from edgechat.cli.progress import Meter
from edgechat.humanize import size
from edgechat.terminal import escape_controls

if TYPE_CHECKING:
    from edgechat.errors import HubError

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


model_argument = click.argument("model", shell_complete=complete_model)


@click.group()
def models() -> None:
    """List, find, download and manage models.

    A MODEL is a name from `list`, an alias, a catalogue ID (`qwen3.5-4b`, `qwen3.5-4b:q5_k_m`), a repository on the hub
    (`owner/repo`, `owner/repo:QUANT`), or the path of a .gguf file.
    """


def _print_json(value: object) -> None:
    import msgspec

    click.echo(msgspec.json.encode(value, enc_hook=str).decode())


@models.command("list")
@click.option("--catalogue", is_flag=True, help="List the catalogue instead of installed models.")
@click.option("--all", "with_others", is_flag=True, help="Include projectors for images or audio, and adapters.")
@json_option
def list_(*, catalogue: bool, with_others: bool, as_json: bool) -> None:
    """List installed models, including those of other programs."""
    from edgechat.catalogue import curated, library

    if catalogue:
        curated.read_user_catalogue()
        known_models = list(curated.load().values())
        _print_json(known_models) if as_json else _print_catalogue(known_models)
        return
    entries = [entry for entry in library.scan() if with_others or entry.facts.kind == "model"]
    if as_json:
        _print_json(entries)
        return
    if not entries:
        click.echo(
            "No models installed. See `edgechat models list --catalogue`, then run `edgechat models pull MODEL`.",
            err=True,
        )
        return
    width = min(36, max(len(entry.name) for entry in entries))
    click.echo(f"{'name':<{width}} {'quant':<10}{'size':>8}  {'from':<10}{'used':<7}state")
    for entry in entries:
        facts = entry.facts
        state = facts.problem or (facts.kind if facts.kind != "model" else entry.state)
        line = (
            f"{entry.name:<{width}} {facts.quant:<10}{size(facts.size_bytes):>8}  {entry.source:<10}"
            f"{library.last_used_text(entry.last_used_at):<7}"
        )
        click.echo(escape_controls(f"{line}{state}").rstrip())
        for alias in entry.aliases:
            click.echo(f"  alias {escape_controls(alias)}")
    for part in library.partial_downloads():
        click.echo(
            escape_controls(
                f"incomplete download ({size(library.on_disk_bytes(part))}): {part}; "
                "resume it with `models pull`, or delete it with `models remove PATH`"
            )
        )


def _print_catalogue(entries: list[Any]) -> None:
    click.echo(f"{'id':<28}{'weights':>7}{'smallest':>9}  {'licence':<11}{'thinks':<7}{'tools':<6}good at")
    for model in entries:
        sizes = list(model.sizes().values())
        weights = f"{model.shape.n_params / 1e9:.2f}B" if model.shape.n_params else ""
        click.echo(
            f"{model.id:<28}{weights:>7}{size(sizes[0]) if sizes else '':>9}  {(model.licence or '?')[:10]:<11}"
            f"{model.thinking or '?':<7}{'?' if model.tools is None else 'yes' if model.tools else 'no':<6}"
            f"{', '.join(model.good_at)}".rstrip()
        )


@models.command()
@click.argument("words", nargs=-1, required=True)
@click.option(
    "-n",
    "--limit",
    type=click.IntRange(1, 100),
    default=20,
    show_default=True,
    metavar="N",
    help="Maximum number of results.",
)
@json_option
def search(words: tuple[str, ...], *, limit: int, as_json: bool) -> None:
    """Search the hub for GGUF models. Uses the network."""
    from edgechat.catalogue.hub import Hub

    results = Hub().search(" ".join(words), limit)
    if as_json:
        _print_json(results)
        return
    if not results:
        click.echo("No repository matches.", err=True)
    else:
        click.echo(f"{'':<50} {'downloads':>9}  licence")
    for repo in results:
        gated = "  gated" if repo.is_gated else ""
        click.echo(escape_controls(f"{repo.id:<50} {repo.downloads:>9}  {repo.licence}{gated}"))


@models.command()
@model_argument
@click.option("--name", metavar="NAME", help="Alias for the model.")
@json_option
def pull(model: str, *, name: str | None, as_json: bool) -> None:
    """Download a model from the hub or a URL. Uses the network.

    An interrupted download resumes with the same command. It is verified against the hub's hash.
    """
    from edgechat.catalogue import library
    from edgechat.catalogue import pull as pulling
    from edgechat.errors import HubError

    if name:
        library.check_alias(name)
    try:
        target = pulling.find_target(model)
    except HubError as error:
        _report_installed(model, error)
        return
    meter = Meter(len(target.files))
    if not as_json:
        total = f" ({size(target.size_bytes)})" if target.size_bytes is not None else ""
        click.echo(escape_controls(f"Downloading {target.reference}{total} to {target.files[0].path.parent}"), err=True)
    try:
        path = pulling.download_model(target, meter.show)
    except KeyboardInterrupt:
        meter.end()
        click.echo("edgechat: Download stopped. The same command resumes it.", err=True)
        raise
    finally:
        meter.end()
    if name:
        library.add_alias(name, path)
    entry = next((entry for entry in library.scan() if path in (entry.path, *entry.also_at)), None)
    label = name or (entry.name if entry else str(path))
    if as_json:
        _print_json({"reference": target.reference, "path": path, "name": label, "size_bytes": target.size_bytes})
    else:
        click.echo(escape_controls(f"Installed as {label}. Start it with: edgechat -m {shlex.quote(label)}"))


def _report_installed(model: str, error: HubError) -> None:
    """Report where `model` is installed; raise `error`, the failure of the hub, if it is not installed."""
    from edgechat.catalogue import library, resolve
    from edgechat.errors import ModelFileError

    try:
        entry = resolve.find_installed(model, library.scan())
    except ModelFileError:
        raise error from None
    click.echo(f"edgechat: {escape_controls(str(error))}", err=True)
    click.echo(escape_controls(f"{entry.name} is already installed: {entry.path}"))


@models.command()
@model_argument
@json_option
def info(model: str, *, as_json: bool) -> None:
    """Show a model's properties from its header or the catalogue.

    For `owner/repo[:QUANT]` the header is read from the hub, without downloading the weights. Only this uses the
    network.
    """
    print_info(model, as_json=as_json)


@models.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--name", metavar="NAME", help="Alias for the model.")
@json_option
def add(path: Path, *, name: str | None, as_json: bool) -> None:
    """Add a .gguf file or a folder of models, without copying."""
    from edgechat.catalogue import library
    from edgechat.errors import UsageError
    from edgechat.modelfile.split import read_header

    if path.is_dir():
        if name:
            raise UsageError("A folder cannot have an alias. Name its models with `edgechat models alias`.")
        library.add_folder(path)
        _print_result({"folder": path}, f"Added the models in {path}.", as_json=as_json)
        return
    header = read_header(path)
    library.add_file(path)
    if name:
        library.add_alias(name, path.absolute())
    label = name or path.stem
    text = f"Added {path} ({header.architecture}, {header.quant}) as {label}."
    _print_result({"path": path, "name": label}, text, as_json=as_json)


@models.command()
@click.argument("name")
@click.argument("model", required=False, shell_complete=complete_model)
@click.option("--remove", is_flag=True, help="Delete the alias instead.")
def alias(name: str, model: str | None, *, remove: bool) -> None:
    """Create or delete an alias for a model."""
    from edgechat.catalogue import library, resolve
    from edgechat.errors import UsageError

    if remove == (model is not None):
        raise UsageError("Give either a MODEL or --remove.")
    if model is None:
        library.remove_alias(name)
    else:
        library.add_alias(name, resolve.find_model(model).absolute())


@models.command()
@model_argument
@click.option("-y", "--yes", is_flag=True, help="Do not ask for confirmation.")
@json_option
def remove(model: str, *, yes: bool, as_json: bool) -> None:
    """Delete a downloaded model, or remove a folder or alias."""
    from edgechat.catalogue import library, locations, registry, resolve
    from edgechat.errors import UsageError

    if Path(model).is_dir() and library.remove_folder(Path(model)):
        _print_result(
            {"forgotten": model, "freed_bytes": 0}, f"Removed the folder {model} from the list.", as_json=as_json
        )
        return
    if model.endswith(".part") and Path(model).absolute() in library.partial_downloads():
        freed = library.delete_partial_download(Path(model).absolute())
        _print_result({"removed": model, "freed_bytes": freed}, f"Deleted; {size(freed)} freed.", as_json=as_json)
        return
    aliases = registry.read_records().aliases
    entry = next((e for e in library.scan() if model in e.aliases), None)
    if model in aliases and entry is None:
        library.remove_alias(model)
        _print_result(
            {"forgotten": model, "freed_bytes": 0}, f"Removed the alias {model}; the file stays.", as_json=as_json
        )
        return
    entry = entry or resolve.find_installed(model, library.scan())
    if entry.source == locations.FILE and library.remove_file(entry.path):
        _print_result(
            {"forgotten": entry.path, "freed_bytes": 0},
            f"Removed {entry.path} from the list; the file stays.",
            as_json=as_json,
        )
        return
    library.check_deletable(entry)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(f"Deleting {entry.path} ({size(entry.facts.size_bytes)}) requires --yes.")
        click.confirm(f"Delete {escape_controls(str(entry.path))} ({size(entry.facts.size_bytes)})?", abort=True)
    freed = library.delete_model(entry)
    _print_result(
        {"removed": entry.path, "freed_bytes": freed},
        f"Deleted {entry.name}; {size(freed)} freed.",
        as_json=as_json,
    )


def _print_result(value: object, text: str, *, as_json: bool) -> None:
    _print_json(value) if as_json else click.echo(escape_controls(text))


@models.command()
@click.argument("model", required=False, shell_complete=complete_model)
@json_option
@click.pass_context
def verify(context: click.Context, model: str | None, *, as_json: bool) -> None:
    """Check the hashes of one model's files, or of all models.

    Exit code 3 if any file differs.
    """
    from edgechat.catalogue import library, resolve, verify

    entries = (
        [resolve.find_installed(model, library.scan())]
        if model
        else [e for e in library.scan() if e.facts.kind == "model"]
    )
    on_progress = (
        (lambda words: click.echo(f"\r\x1b[2K{escape_controls(words)}", nl=False, err=True))
        if sys.stderr.isatty()
        else None
    )
    results = []
    for entry in entries:
        for result in verify.verify_files(entry, on_progress):
            results.append(result)
            if on_progress is not None:
                click.echo("\r\x1b[2K", nl=False, err=True)
            if not as_json:
                click.echo(escape_controls(f"{result.path}: {result.description}"))
    if as_json:
        _print_json(results)
    if any(result.is_good is False for result in results):
        context.exit(3)


@models.command()
@json_option
def dirs(*, as_json: bool) -> None:
    """List the folders searched for models, with file counts."""
    from edgechat.catalogue import locations, registry

    folders = [Path(folder) for folder in registry.read_records().folders]
    searched = [
        {
            "from": source,
            "path": path,
            "is_there": path.is_dir(),
            "n_files": sum(1 for _ in locations.find_model_files(source, path)),
        }
        for source, path in locations.search_locations(folders)
    ]
    if as_json:
        _print_json(searched)
        return
    for each in searched:
        count = f"{each['n_files']} file{'s' * (each['n_files'] != 1)}" if each["is_there"] else "missing"
        click.echo(escape_controls(f"{each['from']:<10}  {count:>10}  {each['path']}"))
