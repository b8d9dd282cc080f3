"""Installed models: list without duplicates, edit aliases and model folders, and delete models."""

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
from edgechat.modelfile.split import list_model_files

STARTER: Final = "starter"
_STARTER_PACKAGE: Final = "edgechat_starter"


class InstalledModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model file on this machine, or all parts of a split model."""

    path: Path
    source: str
    name: str
    """Display name, unique among all installed models."""
    facts: ModelFacts
    repo: str
    sha256: str
    """Expected SHA-256 of the first file, taken from its path; "" if the path contains no hash."""
    state: str
    """Result of the last verification: `verified`, `differs`, `unchanged` or "".

    `unchanged` means that the file still has its first computed hash, and that no published hash is known. "" means
    that the file was never verified, or has changed since its last verification.
    """
    aliases: tuple[str, ...]
    last_used_at: float | None = msgspec.field(name="used_s")
    """Unix time of the last use, in seconds; None if the model was never used."""
    other_paths: tuple[Path, ...] = msgspec.field(default=(), name="also_at")
    """Paths of other links to the same file, and of other files with the same expected hash."""

    @property
    def is_usable(self) -> bool:
        """True if the model can be loaded: its header is valid, and it is no projector, adapter or file of heads."""
        return not self.facts.problem and self.facts.kind == "model"

    @property
    def may_draft(self) -> bool:
        """True if the file can be a draft model, or has heads that draft for another model."""
        return not self.facts.problem and (self.facts.kind == "heads" or self.facts.purpose == "chat")


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


def scan(on_skipped: locations.OnSkipped = lambda skipped: None) -> list[InstalledModel]:
    """Find all models on this machine. Files with the same inode or expected hash are listed as one model.

    `on_skipped` receives files and folders that cannot be used, except Ollama's folder, because another user owns it.
    Raises CatalogueError if library.json is damaged.
    """
    records, cache, memo = registry.read_records(), ModelFactsCache(), HashMemo(paths.prefix_dir())
    files_by_inode: dict[tuple[int, int], list[LocalFile]] = {}
    for source, directory in [
        *locations.list_locations([Path(folder) for folder in records.folders]),
        *((locations.FILE, Path(file)) for file in records.files),
    ]:
        report = (lambda skipped: None) if source == locations.OLLAMA else on_skipped
        for file in locations.find_model_files(source, directory, report):
            try:
                stat = file.path.stat()
            except OSError:
                continue
            files_by_inode.setdefault((stat.st_dev, stat.st_ino), []).append(file)
    files_by_hash: dict[str, list[LocalFile]] = {}
    copies_without_hash = []
    for copies in files_by_inode.values():
        sha256 = next((file.sha256 for file in copies if file.sha256), "")
        if sha256:
            files_by_hash.setdefault(sha256, []).extend(copies)
        else:
            copies_without_hash.append(copies)
    groups = [*files_by_hash.values(), *copies_without_hash]
    models = _make_names_unique([_make_installed_model(copies, records, cache, memo) for copies in groups])
    all_paths = {str(file.path) for copies in groups for file in copies}
    cache.save(should_keep=all_paths.__contains__)
    return sorted(models, key=lambda model: (model.facts.kind != "model", model.name.lower()))


def _make_installed_model(
    copies: list[LocalFile], records: ModelRecords, cache: ModelFactsCache, memo: HashMemo
) -> InstalledModel:
    first_file = copies[0]
    names = {str(file.path) for file in copies}
    is_starter = first_file.source == locations.PACKAGE and _STARTER_PACKAGE in first_file.path.parts
    return InstalledModel(
        path=first_file.path, source=first_file.source, name=STARTER if is_starter else first_file.name,
        facts=cache.get(first_file.path),
        sha256=next((file.sha256 for file in copies if file.sha256), ""),
        state=_find_verification_state(first_file.path, records, memo),
        repo=next((file.repo for file in copies if file.repo), ""),
        aliases=tuple(sorted(alias for alias, path in records.aliases.items() if path in names)),
        last_used_at=max((used_at for path, used_at in records.last_used_at.items() if path in names), default=None),
        other_paths=tuple(sorted({file.path for file in copies} - {first_file.path})),
    )  # fmt: skip


def _find_verification_state(first_path: Path, records: ModelRecords, memo: HashMemo) -> str:
    """Return the worst state of a model's files. From worst to best: `differs`, "", `unchanged`, `verified`."""
    states = {
        _find_file_state(path, records.verified_hashes.get(str(path)), memo) for path in list_model_files(first_path)
    }
    return next((state for state in ("differs", "", "unchanged") if state in states), "verified")


