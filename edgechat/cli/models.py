"""`edgechat models`: what is on this machine, what there is, and getting it."""

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
from edgechat.terminal import visible

if TYPE_CHECKING:
    from edgechat.errors import HubError

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


model_argument = click.argument("model", shell_complete=complete_model)


@click.group()
def models() -> None:
    """Model files: what is here, what there is, and getting it.

    A MODEL is a name as `list` shows it, a name you gave, an id of the catalogue (`qwen3.5-4b`, `qwen3.5-4b:q5_k_m`), a
    repository of the hub (`owner/repo`, `owner/repo:QUANT`), or the path of a .gguf file.
    """


def _print_json(value: object) -> None:
    import msgspec

    click.echo(msgspec.json.encode(value, enc_hook=str).decode())


@models.command("list")
@click.option("--catalogue", is_flag=True, help="What the catalogue has, instead of what is here.")
@click.option(
    "--all", "with_others", is_flag=True, help="Also what only turns pictures or sound into input, and adapters."
)
@json_option
def list_(*, catalogue: bool, with_others: bool, as_json: bool) -> None:
    """List the models on this machine, also those of other programs, each once."""
    from edgechat.catalogue import curated, library

    if catalogue:
        curated.read_own()
        found = list(curated.load().values())
        _print_json(found) if as_json else _print_catalogue(found)
        return
    entries = [entry for entry in library.scan() if with_others or entry.facts.kind == "model"]
    if as_json:
        _print_json(entries)
        return
    if not entries:
        click.echo(
            "no models here yet; `edgechat models list --catalogue` shows some, `edgechat models pull` gets one",
            err=True,
        )
        return
    width = min(36, max(len(entry.name) for entry in entries))
    click.echo(f"{'name':<{width}} {'quant':<10}{'size':>8}  {'from':<10}{'used':<7}state")
    for entry in entries:
        facts = entry.facts
        state = facts.problem or (facts.kind if facts.kind != "model" else entry.state)
        words = f"{entry.name:<{width}} {facts.quant:<10}{size(facts.size_bytes):>8}  {entry.source:<10}{library.ago(entry.used_s):<7}"
        click.echo(visible(f"{words}{state}").rstrip())
        for alias in entry.aliases:
            click.echo(f"  also called {visible(alias)}")
    for part in library.unfinished():
        click.echo(
            visible(
                f"not whole yet ({size(library.on_disk_bytes(part))}): {part}; pull it again, or remove it by this path"
            )
        )


def _print_catalogue(found: list[Any]) -> None:
    click.echo(f"{'id':<28}{'weights':>7}{'smallest':>9}  {'licence':<11}{'thinks':<7}{'tools':<6}good at")
    for model in found:
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
    "-n", "--limit", type=click.IntRange(1, 100), default=20, show_default=True, metavar="N", help="At most so many."
)
@json_option
def search(words: tuple[str, ...], *, limit: int, as_json: bool) -> None:
    """Search the hub for repositories with GGUF models. Asks the network."""
    from edgechat.catalogue.hub import Hub

    found = Hub().search(" ".join(words), limit)
    if as_json:
        _print_json(found)
        return
    if not found:
        click.echo("nothing was found", err=True)
    else:
        click.echo(f"{'':<50} {'downloads':>9}  licence")
    for repo in found:
        gated = "  gated" if repo.is_gated else ""
        click.echo(visible(f"{repo.id:<50} {repo.downloads:>9}  {repo.licence}{gated}"))


@models.command()
@model_argument
@click.option("--name", metavar="NAME", help="A name to call it by.")
@json_option
def pull(model: str, *, name: str | None, as_json: bool) -> None:
    """Get a model from the hub, or from an address. Asks the network.

    Interrupted at any moment, the same command goes on where it was. What arrives is checked against the hub's own hash.
    """
    from edgechat.catalogue import library
    from edgechat.catalogue import pull as pulling
    from edgechat.errors import HubError

    if name:
        library.check_alias(name)
    try:
        target = pulling.find(model)
    except HubError as error:
        _say_what_is_here(model, error)
        return
    meter = Meter(len(target.files))
    if not as_json:
        what = f" ({size(target.size_bytes)})" if target.size_bytes is not None else ""
        click.echo(visible(f"{target.reference}{what} to {target.files[0].path.parent}"), err=True)
    try:
        path = pulling.get(target, meter.show)
    except KeyboardInterrupt:
        meter.end()
        click.echo("edgechat: stopped; what arrived is kept, and the same command goes on from there", err=True)
        raise
    finally:
        meter.end()
    if name:
        library.add_alias(name, path)
    entry = next((entry for entry in library.scan() if path in (entry.path, *entry.also_at)), None)
    called = name or (entry.name if entry else str(path))
    if as_json:
        _print_json({"reference": target.reference, "path": path, "name": called, "size_bytes": target.size_bytes})
    else:
        click.echo(visible(f"here now, and called {called}: edgechat -m {shlex.quote(called)}"))


def _say_what_is_here(model: str, error: HubError) -> None:
    """Raises the error, if what cannot be asked for is not here either."""
    from edgechat.catalogue import library, resolve
    from edgechat.errors import ModelFileError

    try:
        entry = resolve.resolve(model, library.scan())
    except ModelFileError:
        raise error from None
    click.echo(f"edgechat: {visible(str(error))}", err=True)
    click.echo(visible(f"{entry.name} is here already: {entry.path}"))


