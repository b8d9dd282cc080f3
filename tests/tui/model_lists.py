"""Operate the models screen in tests: its rows, details and notices, on a machine of known speed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from textual.widgets import OptionList, Static

from edgechat.models import resources, selection
from edgechat.planner.machine import Machine
from edgechat.planner.throughput import DeviceRates
from edgechat.tui.app import ChatApp

if TYPE_CHECKING:
    import pytest

REPO: Final = "someone/parrot-GGUF"
"""Repository of the local hub."""
RATES: Final = DeviceRates(read_bytes_per_s=10e9)


def set_machine(monkeypatch: pytest.MonkeyPatch, rates: DeviceRates = RATES) -> None:
    """Replace the machine by one with 8 GB of free memory and the speed `rates`."""
    machine = Machine(available_bytes=8_000_000_000, n_threads=4, rates=rates)
    for module in (resources, selection):
        monkeypatch.setattr(module, "current_machine", lambda *args: machine)
    monkeypatch.setattr(selection, "load_measured_speeds", lambda: None)


def option_ids(app: ChatApp) -> list[str]:
    """Return the IDs of the rows that can be highlighted."""
    return [o.id or "" for options in app.screen.query(OptionList) for o in options.options if not o.disabled]


def row_texts(app: ChatApp) -> dict[str, str]:
    """Return the texts of the rows by ID."""
    return {o.id: str(o.prompt) for options in app.screen.query(OptionList) for o in options.options if o.id}


def highlighted_id(app: ChatApp) -> str | None:
    option = app.screen.query_one(OptionList).highlighted_option
    return option.id if option is not None else None


def details(app: ChatApp) -> str:
    return str(app.screen.query_one("#details", Static).content)


def notice(app: ChatApp) -> str:
    return str(app.screen.query_one("#pull", Static).content)
