"""The catalogue of models worth choosing from: models.toml, ours and over it the user's own."""

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

_NAME: Final = "models.toml"
_ID: Final = re.compile(r"[a-z0-9][a-z0-9.-]*")
_REPO: Final = re.compile(r"[\w.-]+/[\w.-]+")


class QuantFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is known of a quant's file beforehand."""

    bytes: int | None = None
    sha256: str | None = None


class ModelSource(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a model can be had: a repository of the hub, a plain address, or a Python package that carries it."""

    repo: str | None = None
    url: str | None = None
    package: str | None = None
    quants: dict[str, QuantFile] = {}
    seen: tuple[str, ...] = ()
    """Further quants that it had."""


class ModelDimensions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a first estimate of memory needs; the file's own header counts as soon as it can be read."""

    n_params: int | None = None
    n_params_active: int | None = None
    """Used for each token, where that is not all of them."""
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
    """Tokens that layers with a window see."""
    window_period: int | None = None
    """Every so many-th layer sees everything, the others the window."""
    n_attention_layers: int | None = None
    """Layers with keys and values, where the others have a state."""
    n_shared_kv_layers: int | None = None
    """Last layers that use what others remember."""


class CatalogueModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model of the catalogue. What is absent is not known."""

    id: str
    name: str
    family: str
    source: tuple[ModelSource, ...]
    licence: str | None = None
    is_default: bool = True
    """May be chosen without being asked for: its licence is permissive."""
    good_at: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    tools: bool | None = None
    thinking: str | None = None
    """`no`, `toggle` or `always`."""
    vision: bool | None = None
    n_ctx_train: int | None = None
    attention: str | None = None
    quality: str | None = None
    """What was measured of it, by whom; good for order, not for decimals."""
    aa_index: float | None = None
    """Artificial Analysis Intelligence Index."""
    mmlu_pro: float | None = None
    """Per cent."""
    notes: str | None = None
    shape: ModelDimensions = ModelDimensions()
    figures_from: str | None = None
    """Where the figures were found."""

    @property
    def repos(self) -> list[str]:
        """The repositories that have it, the best first."""
        return [source.repo for source in self.source if source.repo]

    def sizes(self) -> dict[str, int]:
        """Bytes of its files by quant, where known, smallest first."""
        known = {
            quant: file.bytes for source in reversed(self.source) for quant, file in source.quants.items() if file.bytes
        }
        return dict(sorted(known.items(), key=lambda item: item[1]))


def find_for_file(repo: str, *names: str) -> CatalogueModel | None:
    """The model that a file is of, by its repository or by its names; of several that match, the one with the longest id.

    Only a guess: a fine-tune is taken for what it was made from.
    """
    models = load()
    for model in models.values():
        if repo and repo in model.repos:
            return model
    texts = [_plain(name) for name in names]
    found = [
        m for m in models.values() if any(_plain(m.id) in text or (text and text == _plain(m.name)) for text in texts)
    ]
    return max(found, key=lambda m: len(m.id), default=None)


def _plain(text: str) -> str:
    return re.sub("[^a-z0-9]", "", text.lower())


class _CatalogueFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    model: tuple[CatalogueModel, ...] = ()


@functools.cache
def load() -> dict[str, CatalogueModel]:
    """All models by id: ours, and the user's over them, as far as these can be read (`read_own` says why not)."""
    models = {model.id: model for model in read(shipped_file())}
    with contextlib.suppress(CatalogueError):
        models |= {model.id: model for model in read_user_catalogue()}
    return models


def read_user_catalogue() -> tuple[CatalogueModel, ...]:
    """The user's own models. Raises CatalogueError, naming what is wrong and where."""
    own = paths.config_dir() / _NAME
    return read(own) if own.exists() else ()


def shipped_file() -> Path:
    """Beside the package where it is installed, and in the project's root where it is not."""
    package = Path(__file__).resolve().parent.parent
    return package / _NAME if (package / _NAME).exists() else package.parent / _NAME


def read(path: Path) -> tuple[CatalogueModel, ...]:
    """A catalogue file, checked. Raises CatalogueError, naming the line or the key."""
    try:
        models = msgspec.convert(read_toml(path), _CatalogueFile).model
    except InvalidFileError as error:
        raise CatalogueError(str(error)) from None
    except msgspec.ValidationError as error:
        raise CatalogueError(f"{path}: {_where(str(error))}") from None
    _check(path, models)
    return models


def _where(words: str) -> str:
    """Msgspec's `$.model[3].shape.n_layers`, as a person counts."""
    return re.sub(r" - at `\$\.?(.*?)`$", r" (at \1, counted from 0)", words)


def _check(path: Path, models: tuple[CatalogueModel, ...]) -> None:
    """What types do not say. Raises CatalogueError."""
    seen = set()
    for number, model in enumerate(models):
        where = f"{path}: model[{number}]"
        if not _ID.fullmatch(model.id):
            raise CatalogueError(f"{where}.id is {model.id!r}; small letters, digits, dots and hyphens are possible")
        if model.id in seen:
            raise CatalogueError(f"{where}.id is {model.id!r}, which was there before")
        seen.add(model.id)
        if model.thinking not in {None, "no", "toggle", "always"}:
            raise CatalogueError(f"{where}.thinking is {model.thinking!r}; it can be no, toggle or always")
        if not model.source:
            raise CatalogueError(f"{where}.source is empty: where is {model.id} to be had?")
        for index, source in enumerate(model.source):
            _check_source(f"{where}.source[{index}]", source)


def _check_source(at: str, source: ModelSource) -> None:
    if sum(value is not None for value in (source.repo, source.url, source.package)) != 1:
        raise CatalogueError(f"{at} needs one of repo, url and package")
    if source.repo is not None and not _REPO.fullmatch(source.repo):
        raise CatalogueError(f"{at}.repo is {source.repo!r}, which is not OWNER/NAME")
    for quant, file in source.quants.items():
        if file.sha256 is not None and not re.fullmatch("[0-9a-f]{64}", file.sha256):
            raise CatalogueError(f"{at}.quants.{quant}.sha256 is no SHA-256 in small hexadecimal digits")
        if file.bytes is not None and file.bytes <= 0:
            raise CatalogueError(f"{at}.quants.{quant}.bytes is {file.bytes}; a file has at least 1")
