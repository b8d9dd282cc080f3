"""Key bindings: list of all bindings, validation of the `[keys]` settings, and lookup of the action for a key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from textual.binding import Binding

from edgechat.tui.key_names import format_key

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
"""Comma-separated keys by binding ID, which apply if the setting `vim_keys` is on."""


_COMMAND_ACTION: Final = re.compile(r"command\('(\w+)'\)")


class KeyBinding(NamedTuple):
    """Key binding that the help lists and that the settings can remap."""

    id: str
    keys: str
    """Comma-separated keys."""
    description: str


def list_declared_bindings(*owners: type[DOMNode]) -> list[KeyBinding]:
    """Return the key bindings declared in these classes, not in their base classes; each ID occurs once."""
    result: dict[str, KeyBinding] = {}
    for owner in owners:
        for binding in owner.__dict__.get("BINDINGS", ()):
            if isinstance(binding, Binding) and binding.id:
                result.setdefault(binding.id, KeyBinding(binding.id, binding.key, binding.description))
    return list(result.values())


def format_labels(binding_ids: Iterable[str], default_keys: Mapping[str, str], overrides: Mapping[str, str]) -> str:
    """Return the labels of the first keys of bindings, such as "Alt+Left/Right"; "" if they have none.

    Both mappings contain comma-separated keys by binding ID; those of `overrides` have priority.
    """
    keys_by_id = [overrides.get(binding_id) or default_keys.get(binding_id, "") for binding_id in binding_ids]
    labels = [format_key(keys_.partition(",")[0]) for keys_ in keys_by_id if keys_]
    modifiers = labels[0][: labels[0].rfind("+") + 1] if labels else ""
    return "/".join([*labels[:1], *(label.removeprefix(modifiers) for label in labels[1:])])


def resolve_key_map(
    overrides: Mapping[str, str], bindings: Iterable[KeyBinding], *, vim: bool
) -> tuple[dict[str, str], list[str]]:
    """Return the remapped keys by binding ID, and a message for each invalid or conflicting entry of `overrides`.

    With `vim`, `VIM_KEYS` apply unless `overrides` contains the binding. Invalid entries are ignored.
    """
    bindings_by_id = {binding.id: binding for binding in bindings}
    key_map = {name: keys for name, keys in VIM_KEYS.items() if vim and name in bindings_by_id}
    problems = []
    for name, keys in overrides.items():
        if name not in bindings_by_id:
            similar_names = difflib.get_close_matches(name, bindings_by_id, n=1)
            hint = f"did you mean {similar_names[0]}?" if similar_names else "F1 lists all names"
            problems.append(f"keys: unknown name {name!r}; {hint}")
        elif invalid_keys := [key for key in keys.split(",") if not _is_key(key.strip())]:
            problems.append(f"keys: {name}: {invalid_keys[0]!r} is not a valid key")
        else:
            key_map[name] = ",".join(key.strip() for key in keys.split(","))
    return key_map, problems + _find_conflicts(key_map, bindings_by_id)


def _find_conflicts(key_map: Mapping[str, str], bindings_by_id: Mapping[str, KeyBinding]) -> list[str]:
    """Return a message for each remapped key that has two actions in the same part of the screen."""
    names_by_key: dict[tuple[str, str], str] = {}
    problems = []
    for name, binding in bindings_by_id.items():  # bindings of the application come first and apply everywhere
        area = name.partition(".")[0]
        for key in (key_map.get(name) or binding.keys).split(","):
            other_name = names_by_key.get((area, key)) or names_by_key.get(("app", key))
            if other_name is not None and (name in key_map or other_name in key_map):
                problems.append(f"keys: {key} is bound to both {other_name} and {name}")
            names_by_key.setdefault((area, key), name)
    return problems


def _is_key(key: str) -> bool:
    """Return whether a terminal can send `key`: a character or a Textual key name, with or without modifiers."""
    from textual.keys import Keys

    *modifiers, name = key.split("+") if key not in {"+", ""} else [key]
    key_names = {k.value for k in Keys}
    is_named = len(name) == 1 or name in key_names or key in key_names
    return set(modifiers) <= {"ctrl", "shift", "alt", "super"} and is_named


def find_action(owner: type[DOMNode], key: str, overrides: Mapping[str, str]) -> str | None:
    """Return the action that the bindings of a class and its bases assign to a key; None if the key is not bound.

    Only bindings with an ID count. `overrides` contains remapped keys by binding ID.
    """
    for class_ in owner.__mro__:
        for binding in class_.__dict__.get("BINDINGS", ()):
            if isinstance(binding, Binding) and binding.id:
                keys = overrides.get(binding.id) or binding.key
                if key in keys.split(","):
                    return binding.action
    return None


def find_command_keys(owner: type[DOMNode], overrides: Mapping[str, str]) -> dict[str, str]:
    """Return, for each slash command that a binding of a class runs, the first key of the binding.

    `overrides` contains remapped keys by binding ID.
    """
    keys_by_command: dict[str, str] = {}
    for binding in owner.__dict__.get("BINDINGS", ()):
        command = _COMMAND_ACTION.fullmatch(binding.action) if isinstance(binding, Binding) else None
        key = (overrides.get(binding.id or "") or binding.key).partition(",")[0]
        if command is not None and len(key) > 1:  # single letters work only in the conversation, not in the input
            keys_by_command.setdefault(command[1], key)
    return keys_by_command


def is_assigned_elsewhere(key: str, area: str, overrides: Mapping[str, str]) -> bool:
    """Return whether the user assigned a key to an action of the chat screen, but to no action of `area`."""
    areas = {name.partition(".")[0] for name, keys in overrides.items() if key in keys.split(",")}
    return "chat" in areas and area not in areas
