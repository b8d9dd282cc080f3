"""Personas: a system prompt, a model and sampling under one name, each a TOML file that a person edits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from edgechat import config, paths
from edgechat.errors import SettingsError

# What a persona may choose: how a model answers, not how this machine runs it.
PERSONA_SETTINGS = ("model", "system_prompt", "max_tokens", "reasoning", *config.Sampling.__struct_fields__)


class Persona(msgspec.Struct, frozen=True):
    """The settings of one file, by their names in `edgechat.config.Settings`."""

    name: str
    path: Path
    values: dict[str, Any]
    problems: list[config.SettingsProblem]
    """Lines of the file that are not used."""


def list_names() -> list[str]:
    """The personas there are."""
    return sorted(p.stem for p in paths.personas_dir().glob("*.toml"))


def load(name: str) -> Persona:
    """The persona called `name`. Raises SettingsError if there is none, with what there is instead."""
    if name not in list_names():
        known = ", ".join(list_names())
        raise SettingsError(
            f"no persona is called {name!r}; "
            + (f"known are: {known}" if known else f"make one: {paths.personas_dir() / 'NAME.toml'}")
        )
    path = paths.personas_dir() / f"{name}.toml"
    problems: list[config.SettingsProblem] = []
    values: dict[str, Any] = {}
    for key, value in config.read_toml(path, problems).items():
        wrong = (
            config.check(key, value)
            if key in PERSONA_SETTINGS
            else f"a persona has no such setting; it may have: {', '.join(PERSONA_SETTINGS)}"
        )
        if wrong:
            problems.append(config.SettingsProblem(f"{path}: {key}", wrong))
        else:
            values[key] = value
    return Persona(name, path, values, problems)


def load_settings(name: str) -> dict[str, Any]:
    """What a persona chooses. One that cannot be used as it is written is refused: it was asked for by name.

    Raises SettingsError.
    """
    chosen = load(name)
    if chosen.problems:
        raise SettingsError("; ".join(map(str, chosen.problems)))
    return chosen.values
