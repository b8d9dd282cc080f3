"""Resolution of the setting `route`: its two models, and errors that name what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgechat import paths
from edgechat.errors import EdgechatError, SettingsError
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

    Raises SettingsError, and the errors of `find_target`, which begin with `route.small` or `route.large`.
    """
    if not settings.route:
        if problem := _find_problem():
            raise SettingsError(f"{problem}.")
        raise SettingsError(
            f"There is no route in the settings. Add a table [route] with small and large to {paths.config_file()}, "
            'such as small = "starter" and large = "box/llama3".'
        )
    route, problem = parse_route(settings.route)
    if route is None:
        raise SettingsError(f"The setting route {problem}.")
    targets: dict[Side, Path | RemoteModel] = {}
    names: dict[Side, str] = {"small": route.small, "large": route.large}
    for side, name in names.items():
        try:
            targets[side] = find_target(name, settings.remotes)
        except EdgechatError as error:  # noqa: PERF203  (there are two)
            error.args = (f"{ROUTE}.{side}: {error}",)
            raise
    small, large = targets["small"], targets["large"]
    if small == large:
        raise SettingsError(f"The setting route names one model twice: {route.small} and {route.large}.")
    _check_personas(route)
    return Route(small, large, route)


def _find_problem() -> str:
    """Return the reason why the table `route` of the settings file was ignored; "" if it has no such table."""
    from edgechat import config

    file, variable = str(paths.config_file()), config.ENVIRONMENT_PREFIX + ROUTE.upper()
    for problem in config.load()[1]:
        is_of_file = problem.location.startswith(file) and not problem.location.startswith(f"{file}: ")
        if is_of_file or problem.location in {variable, f"{file}: {ROUTE}"}:
            return str(problem)
    return ""


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
