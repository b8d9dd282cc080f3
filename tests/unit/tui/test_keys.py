"""Key bindings: every binding can be remapped, and mistakes in the key map are reported."""

from __future__ import annotations

import importlib
import pkgutil

from textual.binding import Binding
from textual.dom import DOMNode

import edgechat.tui
from edgechat.tui.app import ChatApp
from edgechat.tui.key_names import format_key
from edgechat.tui.keys import resolve_key_map

KNOWN = ChatApp.list_key_bindings()


def our_bindings() -> list[Binding]:
    result = []
    for module in pkgutil.walk_packages(edgechat.tui.__path__, "edgechat.tui."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, type) and issubclass(value, DOMNode) and value.__module__ == module.name:
                result += list(value.__dict__.get("BINDINGS", ()))
    return result


def test_every_binding_has_a_unique_id_and_a_description() -> None:
    bindings = our_bindings()
    assert len(bindings) > 40
    assert all(isinstance(b, Binding) and b.id and b.description for b in bindings)
    ids = [b.id for b in bindings]
    assert len(ids) == len(set(ids))


def test_every_binding_can_be_remapped() -> None:
    assert {b.id for b in our_bindings()} == {key.id for key in KNOWN}


def test_default_keys_do_not_conflict() -> None:
    assert resolve_key_map({}, KNOWN, vim=False)[1] == []
    assert resolve_key_map({}, KNOWN, vim=True)[1] == []


def test_invalid_entries_are_reported_and_the_others_used() -> None:
    overrides = {"chat.search": "f5, ctrl+y", "chat.serach": "f6", "chat.new": "ctrl+banana", "chat.help": "f2"}
    keys, problems = resolve_key_map(overrides, KNOWN, vim=False)
    assert keys == {"chat.search": "f5,ctrl+y", "chat.help": "f2"}
    assert "did you mean chat.search?" in problems[0]
    assert "'ctrl+banana' is not a valid key" in problems[1]
    assert "f2 is bound to both chat.help and chat.settings" in problems[2]


def test_vim_keys_are_added_and_can_be_overridden() -> None:
    keys, _ = resolve_key_map({"transcript.down": "n"}, KNOWN, vim=True)
    assert keys["transcript.up"] == "up,k"
    assert keys["transcript.down"] == "n"


def test_key_names_for_display() -> None:
    assert [format_key(k) for k in ("ctrl+q", "escape", "f1", "alt+left", "y", "shift+enter")] == [
        "Ctrl+Q", "Esc", "F1", "Alt+Left", "y", "Shift+Enter",
    ]  # fmt: skip
