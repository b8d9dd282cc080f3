"""Saved lists of the models of remotes, so that completions and pickers need no network."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from edgechat import paths
from edgechat.files import JsonFile
from edgechat.remote.client import ListedModel
from edgechat.remote.target import RemoteModel, find_host
from edgechat.remote_settings import RemoteSettings

_MAX_FILE_BYTES: Final = 8 << 20
_MAX_SAVED_MODELS: Final = 2000


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """Models of one remote, as its server listed them."""

    url: str
    """URL of the remote at that time. The list of another server does not apply."""
    listed_at_ms: int
    models: list[ListedModel]


def save_list(name: str, settings: RemoteSettings, models: Sequence[ListedModel]) -> None:
    """Save the list of models that the remote `name` has sent."""
    lists = _file().read() or {}
    model_list = ModelList(
        url=settings.url, listed_at_ms=time.time_ns() // 1_000_000, models=list(models[:_MAX_SAVED_MODELS])
    )
    _file().save({**lists, name: model_list})


def remove_list(name: str) -> None:
    """Delete the saved list of the remote `name`, if there is one."""
    lists = _file().read() or {}
    if lists.pop(name, None) is not None:
        _file().save(lists)


def find_list(name: str, settings: RemoteSettings) -> ModelList | None:
    """Return the saved list of a remote; None if there is none for its present URL."""
    model_list = (_file().read() or {}).get(name)
    return model_list if model_list is not None and model_list.url == settings.url else None


def list_names(remotes: Mapping[str, RemoteSettings]) -> list[str]:
    """Return the known models of all remotes as `REMOTE/MODEL`: default models, and those of saved lists."""
    lists = _file().read() or {}
    names: list[str] = []
    for name, settings in remotes.items():
        model_list = lists.get(name)
        models = model_list.models if model_list is not None and model_list.url == settings.url else []
        ids = dict.fromkeys([*([settings.model] if settings.model else []), *(model.id for model in models)])
        names += [f"{name}/{model_id}" for model_id in ids]
    return names


def find_hosts(remotes: Mapping[str, RemoteSettings]) -> dict[str, str]:
    """Return the hosts of the known models of all remotes, by name."""
    return {name: find_host(remotes[name.partition("/")[0]].url) for name in list_names(remotes)}


def find_n_ctx(target: RemoteModel) -> int | None:
    """Return the context length in tokens that the server of a model has reported; None if it is unknown."""
    model_list = find_list(target.remote, target.settings)
    models = model_list.models if model_list is not None else []
    return next((model.n_ctx for model in models if model.id == target.model), None)


def _file() -> JsonFile[dict[str, ModelList]]:
    return JsonFile(paths.remote_models_file(), dict[str, ModelList], max_bytes=_MAX_FILE_BYTES)