def _find_file_state(path: Path, record: VerifiedHash | None, memo: HashMemo) -> str:
    if record is None:
        return ""
    current_hash = memo.get(path)
    if current_hash is None and record.mtime_ns and path.exists() and record.mtime_ns == path.stat().st_mtime_ns:
        # Older releases saved the modification time together with the hash in library.json, not in HashMemo.
        current_hash = record.sha256
    if current_hash is None:
        return ""
    if current_hash != (record.expected_sha256 or record.sha256):
        return "differs"
    return "verified" if record.expected_sha256 else "unchanged"


def _make_names_unique(models: list[InstalledModel]) -> list[InstalledModel]:
    """Rename models with equal names: add the repository or the source, and also a number if necessary."""
    used_names: set[str] = set()
    renamed_models = []
    for model in models:
        long_name = f"{model.repo}/{model.name}" if model.repo else f"{model.name}@{model.source.replace(' ', '-')}"
        numbered_names = (f"{long_name}-{number}" for number in itertools.count(2))
        candidates = itertools.chain((model.name, long_name), numbered_names)
        name = next(name for name in candidates if name.lower() not in used_names)
        used_names.add(name.lower())
        renamed_models.append(msgspec.structs.replace(model, name=name))
    return renamed_models


def is_path_like(name: str) -> bool:
    """Return whether `name` has the form of a file path. Model names and aliases never have this form."""
    return name.lower().endswith(".gguf") or name.startswith((".", "~", os.sep, "/")) or os.sep == "\\" in name


# Changes to aliases, folders and files


def check_alias(name: str, path: Path | None = None) -> None:
    """Raise CatalogueError if `name` cannot be used as an alias of the model at `path`."""
    if not name.strip():
        raise CatalogueError("The alias is empty. Choose an alias, such as `small`.")
    is_reserved = name == STARTER or is_path_like(name) or bool({"/", ":"} & {*name})
    if is_reserved or not name.isprintable() or name != name.strip():
        raise CatalogueError(
            f"{name!r} cannot be an alias, because it is reserved, has the form of a path or repository, or has spaces "
            "around it. Choose another alias."
        )
    if any(name.lower() == model.name.lower() and path not in (model.path, *model.other_paths) for model in scan()):
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
            raise CatalogueError(f"There is no alias {name!r}. `edgechat models list` shows all aliases.")


def add_folder(folder: Path) -> None:
    """Add `folder` to the locations that are searched for models. Raises CatalogueError if it is not a directory."""
    if not folder.is_dir():
        raise CatalogueError(f"{folder} is not a folder. Choose an existing folder.")
    with registry.edit_records() as records:
        if str(folder.resolve()) not in records.folders:
            records.folders.append(str(folder.resolve()))


def remove_folder(folder: Path) -> bool:
    """Stop searching `folder` for models, without deleting files. Returns False if the folder had not been added."""
    with registry.edit_records() as records:
        if str(folder.resolve()) not in records.folders:
            return False
        records.folders.remove(str(folder.resolve()))
        return True


def add_file(path: Path) -> None:
    """Add a single model file to the installed models, without copying it. Raises CatalogueError."""
    with registry.edit_records() as records:
        if str(path.absolute()) not in records.files:
            records.files.append(str(path.absolute()))


def find_missing_file(name: str) -> Path | None:
    """Return the added file with this path or name that no longer exists; None if there is none."""
    missing_files = [path for path in map(Path, registry.read_records().files) if not path.exists()]
    return next((path for path in missing_files if path == Path(name).absolute() or path.stem == name), None)


def remove_file(path: Path) -> bool:
    """Remove an added file and its aliases from the records, but keep the file. Returns False if it was not added."""
    with registry.edit_records() as records:
        if str(path) not in records.files:
            return False
        records.files.remove(str(path))
        records.aliases = {alias: target for alias, target in records.aliases.items() if target != str(path)}
        return True


