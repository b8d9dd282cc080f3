"""Model of a remote: its name `REMOTE/MODEL`, and where its requests go."""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping

import msgspec

from edgechat.errors import RemoteSetupError
from edgechat.remote_settings import RemoteSettings


class RemoteModel(msgspec.Struct, frozen=True, kw_only=True):
    """Model of a remote that the user chose."""

    remote: str
    """Name of the remote in the settings."""
    model: str
    """Name of the model on the server."""
    settings: RemoteSettings

    @property
    def name(self) -> str:
        """Name of the model in edgechat: `REMOTE/MODEL`."""
        return f"{self.remote}/{self.model}"

    @property
    def host(self) -> str:
        """Host of the server, with its port if the URL has one."""
        return find_host(self.settings.url)


def find_host(url: str) -> str:
    """Return the host of a URL, with its port if it has one."""
    parts = urllib.parse.urlsplit(url)
    return f"{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}"


def find_remote_model(name: str, remotes: Mapping[str, RemoteSettings]) -> RemoteModel | None:
    """Return the remote model `REMOTE/MODEL`, or the model that the settings of `REMOTE` name; None for other names.

    Raises RemoteSetupError if only the remote is named, and its settings name no model.
    """
    remote_name, _, model = name.partition("/")
    settings = remotes.get(remote_name)
    if settings is None:
        return None
    if not (model or settings.model):
        example = f"{remote_name}/MODEL"
        raise RemoteSetupError(
            f"The remote {remote_name} has no default model. Use -m {example}; "
            f"`edgechat remotes test {remote_name}` lists its models."
        )
    return RemoteModel(remote=remote_name, model=model or settings.model, settings=settings)
