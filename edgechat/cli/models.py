"""`edgechat models`: list, find, download and manage models."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgechat.cli.confirmation import confirm_deletion
from edgechat.cli.json_output import echo_json
from edgechat.cli.model_info import print_info
from edgechat.cli.model_lists import print_catalogue, print_folders, print_installed, print_skipped
from edgechat.cli.options import FilePath, IntRange, complete_model, json_option
from edgechat.cli.progress import DownloadMeter, StderrStatus, echo_note
from edgechat.humanize import format_count, format_size
from edgechat.terminal import escape_controls

if TYPE_CHECKING:
    from edgechat.catalogue.locations import SkippedPath
    from edgechat.errors import HubError

model_argument = click.argument("model", shell_complete=complete_model)


@click.group()
def models() -> None:
    """List, find, download and manage models.

    MODEL is a name from `list`, an alias, a catalogue ID (`qwen3.5-4b`, `qwen3.5-4b:q5_k_m`), a repository on the hub
    (`owner/repo`, `owner/repo:QUANT`), or the path of a .gguf file.
    """


@models.command("list")
@click.option("--catalogue", is_flag=True, help="List the models of the catalogue instead of installed models.")
@click.option(
    "--all", "all_kinds", is_flag=True, help="Include adapters, drafting heads, and projectors for images or audio."
)
@json_option
def list_(*, catalogue: bool, all_kinds: bool, as_json: bool) -> None:
    """List installed models, including those of other programs."""
    print_catalogue(as_json=as_json) if catalogue else print_installed(all_kinds=all_kinds, as_json=as_json)


@models.command()
@click.argument("words", nargs=-1, required=True)
@click.option(
    "-n",
    "--limit",
    type=IntRange(1, 100),
    default=20,
    show_default=True,
    metavar="N",
    help="Maximum number of results.",
)
@json_option
def search(words: tuple[str, ...], *, limit: int, as_json: bool) -> None:
    """Search the hub for GGUF models. Uses the network."""
    from edgechat.catalogue.hub import Hub
    from edgechat.errors import UsageError

    text = " ".join(words).strip()
    if not text:
        raise UsageError("The search text is empty. Give at least one word, such as `qwen`.")
    results = Hub().search(text, limit)
    if as_json:
        echo_json(results)
        return
    if not results:
        echo_note("No repositories found. Try fewer or other words.")
    else:
        click.echo(f"{'repository':<50} {'downloads':>9}  licence")
    for repo in results:
        gated_note = "  gated" if repo.is_gated else ""
        click.echo(escape_controls(f"{repo.id:<50} {repo.downloads:>9}  {repo.licence}{gated_note}"))


@models.command()
@model_argument
@click.option("--name", metavar="NAME", help="Alias to create for the model.")
@json_option
def pull(model: str, *, name: str | None, as_json: bool) -> None:
    """Download a model from the hub or a URL. Uses the network.

    To resume an interrupted download, run the same command again. Files from the hub are verified with the hub's
    hashes.
    """
    from edgechat.catalogue import library, resolve
    from edgechat.catalogue.pull import download_model, find_target
    from edgechat.errors import HubError

    resolve.check_is_not_remote(model)

    if name is not None:
        library.check_alias(name)
    try:
        target = find_target(model)
    except HubError as error:
        _report_installed(model, error)
        return
    meter = DownloadMeter(len(target.files))
    if not as_json:
        total_note = f" ({format_size(target.size_bytes)})" if target.size_bytes is not None else ""
        folder = target.files[0].path.parent
        echo_note(escape_controls(f"Downloading {target.reference}{total_note} to {folder}"))
    try:
        path = download_model(target, meter.show)
    except KeyboardInterrupt:
        meter.clear()
        echo_note("edgechat: Download stopped. Run the same command again to resume it.")
        raise
    finally:
        meter.clear()
    if name is not None:
        library.add_alias(name, path)
    entry = library.find_by_path(path)
    label = name or (entry.name if entry else str(path))
    if as_json:
        echo_json({"reference": target.reference, "path": path, "name": label, "size_bytes": target.size_bytes})
    else:
        click.echo(escape_controls(f"Installed as {label}. Start it with: edgechat -m {shlex.quote(label)}"))


def _report_installed(model: str, error: HubError) -> None:
    """Print the hub's error and the path of the model if `model` is installed; otherwise raise the error."""
    from edgechat.catalogue import library, resolve
    from edgechat.errors import CatalogueError, ModelFileError

    try:
        entry = resolve.find_installed_model(model, library.scan())
    except (ModelFileError, CatalogueError):
        raise error from None
    echo_note(f"edgechat: {escape_controls(str(error))}")
    click.echo(escape_controls(f"{entry.name} is already installed: {entry.path}"))


