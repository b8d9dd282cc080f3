"""Resolution of model names: a model on this machine, or a model of a remote.

A local model has priority: an existing file, an alias or an installed model of this name. So a remote that is added
later never receives messages that were meant for a local model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from edgechat.catalogue.resolve import find_model
from edgechat.errors import ModelFileError, UsageError
from edgechat.remote_settings import ROUTE, is_remote_name

if TYPE_CHECKING:
    from pathlib import Path

    from edgechat.chat.reply_source import ModelTarget
    from edgechat.config import Settings
    from edgechat.remote.target import RemoteModel
    from edgechat.remote_settings import RemoteSettings


def find_model_target(settings: Settings) -> ModelTarget:
    """Return the target of the model that the settings name, which can be `route`.

    Raises the errors of `find_target`, and SettingsError for a route that cannot be used.
    """
    if settings.model == ROUTE:
        from edgechat.chat.route_target import find_route

        return find_route(settings, find_target)
    return find_target(settings.model, settings.remotes)


def find_target(name: str, remotes: Mapping[str, RemoteSettings]) -> Path | RemoteModel:
    """Return the file of the local model `name`, or the remote model `REMOTE/MODEL` (or only `REMOTE`).

    Raises ModelFileError for an unknown name, and for a missing file whose name can be that of a remote model;
    RemoteSetupError for a remote without a default model, UsageError for a route, and other errors of `find_model`.
    """
    remote_name, separator, _ = name.partition("/")
    if name == ROUTE:
        raise UsageError("A route chooses between two models. Name one of them here.")
    if remote_name not in remotes:
        try:
            path = find_model(name)
        except ModelFileError as error:
            if separator and remote_name:  # a conversation may have the model of a remote that was removed
                error.args = (f"{error} If {remote_name} is a remote, add it with `edgechat remotes add`.",)
            raise
        if separator and is_remote_name(remote_name):
            _check_file(name, path, remote_name)
        return path
    from edgechat.remote.target import find_remote_model

    try:
        path = find_model(name)
        if path.exists():
            return path
    except ModelFileError:
        pass
    target = find_remote_model(name, remotes)
    assert target is not None  # noqa: S101  (the name of the remote was checked)
    return target


def _check_file(name: str, path: Path, remote_name: str) -> None:
    """Raise ModelFileError for a missing file such as `box/model.gguf`, whose name may be that of a remote model."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        advice = "/model NAME or -m NAME chooses another model."
        if path.parent.is_dir():
            raise ModelFileError(
                f"{name} does not exist. If {remote_name} is a remote, add it with `edgechat remotes add`; {advice}"
            ) from None
        raise ModelFileError(
            f"There is no remote {remote_name}, and no file {name}. Add the remote with "
            f"`edgechat remotes add {remote_name} URL`; {advice}"
        ) from None
    except OSError:  # the load reports it
        return
