"""Resolves model names to files. A name is a path, an alias, a display name, a catalogue id or a hub repository."""

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
    """Return the model file for a path, an alias, a display name, a catalogue id or `owner/repo[:QUANT]`.

    Raises ModelFileError, with similar names, if no installed model or several match. Raises CatalogueError if the
    records are damaged.
    """
    if is_path_like(name) or (os.sep in name and Path(name).exists()):
        return Path(os.path.expanduser(name))  # noqa: PTH111  (Path.expanduser raises for an unknown user)
    if name == STARTER:
        return starter_model()
    alias = registry.read_records().aliases.get(name)
    if alias is not None:
        return Path(alias)
    own_file = paths.models_dir() / f"{name}.gguf"
    if "/" not in name and own_file.is_file():  # saves a scan of all locations
        return own_file
    return find_installed(name, scan()).path


def find_installed(name: str, models: Iterable[InstalledModel]) -> InstalledModel:
    """Find the model with this name, alias, path or reference. Raises ModelFileError if no model or several match."""
    from edgechat.catalogue import curated, hub

    models = [model for model in models if model.facts.kind == "model"]
    lower = name.lower()
    for model in models:
        if lower in {model.name.lower(), model.name.lower().removesuffix(":latest")} or name in model.aliases:
            return model
    if is_path_like(name):
        return _find_path(Path(name).expanduser().absolute(), models)
    repo, quant = hub.parse_reference(name) or ("", "")
    matches = [model for model in models if repo and _is_from(model, (repo,), quant)]
    if not repo:
        model_id, _, quant = lower.partition(":")
        curated_model = curated.load().get(model_id)
        if curated_model is not None:
            packages = {source.package.replace("-", "_") for source in curated_model.source if source.package}
            matches = [
                model
                for model in models
                if _is_from(model, curated_model.repos, quant)
                or (packages & {*model.path.parts} and quant in {"", model.facts.quant.lower()})
            ]
            repo = curated_model.name
    if len(matches) == 1:
        return matches[0]
    if matches:
        return _default_quant(name, matches, quant)
    if repo:
        raise ModelFileError(f"{name} is not installed. Download it with `edgechat models pull {name}`.")
    raise ModelFileError(_unknown_name_message(name, models))


def _default_quant(name: str, matches: list[InstalledModel], quant: str) -> InstalledModel:
    """Choose the preferred quant among `matches`, as a download does. Raises ModelFileError if it is ambiguous."""
    from edgechat.catalogue import hub

    by_quant = {hub.quant_of(model.path.name) or model.facts.quant: model for model in reversed(matches)}
    default = next((by_quant[preferred] for preferred in hub.PREFERENCE if preferred in by_quant), None)
    if default is None or quant:
        raise ModelFileError(f"{name!r} matches several models; choose one: {', '.join(m.name for m in matches)}")
    return default


def _find_path(path: Path, models: list[InstalledModel]) -> InstalledModel:
    for model in models:
        if path in (model.path, *model.also_at) or path.resolve() == model.path.resolve():
            return model
    raise ModelFileError(
        f"{path} is not in a folder that is searched for models. `edgechat models dirs` lists these folders."
    )


def _is_from(model: InstalledModel, repos: Iterable[str], quant: str) -> bool:
    from edgechat.catalogue.hub import quant_of

    if model.repo.lower() not in {repo.lower() for repo in repos}:
        return False
    # The file name takes precedence over the header, which lacks the names of custom type mixtures.
    model_quant = quant_of(model.path.name) or model.facts.quant
    return not quant or quant.lower() in {model_quant.lower(), model.path.name.lower()}


def _unknown_name_message(name: str, models: list[InstalledModel]) -> str:
    from edgechat.catalogue import curated

    installed = [label for model in models if model.is_usable for label in (model.name, *model.aliases)]
    similar = difflib.get_close_matches(name.lower(), [*map(str.lower, installed), *curated.load()], n=3, cutoff=0.6)
    hint = (
        f"Did you mean {' or '.join(similar)}?" if similar else f"Installed models: {', '.join(installed) or 'none'}."
    )
    return f"No model with the name {name!r}. {hint} For a file in the current folder, put ./ before the file name."


def unknown_reference_message(reference: str) -> str:
    """Return the error message for a reference that matches no catalogue id, hub repository or URL."""
    from edgechat.catalogue import curated

    similar = difflib.get_close_matches(reference.lower().partition(":")[0], curated.load(), n=3, cutoff=0.6)
    hint = (
        f"Did you mean {' or '.join(similar)}?" if similar else "`edgechat models list --catalogue` lists all models."
    )
    return f"{reference!r} is not a model of the catalogue, owner/repo[:QUANT] or a URL. {hint}"
