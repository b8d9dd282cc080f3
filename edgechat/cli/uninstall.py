"""`edgechat uninstall`: list or delete edgechat's data, and explain how to remove the program."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import click

from edgechat.errors import UsageError

# File patterns of edgechat's data. The directories can hold other programs' files, for example under EDGECHAT_HOME.
_DATA_FILE_PATTERNS: Final = {
    "settings": ("config.toml*", "models.toml", "personas", "themes"),
    "conversations": ("history.db*", "drafts"),
    "models": ("models", "library.json*"),
    "cache": ("prefix", "running", "*.json", "*.json.lock", "engine.log*", "crash.log", "copied.txt"),
}


class DataItem(NamedTuple):
    """A file or folder that edgechat wrote."""

    what: str
    """Kind of data: settings, conversations, models or cache."""
    path: Path
    n_bytes: int
    """Size including the content of a folder."""


@click.command()
@click.option("--purge", is_flag=True, help="Delete all data: conversations, settings, models, cache.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def uninstall(*, purge: bool, yes: bool, as_json: bool) -> None:
    """List edgechat's data and how to remove the program.

    With --purge, deletes the data. Models of other programs are never touched.
    """
    items = list(data_items())
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode([each._asdict() | {"path": str(each.path)} for each in items]).decode())
    else:
        _show(items)
    if not purge:
        if not as_json:
            purge_hint = "\n`edgechat uninstall --purge` deletes everything listed above." if items else ""
            click.echo(f"\n{_how_to_remove()}{purge_hint}")
        return
    _refuse_while_running()
    if items and not yes:
        if not sys.stdin.isatty():
            raise UsageError("Nothing was deleted: without a terminal for confirmation, --yes is required.")
        click.confirm("Delete all of this permanently?", abort=True, err=as_json)
    for each in items:
        _remove(each.path)
    if not as_json:
        click.echo(f"All data has been deleted.\n{_how_to_remove()}")


def data_items() -> Iterator[DataItem]:
    """Yield every file and folder of edgechat's data on this machine."""
    from edgechat import paths

    directories = {
        "settings": paths.config_dir(), "conversations": paths.data_dir(), "models": paths.data_dir(),
        "cache": paths.cache_dir(),
    }  # fmt: skip
    for what, patterns in _DATA_FILE_PATTERNS.items():
        for pattern in patterns:
            for path in sorted(directories[what].glob(pattern)):
                yield DataItem(what, path, _size(path))


def _size(path: Path) -> int:
    if path.is_symlink():
        return 0
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if file.is_file() and not file.is_symlink())


def _show(items: list[DataItem]) -> None:
    from edgechat.humanize import size

    if not items:
        click.echo("There is no data of edgechat on this machine.")
    for each in items:
        click.echo(f"{each.what:<15}{size(each.n_bytes):>10}  {each.path}")


def _how_to_remove() -> str:
    prefix = Path(sys.prefix)
    if getattr(sys, "frozen", False):
        unpacked = Path(sys.executable).parent.parent
        return f"To remove the program, delete the file that you started and the folder {unpacked}."
    if (prefix / "pipx_metadata.json").exists():
        return f"To remove the program: `pipx uninstall {prefix.name}`."
    if prefix.parts[-3:] == ("share", "edgechat", "venv"):
        return "To remove the program, run the uninstall.sh of its bundle."
    if prefix.parts[:2] == ("/", "opt"):
        return "To remove the program: `sudo apt remove edgechat`."
    return f"The program is installed in {prefix}; remove it with the tool that installed it."


def _refuse_while_running() -> None:
    from edgechat.models import instances

    running = instances.other_instances()
    if running:
        raise UsageError(
            f"Nothing was deleted: edgechat is running (process {running[0].pid} has a model loaded). Close it first."
        )


def _remove(path: Path) -> None:
    import shutil

    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    parent = path.parent
    if parent.is_dir() and not any(parent.iterdir()):
        parent.rmdir()
