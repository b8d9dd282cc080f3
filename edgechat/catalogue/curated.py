"""The curated catalogue: recommended models from the shipped models.toml and from the user's own models.toml."""

from __future__ import annotations

import contextlib
import functools
import os
import re
from pathlib import Path
from typing import Final

import msgspec

from edgechat import paths
from edgechat.decode_errors import describe_decode_error
from edgechat.errors import CatalogueError, InvalidFileError
from edgechat.files import read_toml

_FILE_NAME: Final = "models.toml"
_ID_PATTERN: Final = re.compile(r"[a-z0-9][a-z0-9.-]*")
_REPO_PATTERN: Final = re.compile(r"[\w.-]+/[\w.-]+")


class QuantFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Published file size and SHA-256 of one quant, recorded when the catalogue was written."""

    size_bytes: int | None = msgspec.field(default=None, name="bytes")
    sha256: str | None = None


class ModelSource(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Download source of a model: exactly one of hub repository, URL and Python package."""

    repo: str | None = None
    url: str | None = None
    package: str | None = None
    quants: dict[str, QuantFile] = {}
    other_quants: tuple[str, ...] = msgspec.field(default=(), name="seen")
    """Names of further quants in this source, for which the catalogue has no file sizes."""


class ModelDimensions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Dimensions of a model for memory estimates before its download. For a local file, its header is used instead."""

    n_params: int | None = None
    n_params_active: int | None = None
    """Number of parameters used for each token; less than `n_params` in a mixture of experts."""
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
    """Period n of the attention pattern: every n-th layer has full attention, the other layers a sliding window."""
    n_attention_layers: int | None = None
    """Number of layers with a KV cache, in models whose other layers have a recurrent state."""
    n_shared_kv_layers: int | None = None
    """Number of layers at the end of the model that share the KV cache of earlier layers."""
    n_embd_per_layer: int | None = None
    """Width of the embeddings of each token for each layer, of which only single rows are read."""


class CatalogueModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model in the catalogue. Fields with unknown values are None."""

    id: str
    name: str
    family: str
    sources: tuple[ModelSource, ...] = msgspec.field(name="source")
    licence: str | None = None
    is_default: bool = True
    """True if the planner may choose the model automatically, because its licence is permissive."""
    strengths: tuple[str, ...] = msgspec.field(default=(), name="good_at")
    languages: tuple[str, ...] = ()
    supports_tools: bool | None = msgspec.field(default=None, name="tools")
    thinking: str | None = None
    """Reasoning before the reply: `no`, `always`, or `toggle` (the user can turn it off)."""
    supports_vision: bool | None = msgspec.field(default=None, name="vision")
    has_mtp_heads: bool | None = msgspec.field(default=None, name="mtp")
    """True if the original model has heads that predict further tokens; a file may lack them. None if unknown."""
    n_ctx_train: int | None = None
    attention: str | None = None
    quality: str | None = None
    """Published benchmark results and their source, as text."""
    aa_index: float | None = None
    """Artificial Analysis Intelligence Index."""
    mmlu_pro: float | None = None
    """MMLU-Pro score in per cent."""
    notes: str | None = None
    dimensions: ModelDimensions = msgspec.field(default=ModelDimensions(), name="shape")
    figures_source: str | None = msgspec.field(default=None, name="figures_from")
    """Source of the file sizes and dimensions, as text."""

    @property
    def repos(self) -> list[str]:
        """Hub repositories that offer this model, in order of preference."""
        return [source.repo for source in self.sources if source.repo]

    def sizes(self) -> dict[str, int]:
        """Return file sizes in bytes by quant, smallest first.

        The size of a quant comes from the first source that lists a size for it; quants without a known size are
        omitted.
        """
        sizes = {
            quant: file.size_bytes
            for source in reversed(self.sources)
            for quant, file in source.quants.items()
            if file.size_bytes
        }
        return dict(sorted(sizes.items(), key=lambda item: item[1]))


def check_quant(model: CatalogueModel, quant: str) -> None:
    """Raise CatalogueError if no source of a catalogue model lists `quant`. "" stands for the default quant."""
    quants = dict.fromkeys(name for source in model.sources for name in (*source.quants, *source.other_quants))
    if quant and quant.lower() not in map(str.lower, quants):
        raise CatalogueError(
            f"The catalogue does not list the quant {quant!r} of {model.id}, but only {', '.join(quants) or 'none'}."
        )


