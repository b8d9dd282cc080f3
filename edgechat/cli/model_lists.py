"""Print the installed models, the models of the catalogue, and the folders that are searched for models."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from edgechat.cli.json_output import echo_json
from edgechat.cli.progress import echo_note
from edgechat.humanize import format_count, format_size
from edgechat.terminal import escape_controls

if TYPE_CHECKING:
    from edgechat.catalogue.locations import SkippedPath

_MAX_SHOWN_SKIPPED: Final = 20


def print_installed(*, all_kinds: bool, as_json: bool) -> None:
    """Print the installed models. With `all_kinds`, include adapters, heads and projectors. Raises CatalogueError."""
    from edgechat.catalogue import library

    skipped_paths: list[SkippedPath] = []
    entries = [entry for entry in library.scan(skipped_paths.append) if all_kinds or entry.facts.kind == "model"]
    if as_json:
        echo_json(entries)
        return
    print_skipped(skipped_paths)
    if not entries:
        echo_note("No models installed. See `edgechat models list --catalogue`, then run `edgechat models pull MODEL`.")
        return
    width = min(36, max(len(entry.name) for entry in entries))
    click.echo(f"{'name':<{width}} {'quant':<10}{'size':>8}  {'source':<10}{'last used':<11}state")
    for entry in entries:
        facts = entry.facts
        state = facts.problem or (facts.kind if facts.kind != "model" else entry.state)
        line = (
            f"{entry.name:<{width}} {facts.quant:<10}{format_size(facts.size_bytes):>8}  {entry.source:<10}"
            f"{library.format_last_use(entry.last_used_at):<11}"
        )
        click.echo(escape_controls(f"{line}{state}").rstrip())
        for alias in entry.aliases:
            click.echo(f"  alias {escape_controls(alias)}")
    for part in library.find_partial_downloads():
        click.echo(
            escape_controls(
                f"Incomplete download ({format_size(library.on_disk_bytes(part))}): {part}; "
                "resume it with `edgechat models pull`, or delete it with `edgechat models remove PATH`"
            )
        )


def print_catalogue(*, as_json: bool) -> None:
    """Print the models of the catalogue. Raises CatalogueError if the user's catalogue is invalid."""
    from edgechat.catalogue import curated

    curated.read_user_catalogue()
    entries = list(curated.load_catalogue().values())
    if as_json:
        echo_json(entries)
        return
    from edgechat.cli.catalogue_info import print_rows

    print_rows(entries, shutil.get_terminal_size().columns if sys.stdout.isatty() else None)


def print_folders(*, as_json: bool) -> None:
    """Print the folders that are searched for models, with file counts. Raises CatalogueError."""
    from edgechat.catalogue import locations, registry

    folders = [Path(folder) for folder in registry.read_records().folders]
    folder_rows: list[dict[str, Any]] = []
    all_skipped_paths: list[SkippedPath] = []
    for source, path in locations.list_locations(folders):
        skipped_paths: list[SkippedPath] = []
        n_files = sum(1 for _ in locations.find_model_files(source, path, skipped_paths.append))
        folder_rows.append(
            {
                "from": source,
                "path": path,
                "is_there": os.path.isdir(path),  # noqa: PTH112  (Path.is_dir raises an exception without access)
                "n_files": n_files,
                "skipped": [skipped_path._asdict() for skipped_path in skipped_paths],
            }
        )
        all_skipped_paths += skipped_paths
    if as_json:
        echo_json(folder_rows)
        return
    for row in folder_rows:
        count_text = format_count(row["n_files"], "file") if row["is_there"] else "missing"
        click.echo(escape_controls(f"{row['from']:<10}  {count_text:>10}  {row['path']}"))
    print_skipped(all_skipped_paths)


def print_skipped(skipped_paths: Sequence[SkippedPath]) -> None:
    """Print the files and folders that the search for models skipped, with the reasons, to standard error."""
    for skipped_path in skipped_paths[:_MAX_SHOWN_SKIPPED]:
        echo_note(escape_controls(f"edgechat: {skipped_path.path} {skipped_path.reason}"))
    if len(skipped_paths) > _MAX_SHOWN_SKIPPED:
        n_more = len(skipped_paths) - _MAX_SHOWN_SKIPPED
        echo_note(f"edgechat: {format_count(n_more, 'more path')} skipped")
