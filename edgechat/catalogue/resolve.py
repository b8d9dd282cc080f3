"""Resolution of model names to files. A name is a path, alias, display name, catalogue id or hub repository."""

from __future__ import annotations

import os
import re
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Final

from edgechat import paths
from edgechat.catalogue import registry
from edgechat.catalogue.library import STARTER, InstalledModel, is_path_like, scan, starter_model
from edgechat.errors import ModelFileError, UsageError
from edgechat.humanize import shorten

# Control characters, and separators of lines and paragraphs.
_CONTROL_PATTERN: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
# Maximum length of an invalid name in an error message.
_MAX_SHOWN_CHARS: Final = 60


def find_model(name: str, kinds: Container[str] = ("model",)) -> Path:
    """Return the model file for a path, an alias, a display name, a catalogue id or `owner/repo[:QUANT]`.

    `kinds` are the kinds of files to find (`ModelHeader.kind`). Raises ModelFileError if no installed model or several
    match. Raises CatalogueError if library.json is damaged, and the errors of `check_name`.
    """
    check_name(name)
    if is_path_like(name) or (os.sep in name and Path(name).exists()):
        return paths.expand_user(name)
    if name == STARTER:
        return starter_model()
    alias = registry.read_records().aliases.get(name)
    if alias is not None:
        return Path(alias)
    managed_file = paths.models_dir() / f"{name}.gguf"
    if "/" not in name and managed_file.is_file():  # avoids scanning all locations
        return managed_file
    return find_installed_model(name, scan(), kinds).path


def check_name(name: str) -> None:
    """Raise UsageError if the name of a model is empty, or has control characters and is not that of a file."""
    if not name.strip():
        raise UsageError("The name of the model is empty. `edgechat models list` shows all names.")
    if _CONTROL_PATTERN.search(name) and not os.path.lexists(name):
        raise UsageError(
            f"The name of the model, {shorten(name, _MAX_SHOWN_CHARS)!a}, has control characters, such as a line "
            "break. Type it again; `edgechat models list` shows all names."
        )


def describe_remote(name: str) -> str:
    """Return a sentence that says that a model belongs to a remote of the settings; "" for any other name."""
    from edgechat import config  # only needed after an error

    remote = name.partition("/")[0]
    if remote not in config.load()[0].remotes:
        return ""
    return (
        f"{name} is a model of the remote {remote}, and this command needs a model on this machine. "
        "`edgechat models list` shows those."
    )


def check_is_not_remote(name: str) -> None:
    """Raise UsageError if a name that is not that of a file belongs to a remote of the settings.

    Commands call this before they ask the hub, which must not learn the names of a remote and its models.
    """
    if "/" in name and not os.path.lexists(name) and (problem := describe_remote(name)):
        raise UsageError(problem)


def find_installed_model(
    name: str, models: Iterable[InstalledModel], kinds: Container[str] = ("model",)
) -> InstalledModel:
    """Find the model with this name, alias, path or reference. Raises ModelFileError if none or several match.

    Raises UsageError if `name` is empty, and CatalogueError if it has a quant that the catalogue does not list.
    """
    check_name(name)
    from edgechat.catalogue import curated, hub

    models = [model for model in models if model.facts.kind in kinds]
    lower_name = name.lower()
    for model in models:
        if lower_name in {model.name.lower(), model.name.lower().removesuffix(":latest")} or name in model.aliases:
            return model
    if is_path_like(name):
        return _find_model_by_path(paths.expand_user(name).absolute(), models)
    repo, quant = hub.parse_reference(name) or ("", "")
    matches = [model for model in models if repo and _has_repo_and_quant(model, (repo,), quant)]
    if not repo:
        model_id, _, quant = lower_name.partition(":")
        curated_model = curated.load_catalogue().get(model_id)
        if curated_model is not None:
            packages = {source.package.replace("-", "_") for source in curated_model.sources if source.package}
            matches = [
                model
                for model in models
                if _has_repo_and_quant(model, curated_model.repos, quant)
                or (packages & {*model.path.parts} and quant in {"", model.facts.quant.lower()})
            ]
            repo = curated_model.name
            if not matches:
                curated.check_quant(curated_model, quant)
    if len(matches) == 1:
        return matches[0]
    if matches:
        return _choose_default_quant(name, matches, quant)
    raise ModelFileError(_describe_missing_model(name, repo, models))


def _choose_default_quant(name: str, matches: list[InstalledModel], quant: str) -> InstalledModel:
    """Return the match whose quant a download would choose by default.

    Raises ModelFileError if no match has the default quant, or if `quant` is not empty: all matches then have that
    quant, so that the default cannot distinguish them.
    """
    from edgechat.catalogue import hub

    by_quant = {hub.parse_quant(model.path.name) or model.facts.quant: model for model in reversed(matches)}
    default_model = next((by_quant[name] for name in hub.PREFERRED_QUANTS if name in by_quant), None)
    if default_model is None or quant:
        raise ModelFileError(f"{name!r} matches several models; choose one: {', '.join(m.name for m in matches)}")
    return default_model


def _find_model_by_path(path: Path, models: list[InstalledModel]) -> InstalledModel:
    for model in models:
        if path in (model.path, *model.other_paths) or path.resolve() == model.path.resolve():
            return model
    raise ModelFileError(
        f"{path} is not in a folder that edgechat searches for models. `edgechat models dirs` lists these folders."
    )


def _has_repo_and_quant(model: InstalledModel, repos: Iterable[str], quant: str) -> bool:
    from edgechat.catalogue.hub import parse_quant

    if model.repo.lower() not in {repo.lower() for repo in repos}:
        return False
    # The file name takes precedence, because the header cannot name custom type mixtures such as UD-Q4_K_XL.
    model_quant = parse_quant(model.path.name) or model.facts.quant
    return not quant or quant.lower() in {model_quant.lower(), model.path.name.lower()}


def _describe_missing_model(name: str, repo: str, models: list[InstalledModel]) -> str:
    """Return the error message for a model that is not installed; `repo` is its repository or catalogue name."""
    if ("/" in name or not repo) and (problem := describe_remote(name)):
        return problem
    if repo:
        return f"{name} is not installed. Download it with `edgechat models pull {name}`."
    return _make_unknown_name_message(name, models)


def _make_unknown_name_message(name: str, models: list[InstalledModel]) -> str:
    from edgechat.catalogue import curated

    installed_names = [label for model in models if model.is_usable for label in (model.name, *model.aliases)]
    known_names = [*map(str.lower, installed_names), *curated.load_catalogue()]
    import difflib

    similar_names = difflib.get_close_matches(name.lower(), known_names, n=3, cutoff=0.6)
    hint = (
        f"Did you mean {' or '.join(similar_names)}?"
        if similar_names
        else f"Installed models: {', '.join(installed_names) or 'none'}. "
        "`edgechat models list --catalogue` lists others, and `edgechat models pull NAME` downloads one."
    )
    return f"No model with the name {name!r}. {hint} For a file in the current folder, put ./ before the file name."


def make_unknown_reference_message(reference: str) -> str:
    """Return the error message for a reference that matches no catalogue id, hub repository or URL."""
    import difflib

    from edgechat.catalogue import curated

    similar_names = difflib.get_close_matches(
        reference.lower().partition(":")[0], curated.load_catalogue(), n=3, cutoff=0.6
    )
    hint = (
        f"Did you mean {' or '.join(similar_names)}?"
        if similar_names
        else "`edgechat models list --catalogue` lists all models."
    )
    return f"{reference!r} is not a model of the catalogue, a repository (owner/repo[:QUANT]) or a URL. {hint}"
