"""Key bindings: which can be remapped, validation of the `[keys]` settings, and lookup of the action for a key."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from textual.binding import Binding

if TYPE_CHECKING:
    from textual.dom import DOMNode

VIM_KEYS: Final[Mapping[str, str]] = {
    "transcript.up": "up,k",
    "transcript.down": "down,j",
    "transcript.top": "home,g",
    "transcript.bottom": "end,G",
    "transcript.page_up": "pageup,ctrl+u",
    "transcript.page_down": "pagedown,ctrl+d",
}
"""Keys of bindings with the setting `vim_keys`."""


class KeyBinding(NamedTuple):
    """Key binding, as displayed in the help and in the settings."""

    id: str
    keys: str
    """Keys separated by commas."""
    description: str


def declared_bindings(*owners: type[DOMNode]) -> list[KeyBinding]:
    """Return the bindings that these classes declare themselves, each id once."""
    result: dict[str, KeyBinding] = {}
    for owner in owners:
        for binding in owner.__dict__.get("BINDINGS", ()):
            if isinstance(binding, Binding) and binding.id:
                result.setdefault(binding.id, KeyBinding(binding.id, binding.key, binding.description))
    return list(result.values())


def resolve_key_map(
    overrides: Mapping[str, str], bindings: Iterable[KeyBinding], *, vim: bool
) -> tuple[dict[str, str], list[str]]:
    """Return the keys by binding id, without invalid entries of `overrides`, and a problem for each invalid entry."""
    by_id = {binding.id: binding for binding in bindings}
    result = {name: keys for name, keys in VIM_KEYS.items() if vim and name in by_id}
    problems = []
    for name, keys in overrides.items():
        if name not in by_id:
            near = difflib.get_close_matches(name, by_id, n=1)
            hint = f"did you mean {near[0]}?" if near else "F1 lists all names"
            problems.append(f"keys: unknown name {name!r}; {hint}")
        elif invalid := [key for key in keys.split(",") if not _is_key(key.strip())]:
            problems.append(f"keys: {name}: {invalid[0]!r} is not a key")
        else:
            result[name] = ",".join(key.strip() for key in keys.split(","))
    return result, problems + _conflicts(result, by_id)


def _conflicts(result: Mapping[str, str], by_id: Mapping[str, KeyBinding]) -> list[str]:
    """Return a problem for each remapped key that has two actions in the same part of the screen."""
    names: dict[tuple[str, str], str] = {}
    problems = []
    for name, binding in by_id.items():  # bindings of the application are first and apply everywhere
        area = name.partition(".")[0]
        for key in (result.get(name) or binding.keys).split(","):
            other = names.get((area, key)) or names.get(("app", key))
            if other is not None and (name in result or other in result):
                problems.append(f"keys: {key} is both {other} and {name}")
            names.setdefault((area, key), name)
    return problems


def _is_key(key: str) -> bool:
    """Return True for a key that a terminal can send: a character or a Textual key name, with modifiers."""
    from textual.keys import Keys

    *modifiers, name = key.split("+") if key not in {"+", ""} else [key]
    key_names = {k.value for k in Keys}
    is_named = len(name) == 1 or name in key_names or key in key_names
    return set(modifiers) <= {"ctrl", "shift", "alt", "super"} and is_named


def action_for(owner: type[DOMNode], key: str, overrides: Mapping[str, str]) -> str | None:
    """Return the action that a class binds to a key, with `overrides` by binding id applied."""
    for binding in owner.__dict__.get("BINDINGS", ()):
        if isinstance(binding, Binding):
            keys = overrides.get(binding.id or "") or binding.key
            if key in keys.split(","):
                return binding.action
    return None
