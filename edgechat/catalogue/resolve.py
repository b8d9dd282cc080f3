"""Which model a name stands for: a path, an alias, a name, an id of the catalogue, or a repository of the hub."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path

from edgechat import paths
from edgechat.catalogue import registry
from edgechat.catalogue.library import STARTER, InstalledModel, is_path_like, scan, starter_model
from edgechat.errors import ModelFileError


def find_model(name: str) -> Path:
    """The file that a path, an alias, a name, a catalogue id or `owner/repo[:QUANT]` stands for.

    Raises ModelFileError if it is none or several, with what comes near; CatalogueError for damaged records.
    """
    if is_path_like(name) or (os.sep in name and Path(name).exists()):
        return Path(os.path.expanduser(name))  # noqa: PTH111  (Path's own raises for an unknown user)
    if name == STARTER:
        return starter_model()
    alias = registry.read_records().aliases.get(name)
    if alias is not None:
        return Path(alias)
    named = paths.models_dir() / f"{name}.gguf"
    if "/" not in name and named.is_file():  # without looking anywhere else
        return named
    return find_installed(name, scan()).path


def find_installed(wanted: str, entries: Iterable[InstalledModel]) -> InstalledModel:
    """The one of these models that is meant. Raises ModelFileError if it is none or several."""
    from edgechat.catalogue import curated, hub

    entries = [entry for entry in entries if entry.facts.kind == "model"]
    lower = wanted.lower()
    for entry in entries:
        if lower in {entry.name.lower(), entry.name.lower().removesuffix(":latest")} or wanted in entry.aliases:
            return entry
    if is_path_like(wanted):
        return _at(Path(wanted).expanduser().absolute(), entries)
    repo, quant = hub.parse_reference(wanted) or ("", "")
    fitting = [entry for entry in entries if repo and _is_of(entry, (repo,), quant)]
    pull = wanted
    if not repo:
        known, _, quant = lower.partition(":")
        model = curated.load().get(known)
        if model is not None:
            packages = {source.package.replace("-", "_") for source in model.source if source.package}
            fitting = [
                entry
                for entry in entries
                if _is_of(entry, model.repos, quant)
                or (packages & {*entry.path.parts} and quant in {"", entry.facts.quant.lower()})
            ]
            repo = model.name
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        return _usual(wanted, fitting, quant)
    if repo:
        raise ModelFileError(f"{wanted} is not on this machine: `edgechat models pull {pull}` gets it")
    raise ModelFileError(_unknown(wanted, entries))


def _usual(wanted: str, fitting: list[InstalledModel], quant: str) -> InstalledModel:
    """Of several quants the one that would be pulled. Raises ModelFileError if that leaves several."""
    from edgechat.catalogue import hub

    known = {hub.quant_of(entry.path.name) or entry.facts.quant: entry for entry in reversed(fitting)}
    usual = next((known[name] for name in hub.PREFERENCE if name in known), None)
    if usual is None or quant:
        raise ModelFileError(f"{wanted!r} may be any of {', '.join(entry.name for entry in fitting)}: which one?")
    return usual


def _at(path: Path, entries: list[InstalledModel]) -> InstalledModel:
    for entry in entries:
        if path in (entry.path, *entry.also_at) or path.resolve() == entry.path.resolve():
            return entry
    raise ModelFileError(f"{path} is not in any place where models are looked for (`edgechat models dirs`)")


def _is_of(entry: InstalledModel, repos: Iterable[str], quant: str) -> bool:
    from edgechat.catalogue.hub import quant_of

    if entry.repo.lower() not in {repo.lower() for repo in repos}:
        return False
    # What a file is called counts before what it says: those who mix types by rules of their own say it in the name.
    named = quant_of(entry.path.name) or entry.facts.quant
    return not quant or quant.lower() in {named.lower(), entry.path.name.lower()}


def _unknown(wanted: str, entries: list[InstalledModel]) -> str:
    from edgechat.catalogue import curated

    here = [name for entry in entries if entry.is_usable for name in (entry.name, *entry.aliases)]
    near = difflib.get_close_matches(wanted.lower(), [*map(str.lower, here), *curated.load()], n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known here are: {', '.join(here) or 'none'}"
    return f"no model is called {wanted!r}; {hint} (a .gguf file here is named with ./ before it)"


def unknown_reference_message(reference: str) -> str:
    """What to say of a name that is neither in the catalogue nor of the hub."""
    from edgechat.catalogue import curated

    near = difflib.get_close_matches(reference.lower().partition(":")[0], curated.load(), n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else "`edgechat models list --catalogue` shows what it has"
    return f"{reference!r} is neither a model of the catalogue nor owner/repo[:QUANT] nor an address; {hint}"
