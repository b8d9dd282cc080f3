"""Installed models: list each model on this machine once, edit aliases and model folders, and delete models."""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path
from typing import Final

import msgspec

from edgechat import paths
from edgechat.catalogue import locations, registry
from edgechat.catalogue.locations import LocalFile
from edgechat.catalogue.registry import ModelFacts, ModelFactsCache, ModelRecords, VerifiedHash
from edgechat.errors import CatalogueError, ModelFileError
from edgechat.modelfile.content_hash import HashMemo
from edgechat.modelfile.split import model_files

STARTER: Final = "starter"
_STARTER_PACKAGE: Final = "edgechat_starter"


class InstalledModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model on this machine."""

    path: Path
    source: str
    name: str
    """Display name, unique among all installed models."""
    facts: ModelFacts
    repo: str
    sha256: str
    """Expected SHA-256 of the first file, from its path; "" if the path does not contain a hash."""
    state: str
    """Result of the last verification: `verified`, `differs`, `unchanged` since the first hash, or "" without one."""
    aliases: tuple[str, ...]
    last_used_at: float | None = msgspec.field(name="used_s")
    """Unix time of the last use, in seconds; None if the model was never used."""
    also_at: tuple[Path, ...] = ()
    """Other paths of the same file, or of a file with the same hash."""

    @property
    def is_usable(self) -> bool:
        """True if the model can be loaded: no problem in its header, and neither projector nor adapter."""
        return not self.facts.problem and self.facts.kind == "model"


def starter_model() -> Path:
    """Return the path of the starter model. Raises ModelFileError if its package is not installed."""
    import importlib.util

    spec = importlib.util.find_spec(_STARTER_PACKAGE)
    for directory in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(directory).glob("*.gguf")):
            return path
    raise ModelFileError(
        "The starter model is not installed. Choose a model file with --model, "
        "or install edgechat with its `starter` extra (in a source checkout: `make setup`)."
    )


def scan() -> list[InstalledModel]:
    """Find all models on this machine. Files with the same inode or expected hash are listed as one model.

    Raises CatalogueError if the records are damaged.
    """
    records, cache, memo = registry.read_records(), ModelFactsCache(), HashMemo(paths.prefix_dir())
    by_inode: dict[tuple[int, int], list[LocalFile]] = {}
    for source, directory in [
        *locations.search_locations([Path(folder) for folder in records.folders]),
        *((locations.FILE, Path(file)) for file in records.files),
    ]:
        for file in locations.find_model_files(source, directory):
            try:
                stat = file.path.stat()
            except OSError:
                continue
            by_inode.setdefault((stat.st_dev, stat.st_ino), []).append(file)
    by_hash: dict[str, list[LocalFile]] = {}
    unhashed = []
    for copies in by_inode.values():
        sha256 = next((file.sha256 for file in copies if file.sha256), "")
        if sha256:
            by_hash.setdefault(sha256, []).extend(copies)
        else:
            unhashed.append(copies)
    groups = [*by_hash.values(), *unhashed]
    models = _with_unique_names([_installed_model(copies, records, cache, memo) for copies in groups])
    all_paths = {str(file.path) for copies in groups for file in copies}
    cache.save(keep=all_paths.__contains__)
    return sorted(models, key=lambda model: (model.facts.kind != "model", model.name.lower()))


def _installed_model(
    copies: list[LocalFile], records: ModelRecords, cache: ModelFactsCache, memo: HashMemo
) -> InstalledModel:
    first = copies[0]
    keys = {str(file.path) for file in copies}
    is_starter = first.source == locations.PACKAGE and _STARTER_PACKAGE in first.path.parts
    return InstalledModel(
        path=first.path, source=first.source, name=STARTER if is_starter else first.name, facts=cache.get(first.path),
        sha256=next((file.sha256 for file in copies if file.sha256), ""), state=_state(first.path, records, memo),
        repo=next((file.repo for file in copies if file.repo), ""),
        aliases=tuple(sorted(alias for alias, path in records.aliases.items() if path in keys)),
        last_used_at=max((used_at for path, used_at in records.last_used_at.items() if path in keys), default=None),
        also_at=tuple(sorted({file.path for file in copies} - {first.path})),
    )  # fmt: skip


def _state(first: Path, records: ModelRecords, memo: HashMemo) -> str:
    """Return the verification state of a model: `differs` or "" if any of its files has this state."""
    states = {_file_state(path, records.verified.get(str(path)), memo) for path in model_files(first)}
    return next((state for state in ("differs", "", "unchanged") if state in states), "verified")


def _file_state(path: Path, verified: VerifiedHash | None, memo: HashMemo) -> str:
    if verified is None:
        return ""
    current = memo.get(path)
    if current is None and verified.mtime_ns and path.exists() and verified.mtime_ns == path.stat().st_mtime_ns:
        # Hash saved by an older release, which stored the modification time in the record, not in HashMemo.
        current = verified.sha256
    if current is None:
        return ""
    if current != (verified.expected or verified.sha256):
        return "differs"
    return "verified" if verified.expected else "unchanged"


def _with_unique_names(models: list[InstalledModel]) -> list[InstalledModel]:
    """Rename models with equal names: prepend the repository or append the source, then append a number."""
    used_names: set[str] = set()
    renamed = []
    for model in models:
        longer = f"{model.repo}/{model.name}" if model.repo else f"{model.name}@{model.source.replace(' ', '-')}"
        numbered = (f"{longer}-{number}" for number in itertools.count(2))
        candidates = itertools.chain((model.name, longer), numbered)
        name = next(name for name in candidates if name.lower() not in used_names)
        used_names.add(name.lower())
        renamed.append(msgspec.structs.replace(model, name=name))
    return renamed


def is_path_like(name: str) -> bool:
    """Return True if `name` looks like a file path. Model names and aliases never do, so no file can shadow a model."""
    return name.lower().endswith(".gguf") or name.startswith((".", "~", os.sep, "/")) or os.sep == "\\" in name


# Changes to aliases, folders and files


def check_alias(name: str, path: Path | None = None) -> None:
    """Check that `name` can become an alias of the model at `path`. Raises CatalogueError if not."""
    if not name or is_path_like(name) or "/" in name or ":" in name or not name.isprintable() or name == STARTER:
        raise CatalogueError(
            f"{name!r} cannot be an alias, because it has the form of a path or a repository, or is reserved"
        )
    if any(name.lower() == model.name.lower() and path not in (model.path, *model.also_at) for model in scan()):
        raise CatalogueError(f"Another model already has the name {name!r}. Choose another alias.")


def add_alias(name: str, path: Path) -> None:
    """Store an alias for the model at `path`. Raises CatalogueError if the name is not allowed."""
    check_alias(name, path)
    with registry.edit_records() as records:
        records.aliases[name] = str(path)


def remove_alias(name: str) -> None:
    """Delete an alias, but not its model. Raises CatalogueError if the alias does not exist."""
    with registry.edit_records() as records:
        if records.aliases.pop(name, None) is None:
            raise CatalogueError(f"No alias {name!r}. `edgechat models list` shows all aliases.")


def add_folder(folder: Path) -> None:
    """Add a folder to the locations that are searched for models. Raises CatalogueError if it is not a folder."""
    if not folder.is_dir():
        raise CatalogueError(f"{folder} is not a folder")
    with registry.edit_records() as records:
        if str(folder.resolve()) not in records.folders:
            records.folders.append(str(folder.resolve()))


def remove_folder(folder: Path) -> bool:
    """Remove a folder from the searched locations, without deleting files. Returns False if it was not among them."""
    with registry.edit_records() as records:
        if str(folder.resolve()) not in records.folders:
            return False
        records.folders.remove(str(folder.resolve()))
        return True


def add_file(path: Path) -> None:
    """Record a single model file at its present path, without copying it. Raises CatalogueError."""
    with registry.edit_records() as records:
        if str(path.absolute()) not in records.files:
            records.files.append(str(path.absolute()))


def remove_file(path: Path) -> bool:
    """Remove an added file and its aliases from the records, without deleting it. Returns False if it was not added."""
    with registry.edit_records() as records:
        if str(path) not in records.files:
            return False
        records.files.remove(str(path))
        records.aliases = {alias: target for alias, target in records.aliases.items() if target != str(path)}
        return True


def partial_downloads() -> list[Path]:
    """Return the `.part` files of incomplete downloads."""
    return sorted(paths.models_dir().rglob("*.part")) if paths.models_dir().is_dir() else []


def delete_partial_download(part: Path) -> int:
    """Delete an incomplete download and return the number of bytes freed. Raises CatalogueError if it is running."""
    import filelock

    target = part.with_name(part.name.removesuffix(".part"))
    try:
        with filelock.FileLock(f"{part}.lock", timeout=0):
            freed_bytes = on_disk_bytes(part)
            for path in _download_files(target):
                path.unlink(missing_ok=True)
            _remove_empty_folders(target.parent)
            return freed_bytes
    except filelock.Timeout:
        raise CatalogueError(f"{part} is being downloaded. Stop the download first.") from None
    except OSError as error:
        raise CatalogueError(f"Cannot delete {part}: {error.strerror or error}") from error


def on_disk_bytes(path: Path) -> int:
    """Return the disk space that a file uses, in bytes: less than its size for sparse files. Raises OSError."""
    stat = path.stat()
    return min(stat.st_size, getattr(stat, "st_blocks", stat.st_size) * 512)


def check_deletable(model: InstalledModel) -> None:
    """Raise CatalogueError if edgechat must not delete the model: another program or the user manages its file."""
    if model.source != locations.OWN:
        if model.source == locations.PACKAGE:
            raise CatalogueError(f"{model.path} is part of an installed Python package and cannot be deleted")
        owner = "your folder" if model.source in {locations.FOLDER, locations.FILE} else model.source
        raise CatalogueError(f"{model.path} belongs to {owner}, so edgechat does not delete it. Delete it there.")


def _download_files(target: Path) -> list[Path]:
    return [target.with_name(target.name + suffix) for suffix in (".part", ".part.log", ".part.log.new", ".part.lock")]


def _remove_empty_folders(folder: Path) -> None:
    """Remove a folder in the models directory, and its parents, if they are empty."""
    while paths.models_dir() in folder.parents and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


def delete_model(model: InstalledModel) -> int:
    """Delete a downloaded model and its records, and return the number of bytes freed. Raises CatalogueError."""
    check_deletable(model)
    freed_bytes = 0
    files = model_files(model.path)
    try:
        for path in filter(Path.exists, files):
            stat = path.lstat()
            path.unlink()
            freed_bytes += stat.st_size if stat.st_nlink == 1 and not path.is_symlink() else 0
            for leftover in _download_files(path):
                leftover.unlink(missing_ok=True)
        _remove_empty_folders(model.path.parent)
    except OSError as error:
        raise CatalogueError(f"Cannot delete {model.path}: {error.strerror or error}") from error
    with registry.edit_records() as records:
        records.aliases = {alias: path for alias, path in records.aliases.items() if path != str(model.path)}
        for path in files:
            records.last_used_at.pop(str(path), None)
            records.verified.pop(str(path), None)
    return freed_bytes


def last_used_text(last_used_at: float | None) -> str:
    """Format the time since the last use: `never`, `today`, or a number of days (`12 d`)."""
    if last_used_at is None:
        return "never"
    days = (time.time() - last_used_at) / 86400
    return "today" if days < 1 else f"{days:.0f} d"