@models.command()
@model_argument
@json_option
def info(model: str, *, as_json: bool) -> None:
    """Say what a model is, from its header: of a file here, of the catalogue, or of the hub without its weights.

    Only `owner/repo[:QUANT]` asks the network.
    """
    print_info(model, as_json=as_json)


@models.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--name", metavar="NAME", help="A name to call it by.")
@json_option
def add(path: Path, *, name: str | None, as_json: bool) -> None:
    """Let edgechat find a .gguf file, or all those in a folder, where they are. Nothing is copied."""
    from edgechat.catalogue import library
    from edgechat.errors import UsageError
    from edgechat.modelfile.split import read_header

    if path.is_dir():
        if name:
            raise UsageError("a folder gets no name: name the models in it, with `edgechat models alias`")
        library.add_folder(path)
        _done({"folder": path}, f"models in {path} are found from now on", as_json=as_json)
        return
    header = read_header(path)
    library.add_file(path)
    if name:
        library.add_alias(name, path.absolute())
    called = name or path.stem
    words = f"{path} ({header.architecture}, {header.quant}) is called {called} from now on"
    _done({"path": path, "name": called}, words, as_json=as_json)


@models.command()
@click.argument("name")
@click.argument("model", required=False, shell_complete=complete_model)
@click.option("--remove", is_flag=True, help="Forget the name instead.")
def alias(name: str, model: str | None, *, remove: bool) -> None:
    """Give a model a name of your own, or forget it."""
    from edgechat.catalogue import library, resolve
    from edgechat.errors import UsageError

    if remove == (model is not None):
        raise UsageError("name a MODEL, or --remove")
    if model is None:
        library.remove_alias(name)
    else:
        library.add_alias(name, resolve.find_model(model).absolute())


@models.command()
@model_argument
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@json_option
def remove(model: str, *, yes: bool, as_json: bool) -> None:
    """Delete a model that edgechat got, and say what that frees; of a folder or a name that was added, forget it."""
    from edgechat.catalogue import library, locations, registry, resolve
    from edgechat.errors import UsageError

    if Path(model).is_dir() and library.remove_folder(Path(model)):
        _done({"forgotten": model, "freed_bytes": 0}, f"models in {model} are no longer looked for", as_json=as_json)
        return
    if model.endswith(".part") and Path(model).absolute() in library.unfinished():
        freed = library.remove_unfinished(Path(model).absolute())
        _done({"removed": model, "freed_bytes": freed}, f"{size(freed)} are free again", as_json=as_json)
        return
    aliases = registry.read_records().aliases
    entry = next((e for e in library.scan() if model in e.aliases), None)
    if model in aliases and entry is None:
        library.remove_alias(model)
        _done({"forgotten": model, "freed_bytes": 0}, f"{model} is forgotten; the file stays", as_json=as_json)
        return
    entry = entry or resolve.resolve(model, library.scan())
    if entry.source == locations.FILE and library.remove_file(entry.path):
        _done(
            {"forgotten": entry.path, "freed_bytes": 0}, f"{entry.path} is forgotten; the file stays", as_json=as_json
        )
        return
    library.check_ours(entry)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(f"{entry.path} ({size(entry.facts.size_bytes)}) would be deleted: say --yes")
        click.confirm(f"Delete {visible(str(entry.path))} ({size(entry.facts.size_bytes)})?", abort=True)
    freed = library.remove(entry)
    _done(
        {"removed": entry.path, "freed_bytes": freed},
        f"{entry.name} is gone; {size(freed)} are free again",
        as_json=as_json,
    )


def _done(value: object, words: str, *, as_json: bool) -> None:
    _print_json(value) if as_json else click.echo(visible(words))


@models.command()
@click.argument("model", required=False, shell_complete=complete_model)
@json_option
@click.pass_context
def verify(context: click.Context, model: str | None, *, as_json: bool) -> None:
    """Compute the hashes of a model's files, or of all models, and compare them with what they should be.

    Exit code 3 if any differs.
    """
    from edgechat.catalogue import library, resolve, verify

    entries = (
        [resolve.resolve(model, library.scan())] if model else [e for e in library.scan() if e.facts.kind == "model"]
    )
    tell = (lambda words: click.echo(f"\r\x1b[2K{visible(words)}", nl=False, err=True)) if sys.stderr.isatty() else None
    results = []
    for entry in entries:
        for result in verify.verify(entry, tell):
            results.append(result)
            if tell is not None:
                click.echo("\r\x1b[2K", nl=False, err=True)
            if not as_json:
                click.echo(visible(f"{result.path}: {result.words}"))
    if as_json:
        _print_json(results)
    if any(result.is_good is False for result in results):
        context.exit(3)


@models.command()
@json_option
def dirs(*, as_json: bool) -> None:
    """Show where models are looked for, and how many are there."""
    from edgechat.catalogue import locations, registry

    folders = [Path(folder) for folder in registry.read_records().folders]
    found = [
        {
            "from": source,
            "path": path,
            "is_there": path.is_dir(),
            "n_files": sum(1 for _ in locations.spot(source, path)),
        }
        for source, path in locations.directories(folders)
    ]
    if as_json:
        _print_json(found)
        return
    for place in found:
        count = f"{place['n_files']} files" if place["is_there"] else "not there"
        click.echo(visible(f"{place['from']:<10}  {count:>10}  {place['path']}"))