def guess_model(repo: str, *names: str) -> CatalogueModel | None:
    """Guess the catalogue model of a file from its repository or its names. Returns None if no model matches.

    If several models match, the model with the longest id is returned. A fine-tune is matched to its base model.
    """
    models = load_catalogue()
    for model in models.values():
        if repo and repo in model.repos:
            return model
    texts = [_normalise_name(name) for name in names]
    matches = [
        model
        for model in models.values()
        if any(_normalise_name(model.id) in text or (text and text == _normalise_name(model.name)) for text in texts)
    ]
    return max(matches, key=lambda model: len(model.id), default=None)


def _normalise_name(text: str) -> str:
    return re.sub("[^a-z0-9]", "", text.lower())


class _CatalogueFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    models: tuple[CatalogueModel, ...] = msgspec.field(default=(), name="model")


@functools.cache
def load_catalogue() -> dict[str, CatalogueModel]:
    """Return the models of the shipped and the user's catalogue by id.

    The user's models replace shipped models with the same id. An invalid user catalogue is ignored.
    """
    models = {model.id: model for model in read_catalogue_file(builtin_catalogue_file())}
    with contextlib.suppress(CatalogueError):
        models |= {model.id: model for model in read_user_catalogue()}
    return models


def read_user_catalogue() -> tuple[CatalogueModel, ...]:
    """Read the user's models.toml; return () if there is no such file. Raises CatalogueError with the line or key."""
    path = paths.config_dir() / _FILE_NAME
    return read_catalogue_file(path) if os.path.lexists(path) else ()


def builtin_catalogue_file() -> Path:
    """Return the path of the shipped models.toml, in the installed package or the root of a source checkout."""
    package = Path(__file__).resolve().parent.parent
    return package / _FILE_NAME if (package / _FILE_NAME).exists() else package.parent / _FILE_NAME


def read_catalogue_file(path: Path) -> tuple[CatalogueModel, ...]:
    """Read and validate a catalogue file. Raises CatalogueError, which names the invalid line or key."""
    try:
        models = msgspec.convert(read_toml(path), _CatalogueFile).models
    except InvalidFileError as error:
        raise CatalogueError(str(error)) from None
    except msgspec.ValidationError as error:
        raise CatalogueError(f"{path}: {describe_decode_error(error)}; entries are counted from 0") from None
    _check_models(path, models)
    return models


def _check_models(path: Path, models: tuple[CatalogueModel, ...]) -> None:
    """Check the rules for catalogue entries that the type annotations do not express. Raises CatalogueError."""
    ids = set()
    for number, model in enumerate(models):
        location = f"{path}: model[{number}]"
        if not _ID_PATTERN.fullmatch(model.id):
            raise CatalogueError(f"{location}.id is {model.id!r}; use lower-case letters, digits, dots and hyphens")
        if model.id in ids:
            raise CatalogueError(f"{location}.id is {model.id!r}, which is also the id of another model; change it")
        ids.add(model.id)
        if model.thinking not in {None, "no", "toggle", "always"}:
            raise CatalogueError(f"{location}.thinking is {model.thinking!r}; use no, toggle or always")
        if not model.sources:
            raise CatalogueError(f"{location}.source is empty; add a source for {model.id}")
        for index, source in enumerate(model.sources):
            _check_source(f"{location}.source[{index}]", source)


def _check_source(location: str, source: ModelSource) -> None:
    if sum(value is not None for value in (source.repo, source.url, source.package)) != 1:
        raise CatalogueError(f"{location} needs exactly one of repo, url and package")
    if source.repo is not None and not _REPO_PATTERN.fullmatch(source.repo):
        raise CatalogueError(f"{location}.repo is {source.repo!r}; use OWNER/NAME")
    for quant, file in source.quants.items():
        if file.sha256 is not None and not re.fullmatch("[0-9a-f]{64}", file.sha256):
            raise CatalogueError(
                f"{location}.quants.{quant}.sha256 is not a SHA-256 hash of 64 lower-case hexadecimal digits"
            )
        if file.size_bytes is not None and file.size_bytes <= 0:
            raise CatalogueError(f"{location}.quants.{quant}.bytes is {file.size_bytes}; it must be at least 1")
