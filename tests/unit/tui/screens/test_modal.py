"""Modal screens that are closed while they open."""

from __future__ import annotations

import pytest
from textual.app import App, ComposeResult
from textual.containers import Vertical
from textual.css.query import NoMatches
from textual.message import Message
from textual.widgets import Static

from edgechat.tui.screens.modal import Modal


class _Listed(Message):
    """The rows of the list are known."""


class _ListScreen(Modal[None]):
    def compose(self) -> ComposeResult:
        with Vertical():
            yield Static(id="rows")

    def on_mount(self) -> None:
        self.post_message(_Listed())
        self.query_one("#rows", Static).update("Listing ...")

    def on__listed(self) -> None:
        self.query_one("#rows", Static).update("One row")


class _BrokenScreen(_ListScreen):
    def on__listed(self) -> None:
        self.query_one("#columns")


async def test_screen_can_be_closed_before_its_widgets_are_mounted() -> None:
    async with App[None]().run_test() as pilot:
        for _ in range(3):
            pilot.app.push_screen(_ListScreen())
            await pilot.app.pop_screen()
        await pilot.app.push_screen(_ListScreen())
        await pilot.pause()
        assert str(pilot.app.screen.query_one("#rows", Static).content) == "One row"


async def open_broken_screen() -> None:
    async with App[None]().run_test() as pilot:
        await pilot.app.push_screen(_BrokenScreen())
        await pilot.pause()


async def test_missing_widget_of_an_open_screen_is_an_error() -> None:
    with pytest.raises(NoMatches, match="#columns"):
        await open_broken_screen()
