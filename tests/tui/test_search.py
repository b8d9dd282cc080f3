"""Searching all conversations, and the marks of the searched words in the message."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from textual.widgets.option_list import Option

from edgechat.store import open_ephemeral_store
from edgechat.tui.app import ChatApp
from tests.tui.app_driver import (
    is_open,
    make_scripted_app,
    option_list,
    option_texts,
    save_conversation,
    shown_texts,
    wait_until_ready,
)  # fmt: skip
from tests.waiting import until_async

if TYPE_CHECKING:
    from textual.pilot import Pilot

    from edgechat.chat.store import Store


def make_store() -> Store:
    store = open_ephemeral_store()
    save_conversation(store, [("Where is the zebra?", "The zebra\n\nis **in the zoo**. Zebra!")], "Animals")
    save_conversation(store, [("a zebra", "another")], "Animals", at_ms=10**12)
    save_conversation(store, [("nothing", "line\n\n" * 80 + "a hidden zebra")], "Long")
    return store


async def search(app: ChatApp, pilot: Pilot[int], text: str, n_rows: int) -> None:
    await wait_until_ready(app)
    await pilot.press("ctrl+f", *text)
    await until_async(lambda: is_open(app, "SearchScreen") and option_list(app).option_count == n_rows)


def marked_texts(app: ChatApp) -> list[str]:
    """Return the visible texts in the colours of marks."""
    transcript, style = app.pane.transcript, app.palette.selection
    rows = [transcript.render_line(y) for y in range(transcript.size.height)]
    return [
        segment.text.strip()
        for row in rows
        for segment in row
        if segment.style is not None and segment.style.bgcolor == style.bgcolor and segment.text.strip()
    ]


async def test_hits_are_grouped_by_conversation_with_date_and_role() -> None:
    app = make_scripted_app(store=make_store())
    async with app.run_test(size=(120, 36)) as pilot:
        await search(app, pilot, "zebra", 7)
        rows = option_texts(app)
        headings = [row for row in rows if not row.startswith("  ")]
        assert len(headings) == len(set(headings)) == 3
        assert [row.split()[0] for row in rows if row.startswith("  ")].count("you") == 2
        assert option_list(app).highlighted == 1  # headings cannot be chosen
        await pilot.press("up")
        assert option_list(app).highlighted != 0


async def test_words_are_marked_until_a_key_changes_something() -> None:
    app = make_scripted_app(store=make_store())
    async with app.run_test(size=(80, 24)) as pilot:
        await search(app, pilot, "zebra zoo", 2)
        await pilot.press("enter")
        await until_async(lambda: marked_texts(app) == ["zebra", "zoo", "Zebra"])
        await pilot.press("pageup", "pagedown")
        assert marked_texts(app) == ["zebra", "zoo", "Zebra"]
        await pilot.press("up")
        await until_async(lambda: marked_texts(app) == [])


@pytest.mark.parametrize("keys", [["escape"], ["h", "i", "enter"], ["ctrl+n"], ["left"]])
async def test_keys_that_remove_the_marks(keys: list[str]) -> None:
    app = make_scripted_app(store=make_store())
    async with app.run_test(size=(80, 24)) as pilot:
        await search(app, pilot, "zebra zoo", 2)
        await pilot.press("enter")
        await until_async(lambda: len(marked_texts(app)) == 3)
        await pilot.press(*keys)
        await until_async(lambda: marked_texts(app) == [])


async def test_marked_word_far_below_the_start_of_its_message_is_visible() -> None:
    app = make_scripted_app(store=make_store())
    async with app.run_test(size=(80, 24)) as pilot:
        await search(app, pilot, "hidden", 2)
        await pilot.press("enter")
        await until_async(lambda: shown_texts(app, "user") == ["nothing"] and marked_texts(app) == ["hidden"])


async def test_highlight_of_an_earlier_longer_list_is_ignored() -> None:
    app = make_scripted_app(store=make_store())
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        await pilot.press("ctrl+f")
        await until_async(lambda: is_open(app, "SearchScreen"))
        options = option_list(app)
        options.clear_options()
        options.add_option(Option("A hit that is gone", id="99"))
        options.highlighted = 0
        await pilot.pause()
        await pilot.press("enter")
        await pilot.pause()
        assert is_open(app, "SearchScreen")
