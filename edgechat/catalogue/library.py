"""The models on this machine, each once, wherever it lies; what a person does with them."""

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
from edgechat.catalogue.registry import ModelFacts, ModelFactsCache, ModelRecords
from edgechat.errors import CatalogueError, ModelFileError
from edgechat.modelfile.split import parse_part_name

STARTER: Final = "starter"
_STARTER_PACKAGE: Final = "edgechat_starter"


class InstalledModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model on this machine."""

    path: Path
    source: str
    name: str
    """What it can be called: unlike every other entry's."""
    facts: ModelFacts
    repo: str
    sha256: str
    """What it should hash to, where that is known."""
    state: str
    """`verified`, `differs` from what it should be, `unchanged` since its hash was computed, or "" if nobody looked."""
    aliases: tuple[str, ...]
    last_used_at: float | None = msgspec.field(name="used_s")
    also_at: tuple[Path, ...] = ()
    """The same file, or one with the same hash, elsewhere."""

    @property
    def is_usable(self) -> bool:
        """True if it is a model that can be loaded."""
        return not self.facts.problem and self.facts.kind == "model"


def starter_model() -> Path:
    """The model that comes with edgechat. Raises ModelFileError if it was not installed."""
    import importlib.util

    spec = importlib.util.find_spec(_STARTER_PACKAGE)
    for directory in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(directory).glob("*.gguf")):
            return path
    raise ModelFileError(
        "the starter model is not installed: name a model file with --model, "
        "or install edgechat with its `starter` extra (in a source checkout: `make setup`)"
    )


def scan() -> list[InstalledModel]:
    """All models on this machine, each once. Raises CatalogueError if what is remembered of them is damaged."""
    remembered, cache = registry.read_records(), ModelFactsCache()
    found: dict[tuple[int, int], list[LocalFile]] = {}
    for source, directory in [
        *locations.search_locations([Path(folder) for folder in remembered.folders]),
        *map(_single, remembered.files),
    ]:
        for spotted in locations.find_model_files(source, directory):
            try:
                stat = spotted.path.stat()
            except OSError:
                continue
            found.setdefault((stat.st_dev, stat.st_ino), []).append(spotted)
    by_hash: dict[str, list[LocalFile]] = {}
    singles = []
    for same in found.values():
        known = next((spotted.sha256 for spotted in same if spotted.sha256), "")
        if known:
            by_hash.setdefault(known, []).extend(same)
        else:
            singles.append(same)
    groups = [*by_hash.values(), *singles]
    entries = _named([_entry(group, remembered, cache) for group in groups])
    seen = {str(spotted.path) for group in groups for spotted in group}
    cache.save(keep=seen.__contains__)
    return sorted(entries, key=lambda entry: (entry.facts.kind != "model", entry.name.lower()))


def _single(file: str) -> tuple[str, Path]:
    return locations.FILE, Path(file)


def _entry(same: list[LocalFile], remembered: ModelRecords, cache: ModelFactsCache) -> InstalledModel:
    first = same[0]
    keys = {str(spotted.path) for spotted in same}
    return InstalledModel(
        path=first.path, source=first.source, name=_name(first), facts=cache.get(first.path),
        sha256=next((spotted.sha256 for spotted in same if spotted.sha256), ""), state=_state(first, remembered),
        repo=next((spotted.repo for spotted in same if spotted.repo), ""),
        aliases=tuple(sorted(name for name, path in remembered.aliases.items() if path in keys)),
        last_used_at=max((used_s for path, used_s in remembered.last_used_at.items() if path in keys), default=None),
        also_at=tuple(sorted({spotted.path for spotted in same} - {first.path})),
    )  # fmt: skip


def _state(spotted: LocalFile, remembered: ModelRecords) -> str:
    """Of all files of a model: one that differs spoils it, one that nobody looked at leaves it open."""
    states = set()
    for path in parts_of(spotted.path):
        found = remembered.verified.get(str(path))
        try:
            is_current = found is not None and found.mtime_ns == path.stat().st_mtime_ns
        except OSError:
            is_current = False
        if found is None or not is_current:
            states.add("")
        else:
            is_good = found.sha256 == found.expected
            states.add("unchanged" if not found.expected else "verified" if is_good else "differs")
    return next(state for state in ("differs", "", "unchanged", "verified") if state in states or state == "verified")


def _name(spotted: LocalFile) -> str:
    return STARTER if spotted.source == locations.PACKAGE and _STARTER_PACKAGE in spotted.path.parts else spotted.name


def _named(entries: list[InstalledModel]) -> list[InstalledModel]:
    """Two files of one name are told apart by where they come from, and then by a number."""
    taken: set[str] = set()
    named = []
    for entry in entries:
        longer = f"{entry.repo}/{entry.name}" if entry.repo else f"{entry.name}@{entry.source.replace(' ', '-')}"
        numbered = (f"{longer}-{number}" for number in itertools.count(2))
        name = next(name for name in itertools.chain((entry.name, longer), numbered) if name.lower() not in taken)
        taken.add(name.lower())
        named.append(msgspec.structs.replace(entry, name=name))
    return named


def is_path_like(wanted: str) -> bool:
    """True for what names a file: a name never does, lest a file here take the place of a known model."""
    return wanted.lower().endswith(".gguf") or wanted.startswith((".", "~", os.sep, "/")) or os.sep == "\\" in wanted


# What a person does with them


