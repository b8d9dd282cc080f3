"""`edgechat uninstall`: list or delete edgechat's data, and print how to remove the program."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import click

from edgechat.cli.confirmation import confirm_deletion
from edgechat.cli.json_output import echo_json
from edgechat.cli.progress import echo_note
from edgechat.errors import LocalSocketError, UsageError

# File patterns of edgechat's data by kind. Other files in the same directories may belong to other programs.
_DATA_FILE_PATTERNS: Final = {
    "settings": ("config.toml*", "models.toml", "personas", "themes"),
    "conversations": ("history.db*", "drafts"),
    "documents": ("documents",),
    "models": ("models", "library.json*"),
    "cache": ("prefix", "running", "*.json", "*.json.lock", "engine.log*", "crash.log", "copied.txt"),
}
# Time for the engine of a program that has just been closed to save its prefixes and end.
_ENGINE_END_TIMEOUT_S: Final = 10.0
_POLL_INTERVAL_S: Final = 0.05
# Wait after which a message tells the user what the command waits for.
_SILENT_WAIT_S: Final = 1.0


class DataItem(NamedTuple):
    """A file or folder that edgechat wrote."""

    kind: str
    """Kind of data: settings, conversations, documents, models or cache."""
    path: Path
    n_bytes: int
    """Size in bytes; for a folder, the total size of the files in it."""


@click.command()
@click.option("--purge", is_flag=True, help="Delete all data: conversations, documents, settings, models, cache.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@click.option("--json", "as_json", is_flag=True, help="Print the list of data as JSON.")
def uninstall(*, purge: bool, yes: bool, as_json: bool) -> None:
    """List edgechat's data and how to remove the program.

    With --purge, deletes the data. Models of other programs are never deleted.
    """
    from edgechat import paths

    items = list(find_data_items())
    if as_json:
        rows = [{"what": item.kind, "path": str(item.path), "n_bytes": item.n_bytes} for item in items]
        echo_json(rows)
    else:
        _print_items(items)
    if not purge:
        if not as_json:
            purge_hint = "\nTo delete everything listed above, run `edgechat uninstall --purge`." if items else ""
            click.echo(f"\n{_format_removal_instructions()}{purge_hint}")
        return
    if items and not yes:
        if not sys.stdin.isatty():
            raise UsageError(
                "Nothing was deleted, because confirmation needs a terminal. Add --yes to delete without confirmation."
            )
        confirm_deletion("Delete everything listed above permanently?", err=as_json)
    _wait_until_engines_end()
    own_directories = {paths.config_dir(), paths.data_dir(), paths.cache_dir()}
    for item in items:
        _delete_path(item.path, own_directories)
    if not as_json:
        click.echo(f"Deleted all data.\n{_format_removal_instructions()}")


def find_data_items() -> Iterator[DataItem]:
    """Yield every file and folder of edgechat's data on this machine."""
    from edgechat import paths
    from edgechat.engine.local_socket import locate_socket_dir

    directories = {
        "settings": paths.config_dir(), "conversations": paths.data_dir(), "documents": paths.data_dir(),
        "models": paths.data_dir(), "cache": paths.cache_dir(),
    }  # fmt: skip
    for kind, patterns in _DATA_FILE_PATTERNS.items():
        for pattern in patterns:
            for path in sorted(directories[kind].glob(pattern)):
                yield DataItem(kind, path, _compute_size_bytes(path))
    with contextlib.suppress(LocalSocketError):
        sockets = locate_socket_dir()  # it may be outside the cache
        if sockets.is_dir():
            yield DataItem("cache", sockets, _compute_size_bytes(sockets))


def _compute_size_bytes(path: Path) -> int:
    if path.is_symlink():
        return 0
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if file.is_file() and not file.is_symlink())


def _print_items(items: list[DataItem]) -> None:
    from edgechat.humanize import format_size

    if not items:
        click.echo("There is no edgechat data on this machine.")
    for item in items:
        click.echo(f"{item.kind:<15}{format_size(item.n_bytes):>10}  {item.path}")


def _format_removal_instructions() -> str:
    prefix = Path(sys.prefix)
    if getattr(sys, "frozen", False):
        unpacked_folder = Path(sys.executable).parent.parent
        return f"To remove the program, delete the file that you started and the folder {unpacked_folder}."
    if (prefix / "pipx_metadata.json").exists():
        return f"To remove the program, run `pipx uninstall {prefix.name}`."
    if prefix.parts[-3:] == ("share", "edgechat", "venv"):
        return "To remove the program, run uninstall.sh from the bundle that installed it."
    if prefix.parts[:2] == ("/", "opt"):
        return "To remove the program, run `sudo apt remove edgechat`."
    return f"The program is installed in {prefix}; remove it with the tool that installed it."


def _stop_idle_engines() -> None:
    """End the engines that only keep a model in memory, so that they do not count as running programs."""
    from edgechat.engine.resident_client import stop_idle_engine

    with contextlib.suppress(LocalSocketError):  # then there are no resident engines
        while stop_idle_engine():
            pass


def _wait_until_engines_end() -> None:
    """Stop idle engines, and wait until no engine process has a model loaded.

    Raises UsageError if one still has after `_ENGINE_END_TIMEOUT_S`: another program uses it.
    """
    from edgechat.models import instances

    started_at = time.monotonic()
    is_announced = False
    while True:
        _stop_idle_engines()
        running_instances = instances.other_instances()
        if not running_instances:
            return
        pid = running_instances[0].pid
        waited_s = time.monotonic() - started_at
        if waited_s >= _ENGINE_END_TIMEOUT_S:
            raise UsageError(
                f"Nothing was deleted: edgechat is running (process {pid} has a model loaded). Close it first."
            )
        if waited_s >= _SILENT_WAIT_S and not is_announced:
            echo_note(f"Waiting for edgechat (process {pid}) to end ...")
            is_announced = True
        time.sleep(_POLL_INTERVAL_S)


def _delete_path(path: Path, own_directories: Collection[Path]) -> None:
    """Delete a file or folder, and its parent if that is an empty folder of edgechat."""
    import shutil

    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    parent = path.parent
    if parent in own_directories and parent.is_dir() and not any(parent.iterdir()):
        parent.rmdir()