@models.command()
@model_argument
@json_option
def info(model: str, *, as_json: bool) -> None:
    """Show the properties of a model.

    The properties come from the header of the model file, or from the catalogue. For `owner/repo[:QUANT]`, only the
    header is downloaded from the hub; other models need no network.
    """
    print_info(model, as_json=as_json)


@models.command()
@click.argument("path", type=FilePath())
@click.option("--name", metavar="NAME", help="Alias to create for the model.")
@json_option
def add(path: Path, *, name: str | None, as_json: bool) -> None:
    """Add a .gguf file or a folder of models, without copying."""
    from edgechat.catalogue import library, locations
    from edgechat.errors import UsageError
    from edgechat.modelfile.split import read_header

    if path.is_dir():
        if name is not None:
            raise UsageError("A folder cannot have an alias. Name its models with `edgechat models alias`.")
        library.add_folder(path)
        skipped_paths: list[SkippedPath] = []
        n_models = sum(1 for _ in locations.find_model_files(locations.FOLDER, path, skipped_paths.append))
        print_skipped(skipped_paths)
        count_text = format_count(n_models, "model file") if n_models else "no model files (.gguf) yet"
        text = f"Added the folder {path}, which contains {count_text}."
        _print_result({"folder": path, "n_models": n_models}, text, as_json=as_json)
        return
    header = read_header(path)
    if name is not None:
        library.check_alias(name, path.absolute())
    library.add_file(path)
    if name is not None:
        library.add_alias(name, path.absolute())
    label = name or path.stem
    text = f"Added {path} ({header.architecture}, {header.quant}) as {label}."
    _print_result({"path": path, "name": label}, text, as_json=as_json)


@models.command()
@model_argument
@click.argument("quant")
@click.option("-o", "--output", type=FilePath(), metavar="FILE", help="File to write. Default: in the models folder.")
@json_option
def quantize(model: str, quant: str, *, output: Path | None, as_json: bool) -> None:
    """Convert an installed model to another quant, such as Q4_0.

    Needs no network, and only enough memory for a few tensors. A smaller quant uses less memory and is often faster;
    the result is best if the model is in F16, BF16 or Q8_0.
    """
    from edgechat.catalogue import library
    from edgechat.catalogue.resolve import find_model
    from edgechat.engine.client import EngineClient
    from edgechat.models.quantization import Quantization

    engine, status = EngineClient(), StderrStatus(print_lines=True)
    try:
        job = Quantization(engine, find_model(model), quant)
        target = output or job.default_target
        size_text = f"{format_size(job.header.file_bytes)} to {format_size(job.target_bytes)}"
        echo_note(escape_controls(f"{job.header.quant} to {job.quant}, {size_text}. {job.quality_note}"))
        job.run(target, lambda number, count: status.show(f"Quantising: tensor {number} of {count}"))
    except KeyboardInterrupt:
        status.clear()
        echo_note("edgechat: Stopped; nothing was written.")
        raise
    finally:
        status.clear()
        engine.close()
    entry = library.find_by_path(target)
    if as_json:
        echo_json({"path": target, "name": entry.name if entry else None, "size_bytes": target.stat().st_size})
    elif entry is not None:
        click.echo(escape_controls(f"Installed as {entry.name}. Start it with: edgechat -m {shlex.quote(entry.name)}"))
    else:
        click.echo(escape_controls(f"Wrote {target}. Install it with: edgechat models add {shlex.quote(str(target))}"))