def check_alias(name: str, path: Path | None = None) -> None:
    """Raises CatalogueError if this cannot be a name, or is that of another model than the one at `path`."""
    if not name or is_path_like(name) or "/" in name or ":" in name or not name.isprintable() or name == STARTER:
        raise CatalogueError(
            f"{name!r} cannot be a name: it would be taken for a path, a repository, or the starter model"
        )
    if any(name.lower() == entry.name.lower() and path not in (entry.path, *entry.also_at) for entry in scan()):
        raise CatalogueError(f"another model is called {name!r} already")


def add_alias(name: str, entry_path: Path) -> None:
    """Let a name stand for a file. Raises CatalogueError if it cannot be one."""
    check_alias(name, entry_path)
    with registry.edit_records() as changed:
        changed.aliases[name] = str(entry_path)


def remove_alias(name: str) -> None:
    """Forget a name. Raises CatalogueError if there is none such."""
    with registry.edit_records() as changed:
        if changed.aliases.pop(name, None) is None:
            raise CatalogueError(f"no model has been given the name {name!r}")


def add_folder(folder: Path) -> None:
    """Look for models in this folder, too. Raises CatalogueError."""
    if not folder.is_dir():
        raise CatalogueError(f"{folder} is no folder")
    with registry.edit_records() as changed:
        if str(folder.resolve()) not in changed.folders:
            changed.folders.append(str(folder.resolve()))


def add_file(path: Path) -> None:
    """Let a file be found where it is. Raises CatalogueError."""
    with registry.edit_records() as changed:
        if str(path.absolute()) not in changed.files:
            changed.files.append(str(path.absolute()))


def remove_file(path: Path) -> bool:
    """Find it no longer; False if it was not added. The file stays."""
    with registry.edit_records() as changed:
        if str(path) not in changed.files:
            return False
        changed.files.remove(str(path))
        changed.aliases = {name: there for name, there in changed.aliases.items() if there != str(path)}
        return True


def remove_folder(folder: Path) -> bool:
    """Look there no longer; False if it was not looked at. Nothing in it is touched."""
    with registry.edit_records() as changed:
        if str(folder.resolve()) not in changed.folders:
            return False
        changed.folders.remove(str(folder.resolve()))
        return True


def parts_of(path: Path) -> list[Path]:
    """All files of a model, named by the first."""
    part = parse_part_name(path.name)
    return [path.with_name(name) for name in part.all_names()] if part else [path]


def partial_downloads() -> list[Path]:
    """What was begun to be pulled, and is not whole."""
    return sorted(paths.models_dir().rglob("*.part")) if paths.models_dir().is_dir() else []


def delete_partial_download(part: Path) -> int:
    """Delete what arrived of a file; returns the bytes that this frees. Raises CatalogueError."""
    import filelock

    target = part.with_name(part.name.removesuffix(".part"))
    try:
        with filelock.FileLock(f"{part}.lock", timeout=0):
            freed = on_disk_bytes(part)
            for path in _leftovers(target):
                path.unlink(missing_ok=True)
            _remove_empty(target.parent)
            return freed
    except filelock.Timeout:
        raise CatalogueError(f"{part} is being downloaded") from None
    except OSError as error:
        raise CatalogueError(f"{part} cannot be removed: {error.strerror or error}") from error


def on_disk_bytes(path: Path) -> int:
    """What a file takes; one that is not whole yet has holes. Raises OSError."""
    stat = path.stat()
    return min(stat.st_size, getattr(stat, "st_blocks", stat.st_size) * 512)


def check_deletable(entry: InstalledModel) -> None:
    """Raises CatalogueError if another program keeps this model."""
    if entry.source != locations.OWN:
        keeper = "your folder" if entry.source == locations.FOLDER else entry.source
        raise CatalogueError(f"{entry.path} belongs to {keeper}: remove it there")


def _leftovers(target: Path) -> list[Path]:
    return [target.with_name(target.name + suffix) for suffix in (".part", ".part.log", ".part.log.new", ".part.lock")]


def _remove_empty(folder: Path) -> None:
    """Remove a folder of ours and those above it, as far as nothing is in them."""
    while paths.models_dir() in folder.parents and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


def delete_model(entry: InstalledModel) -> int:
    """Delete a model of ours; returns the bytes that this frees. Raises CatalogueError for what is not ours."""
    check_deletable(entry)
    freed = 0
    try:
        for path in filter(Path.exists, parts_of(entry.path)):
            stat = path.lstat()
            path.unlink()
            freed += stat.st_size if stat.st_nlink == 1 and not path.is_symlink() else 0
            for left in _leftovers(path):
                left.unlink(missing_ok=True)
        _remove_empty(entry.path.parent)
    except OSError as error:
        raise CatalogueError(f"{entry.path} cannot be removed: {error.strerror or error}") from error
    with registry.edit_records() as changed:
        changed.aliases = {name: path for name, path in changed.aliases.items() if path != str(entry.path)}
        for path in parts_of(entry.path):
            for table in (changed.last_used_at, changed.verified):
                table.pop(str(path), None)
    return freed


def record_hash(path: Path, found: str, expected: str) -> None:
    """Write down what a file hashed to now. Raises CatalogueError and OSError."""
    stat = path.stat()
    with registry.edit_records() as changed:
        changed.verified[str(path)] = registry.VerifiedHash(
            sha256=found, size_bytes=stat.st_size, mtime_ns=stat.st_mtime_ns, expected=expected
        )


def last_used_text(used_s: float | None) -> str:
    """When it was last used, for people: in days."""
    if used_s is None:
        return "never"
    days = (time.time() - used_s) / 86400
    return "today" if days < 1 else f"{days:.0f} d"