def find_by_path(path: Path) -> InstalledModel | None:
    """Return the installed model with the file `path`; None if it is not installed. Raises CatalogueError."""
    return next((model for model in scan() if path in (model.path, *model.other_paths)), None)


def find_display_name(path: Path) -> str:
    """Return the name under which the list of models shows `path`; the file name if the list does not contain it."""
    if _STARTER_PACKAGE in path.parts:
        return STARTER
    name = locations.parse_model_name(path)
    if path.parent == paths.models_dir() or not path.is_file():  # avoids reading all locations
        return name
    try:
        model = find_by_path(path)
    except CatalogueError:
        return name
    return model.name if model is not None else name


def find_partial_downloads() -> list[Path]:
    """Return the paths of the `.part` files of incomplete downloads."""
    return sorted(paths.models_dir().rglob("*.part")) if paths.models_dir().is_dir() else []


def delete_partial_download(part: Path) -> int:
    """Delete an incomplete download; return the number of freed bytes. Raises CatalogueError if it is running."""
    import filelock

    target = part.with_name(part.name.removesuffix(".part"))
    try:
        with filelock.FileLock(f"{part}.lock", timeout=0):
            freed_bytes = on_disk_bytes(part)
            for path in _list_temporary_download_files(target):
                path.unlink(missing_ok=True)
            _remove_empty_folders(target.parent)
            return freed_bytes
    except filelock.Timeout:
        raise CatalogueError(f"{part} is being downloaded. Stop the download first.") from None
    except OSError as error:
        raise CatalogueError(f"Cannot delete {part}: {error.strerror or error}") from error


def on_disk_bytes(path: Path) -> int:
    """Return the disk space of a file in bytes, which is less than its size for a sparse file. Raises OSError."""
    stat = path.stat()
    return min(stat.st_size, getattr(stat, "st_blocks", stat.st_size) * 512)


def check_deletable(model: InstalledModel) -> None:
    """Raise CatalogueError if edgechat must not delete the model, because the user or another program manages it."""
    if model.source != locations.MANAGED:
        if model.source == locations.PACKAGE:
            raise CatalogueError(f"{model.path} is part of a Python package. Uninstall that package to delete it.")
        if model.source in {locations.FOLDER, locations.FILE}:
            raise CatalogueError(
                f"{model.path} is in a folder that edgechat does not manage, so edgechat does not delete it. "
                "Delete the file yourself."
            )
        raise CatalogueError(
            f"{model.path} is managed by another program ({model.source}), so edgechat does not delete it. "
            "Delete it with that program."
        )


def _list_temporary_download_files(target: Path) -> list[Path]:
    return [target.with_name(target.name + suffix) for suffix in (".part", ".part.log", ".part.log.new", ".part.lock")]


def _remove_empty_folders(folder: Path) -> None:
    """Remove `folder` and then its parents inside the models directory, while they are empty."""
    while paths.models_dir() in folder.parents and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


def delete_model(model: InstalledModel) -> int:
    """Delete a downloaded model and its records, and return the number of freed bytes. Raises CatalogueError."""
    check_deletable(model)
    freed_bytes = 0
    files = list_model_files(model.path)
    try:
        for path in filter(Path.exists, files):
            stat = path.lstat()
            path.unlink()
            freed_bytes += stat.st_size if stat.st_nlink == 1 and not path.is_symlink() else 0
            for leftover in _list_temporary_download_files(path):
                leftover.unlink(missing_ok=True)
        _remove_empty_folders(model.path.parent)
    except OSError as error:
        raise CatalogueError(f"Cannot delete {model.path}: {error.strerror or error}") from error
    with registry.edit_records() as records:
        records.aliases = {alias: path for alias, path in records.aliases.items() if path != str(model.path)}
        for path in files:
            records.last_used_at.pop(str(path), None)
            records.verified_hashes.pop(str(path), None)
    return freed_bytes


def format_last_use(last_used_at: float | None) -> str:
    """Format the time since the last use of a model: `never`, `today`, or a number of days, such as `12 d`."""
    if last_used_at is None:
        return "never"
    days = (time.time() - last_used_at) / 86400
    return "today" if days < 1 else f"{days:.0f} d"