@models.command()
@click.argument("name")
@click.argument("model", required=False, shell_complete=complete_model)
@click.option("--remove", is_flag=True, help="Delete the alias NAME.")
def alias(name: str, model: str | None, *, remove: bool) -> None:
    """Create or delete an alias for a model."""
    from edgechat.catalogue import library, resolve
    from edgechat.errors import UsageError

    if remove == (model is not None):
        raise UsageError("Give either a MODEL for the alias, or --remove to delete the alias.")
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

    resolve.check_name(model)
    if Path(model).is_dir() and library.remove_folder(Path(model)):
        _print_result(
            {"forgotten": model, "freed_bytes": 0}, f"Removed the folder {model} from the list.", as_json=as_json
        )
        return
    if model.endswith(".part") and Path(model).absolute() in library.find_partial_downloads():
        freed_bytes = library.delete_partial_download(Path(model).absolute())
        _print_result(
            {"removed": model, "freed_bytes": freed_bytes},
            f"Deleted {model}; {format_size(freed_bytes)} freed.",
            as_json=as_json,
        )
        return
    aliases = registry.read_records().aliases
    entry = next((e for e in library.scan() if model in e.aliases), None)
    if model in aliases and entry is None:
        library.remove_alias(model)
        _print_result(
            {"forgotten": model, "freed_bytes": 0}, f"Removed the alias {model}; the file stays.", as_json=as_json
        )
        return
    if entry is None and (missing_file := library.find_missing_file(model)) is not None:
        library.remove_file(missing_file)
        _print_result(
            {"forgotten": missing_file, "freed_bytes": 0}, f"Removed {missing_file} from the list.", as_json=as_json
        )
        return
    entry = entry or resolve.find_installed_model(model, library.scan())
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
            raise UsageError(
                f"To delete {entry.path} ({format_size(entry.facts.size_bytes)}) without a terminal, add --yes."
            )
        confirm_deletion(f"Delete {escape_controls(str(entry.path))} ({format_size(entry.facts.size_bytes)})?")
    freed_bytes = library.delete_model(entry)
    _print_result(
        {"removed": entry.path, "freed_bytes": freed_bytes},
        f"Deleted {entry.name}; {format_size(freed_bytes)} freed.",
        as_json=as_json,
    )


def _print_result(value: object, text: str, *, as_json: bool) -> None:
    echo_json(value) if as_json else click.echo(escape_controls(text))


@models.command()
@click.argument("model", required=False, shell_complete=complete_model)
@json_option
@click.pass_context
def verify(context: click.Context, model: str | None, *, as_json: bool) -> None:
    """Verify the file hashes of one model, or of all models.

    Exits with code 3 if any file does not match its hash.
    """
    from edgechat.catalogue import library, resolve, verify

    entries = (
        [resolve.find_installed_model(model, library.scan())]
        if model is not None
        else [e for e in library.scan() if e.facts.kind == "model"]
    )
    status = StderrStatus(print_lines=True)
    results = []
    for entry in entries:
        for result in verify.verify_files(entry, status.show):
            results.append(result)
            status.clear()
            if not as_json:
                click.echo(escape_controls(f"{result.path}: {result.description}"))
    if as_json:
        echo_json(results)
    if any(result.is_match is False for result in results):
        context.exit(3)


@models.command()
@json_option
def dirs(*, as_json: bool) -> None:
    """List the folders searched for models, with file counts."""
    print_folders(as_json=as_json)
