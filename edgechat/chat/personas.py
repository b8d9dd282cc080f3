"""Personas: named sets of a system prompt, a model and sampling settings, one TOML file each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from edgechat import config, paths
from edgechat.errors import SettingsError

# Settings that a persona may contain. Settings that depend on the machine, such as the context length, are excluded.
PERSONA_SETTINGS = (
    "model", "system_prompt", "docs", "max_tokens", "reasoning", "thinking", "thinking_end", "stop_repetition",
    *config.Sampling.__struct_fields__,
)  # fmt: skip


class Persona(msgspec.Struct, frozen=True):
    """Content of a persona file: valid settings, and problems with invalid entries."""

    name: str
    path: Path
    values: dict[str, Any]
    """Valid settings by field name of `edgechat.config.Settings`."""
    problems: list[config.SettingsProblem]
    """Reasons why entries are invalid. Invalid entries are ignored."""


def list_names() -> list[str]:
    """Return the sorted names of all personas."""
    try:
        return sorted(p.stem for p in paths.personas_dir().glob("*.toml"))
    except OSError:  # no permission to read the directory
        return []


def load(name: str) -> Persona:
    """Read the file of the persona `name`. Raises SettingsError if the persona does not exist."""
    if not name.strip():
        raise SettingsError("The name of the persona is empty. `edgechat config personas` lists all personas.")
    names = list_names()
    path = paths.personas_dir() / f"{name}.toml"
    if name not in names:
        folder = paths.personas_dir()
        hint = f"Available personas: {', '.join(names)}." if names else f"A persona is a TOML file in {folder}."
        raise SettingsError(f"No persona is called {name!r}. {hint}")
    problems: list[config.SettingsProblem] = []
    values: dict[str, Any] = {}
    for key, value in config.read_toml(path, problems).items():
        if key in PERSONA_SETTINGS:
            problem = config.check(key, value)
        else:
            problem = f"is not a persona setting. Available settings: {', '.join(PERSONA_SETTINGS)}"
        if problem:
            problems.append(config.SettingsProblem(f"{path}: {key}", problem))
        else:
            values[key] = value
    return Persona(name, path, values, problems)


def find_by_settings(settings: Mapping[str, object]) -> Persona | None:
    """Return the largest persona whose settings all occur in `settings`; None if no persona matches."""
    best, best_size = None, 0
    for name in list_names() if settings else ():
        persona = load(name)
        values = {key: value for key, value in persona.values.items() if key != "model"}
        if len(values) > best_size and values.items() <= settings.items():
            best, best_size = persona, len(values)
    return best


def load_settings(name: str) -> dict[str, Any]:
    """Return the settings of the persona `name`. Raises SettingsError if the file does not exist or has errors."""
    persona = load(name)
    if persona.problems:
        raise SettingsError("; ".join(map(str, persona.problems)))
    return persona.values
