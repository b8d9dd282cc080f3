"""Resolution of the setting `route`: its two models, and errors that name what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgechat import paths
from edgechat.errors import SettingsError
from edgechat.remote.target import RemoteModel
from edgechat.remote_settings import ROUTE
from edgechat.route_settings import RouteSettings, Side, parse_route

if TYPE_CHECKING:
    from edgechat.config import Settings
    from edgechat.remote_settings import RemoteSettings


class Route(msgspec.Struct, frozen=True):
    """Two models and the rules that choose between them for each message."""

    small: Path | RemoteModel
    large: Path | RemoteModel
    settings: RouteSettings
    name: str = ROUTE

    def target(self, side: Side) -> Path | RemoteModel:
        """Return the model of a side."""
        return self.small if side == "small" else self.large


def find_route(
    settings: Settings, find_target: Callable[[str, Mapping[str, RemoteSettings]], Path | RemoteModel]
) -> Route:
    """Return the route of the settings; `find_target` resolves the name of a model.

    Raises SettingsError, ModelFileError and RemoteError.
    """
    if not settings.route:
        raise SettingsError(
            f"There is no route in the settings. Add a table [route] with small and large to {paths.config_file()}, "
            'such as small = "starter" and large = "box/llama3".'
        )
    route, problem = parse_route(settings.route)
    if route is None:
        raise SettingsError(f"The setting route {problem}.")
    small = find_target(route.small, settings.remotes)
    large = find_target(route.large, settings.remotes)
    if small == large:
        raise SettingsError(f"The setting route names one model twice: {route.small} and {route.large}.")
    _check_personas(route)
    return Route(small, large, route)


def _check_personas(route: RouteSettings) -> None:
    """Raise SettingsError if a rule names a persona that does not exist."""
    wanted = [rule.persona for rule in route.rules if rule.persona is not None]
    if not wanted:
        return
    from edgechat.chat import personas

    names = personas.list_names()
    for name in wanted:
        if name not in names:
            available = f"Available personas: {', '.join(names)}." if names else "There is no persona yet."
            raise SettingsError(f"A rule of the setting route names the persona {name!r}. {available}")
