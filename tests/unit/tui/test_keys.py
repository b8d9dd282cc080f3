"""Keys can be remapped, and what is wrong with a key map is named."""

from __future__ import annotations

import importlib
import pkgutil

from textual.binding import Binding
from textual.dom import DOMNode

import edgechat.tui
from edgechat.tui.app import ChatApp
from edgechat.tui.keys import resolve_key_map
from edgechat.tui.screens.help import key_label

KNOWN = ChatApp.all_keys()


def our_bindings() -> list[Binding]:
    found = []
    for module in pkgutil.walk_packages(edgechat.tui.__path__, "edgechat.tui."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, type) and issubclass(value, DOMNode) and value.__module__ == module.name:
                found += list(value.__dict__.get("BINDINGS", ()))
    return found


def test_every_binding_has_an_id_and_words() -> None:
    bindings = our_bindings()
    assert len(bindings) > 40
    assert all(isinstance(b, Binding) and b.id and b.description for b in bindings)
    ids = [b.id for b in bindings]
    assert len(ids) == len(set(ids))


def test_every_key_can_be_another() -> None:
    assert {b.id for b in our_bindings()} == {key.id for key in KNOWN}


def test_no_two_of_one_place_share_a_key() -> None:
    assert resolve_key_map({}, KNOWN, vim=False)[1] == []
    assert resolve_key_map({}, KNOWN, vim=True)[1] == []


def test_what_is_wrong_is_named_and_the_rest_used() -> None:
    chosen = {"chat.search": "f5, ctrl+y", "chat.serach": "f6", "chat.new": "ctrl+banana", "chat.help": "f2"}
    keys, problems = resolve_key_map(chosen, KNOWN, vim=False)
    assert keys == {"chat.search": "f5,ctrl+y", "chat.help": "f2"}
    assert "did you mean chat.search?" in problems[0]
    assert "'ctrl+banana' is not a key" in problems[1]
    assert "f2 is both chat.help and chat.settings" in problems[2]


def test_vim_keys_are_added_and_can_be_changed() -> None:
    keys, _ = resolve_key_map({"transcript.down": "n"}, KNOWN, vim=True)
    assert keys["transcript.up"] == "up,k"
    assert keys["transcript.down"] == "n"


def test_keys_as_they_are_written() -> None:
    assert [key_label(k) for k in ("ctrl+q", "escape", "f1", "alt+left", "y", "shift+enter")] == [
        "Ctrl+Q", "Esc", "F1", "Alt+Left", "y", "Shift+Enter",
    ]  # fmt: skip
