"""`edgechat uninstall`: what edgechat keeps on this machine, and how to be rid of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import click

from edgechat.errors import UsageError

# What is ours in a directory that may also be somebody else's, such as one that EDGECHAT_HOME names.
_OURS: Final = {
    "settings": ("config.toml*", "models.toml", "personas", "themes"),
    "conversations": ("history.db*", "drafts"),
    "models": ("models", "library.json*"),
    "cache": ("prefix", "running", "*.json", "*.json.lock", "engine.log*", "crash.log", "copied.txt"),
}


class Kept(NamedTuple):
    """Something that edgechat wrote."""

    what: str
    path: Path
    n_bytes: int
    """With all that is in it."""


@click.command()
@click.option("--purge", is_flag=True, help="Remove all of it: conversations, settings, models, cache.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def uninstall(*, purge: bool, yes: bool, as_json: bool) -> None:
    """Show what edgechat keeps on this machine and how to remove the program; with --purge, remove what it keeps.

    Models that other programs keep are never touched.
    """
    found = list(kept())
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode([each._asdict() | {"path": str(each.path)} for each in found]).decode())
    else:
        _show(found)
    if not purge:
        if not as_json:
            click.echo(f"\n{_how_to_remove()}\n`edgechat uninstall --purge` removes what is listed above.")
        return
    _refuse_while_running()
    if found and not yes:
        if not sys.stdin.isatty():
            raise UsageError("nothing was removed: without a terminal to ask, say --yes")
        click.confirm("Remove all of that for good?", abort=True, err=as_json)
    for each in found:
        _remove(each.path)
    if not as_json:
        click.echo(f"All of that is removed.\n{_how_to_remove()}")


def kept() -> Iterator[Kept]:
    """What there is of ours, each file or folder once."""
    from edgechat import paths

    places = {
        "settings": paths.config_dir(), "conversations": paths.data_dir(), "models": paths.data_dir(), "cache": paths.cache_dir()
    }  # fmt: skip
    for what, patterns in _OURS.items():
        for pattern in patterns:
            for path in sorted(places[what].glob(pattern)):
                yield Kept(what, path, _size(path))


def _size(path: Path) -> int:
    if path.is_symlink():
        return 0
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if file.is_file() and not file.is_symlink())


def _show(found: list[Kept]) -> None:
    from edgechat.humanize import size

    if not found:
        click.echo("edgechat keeps nothing on this machine.")
    for each in found:
        click.echo(f"{each.what:<15}{size(each.n_bytes):>10}  {each.path}")


def _how_to_remove() -> str:
    prefix = Path(sys.prefix)
    if getattr(sys, "frozen", False):
        unpacked = Path(sys.executable).parent.parent
        return f"The program itself is the file that you started; what it unpacked is in {unpacked}. Delete that file and that folder."
    if (prefix / "pipx_metadata.json").exists():
        return f"The program itself goes with `pipx uninstall {prefix.name}`."
    if prefix.parts[-3:] == ("share", "edgechat", "venv"):
        return "The program itself goes with the uninstall.sh of its bundle."
    if prefix.parts[:2] == ("/", "opt"):
        return "The program itself goes with `sudo apt remove edgechat`."
    return f"The program itself is in {prefix}: it goes as it came."


def _refuse_while_running() -> None:
    from edgechat.models import instances

    others = instances.others()
    if others:
        raise UsageError(
            f"edgechat runs (process {others[0].pid} has a model loaded): end it first, nothing was removed"
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
