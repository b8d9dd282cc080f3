"""Keys: what can be remapped, what is wrong with a key map, and what each key does now."""

from __future__ import annotations

import difflib
import enum
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from textual._ansi_sequences import ANSI_SEQUENCES_KEYS
from textual.binding import Binding

if TYPE_CHECKING:
    from textual.dom import DOMNode
    from textual.widget import Widget

VIM_KEYS: Final[Mapping[str, str]] = {
    "transcript.up": "up,k",
    "transcript.down": "down,j",
    "transcript.top": "home,g",
    "transcript.bottom": "end,G",
    "transcript.page_up": "pageup,ctrl+u",
    "transcript.page_down": "pagedown,ctrl+d",
}
"""What moving like in vim adds."""


class _Missing(enum.Enum):
    """What Textual has no name for."""

    ALT_ENTER = "alt+enter"


def know_alt_enter() -> None:
    """Terminals that do not speak the newer protocol send Escape and Return, which Textual takes for Return alone."""
    ANSI_SEQUENCES_KEYS["\x1b\r"] = (_Missing.ALT_ENTER,)  # type: ignore[index]


class KeyBinding(NamedTuple):
    """A binding, as help and the settings know it."""

    id: str
    keys: str
    description: str


def declared_bindings(*owners: type[DOMNode]) -> list[KeyBinding]:
    """All bindings of ours in these classes, each once."""
    found: dict[str, KeyBinding] = {}
    for owner in owners:
        for binding in owner.__dict__.get("BINDINGS", ()):
            if isinstance(binding, Binding) and binding.id:
                found.setdefault(binding.id, KeyBinding(binding.id, binding.key, binding.description))
    return list(found.values())


def resolve_key_map(
    chosen: Mapping[str, str], known: Iterable[KeyBinding], *, vim: bool
) -> tuple[dict[str, str], list[str]]:
    """Keys by the ids of bindings, and what is wrong with `chosen`; what is wrong is not used."""
    by_id = {key.id: key for key in known}
    result = {name: keys for name, keys in VIM_KEYS.items() if vim and name in by_id}
    problems = []
    for name, keys in chosen.items():
        if name not in by_id:
            near = difflib.get_close_matches(name, by_id, n=1)
            hint = f"did you mean {near[0]}?" if near else "F1 shows those there are"
            problems.append(f"keys: there is no {name!r}; {hint}")
        elif wrong := [key for key in keys.split(",") if not _is_key(key.strip())]:
            problems.append(f"keys: {name}: {wrong[0]!r} is no key")
        else:
            result[name] = ",".join(key.strip() for key in keys.split(","))
    return result, problems + _clashes(result, by_id)


def _clashes(result: Mapping[str, str], by_id: Mapping[str, KeyBinding]) -> list[str]:
    """Keys that were given to two things of one place."""
    taken: dict[tuple[str, str], str] = {}
    problems = []
    for name, key in by_id.items():  # those of the app come first, and hold everywhere
        place = name.partition(".")[0]
        for each in (result.get(name) or key.keys).split(","):
            other = taken.get((place, each)) or taken.get(("app", each))
            if other is not None and (name in result or other in result):
                problems.append(f"keys: {each} is both {other} and {name}")
            taken.setdefault((place, each), name)
    return problems


def _is_key(key: str) -> bool:
    """True for what a terminal may send: a character, or a name with what is held down."""
    from textual.keys import Keys

    *held, name = key.split("+") if key not in {"+", ""} else [key]
    known = {k.value for k in Keys}
    return set(held) <= {"ctrl", "shift", "alt", "super"} and (len(name) == 1 or name in known or key in known)


def action_for(widget: Widget, key: str) -> str | None:
    """The action of a widget's own bindings for a key, as they are mapped now."""
    overrides: Mapping[str, str] = getattr(widget.app, "key_overrides", {})
    for binding in type(widget).__dict__.get("BINDINGS", ()):
        if isinstance(binding, Binding):
            keys = overrides.get(binding.id or "") or binding.key
            if key in keys.split(","):
                return binding.action
    return None
