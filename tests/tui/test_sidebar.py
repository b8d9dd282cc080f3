"""The list of conversations (Ctrl+B): its rows, its keys, and its readability."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from rich.cells import cell_len
from textual.widgets import Input

from edgechat.store import open_ephemeral_store
from edgechat.tui.app import ChatApp
from tests.tui.app_driver import (
    ask,
    make_scripted_app,
    option_list,
    option_texts,
    save_conversation,
    screen_text,
    shown_texts,
    wait_until_ready,
)  # fmt: skip
from tests.waiting import until_async

if TYPE_CHECKING:
    from textual.pilot import Pilot

    from edgechat.chat.store import Store


def make_store() -> Store:
    store = open_ephemeral_store()
    for title, n_turns in (("Boats", 1), ("料理 " * 40, 3), ("Trees", 2)):
        save_conversation(store, [(f"about {title} {n}", "yes") for n in range(n_turns)], title)
    return store


async def open_list(app: ChatApp, pilot: Pilot[int]) -> None:
    await wait_until_ready(app)
    await pilot.press("ctrl+b")
    await until_async(
        lambda: app.screen.query("#conversations") and option_list(app, "#conversations").option_count == 4
    )


@pytest.mark.parametrize("size", [(80, 24), (120, 36), (200, 60), (60, 20)])
async def test_rows_show_title_number_of_messages_and_date(size: tuple[int, int]) -> None:
    app = make_scripted_app(store=make_store())
    async with app.run_test(size=size) as pilot:
        await open_list(app, pilot)
        await pilot.pause()
        rows = option_texts(app, "#conversations")
        width = option_list(app, "#conversations").scrollable_content_region.width
        assert rows[0] == "Today"
        assert rows[1].startswith("  Trees (4) ")
        assert rows[2].startswith("  料理")
        assert rows[2].rstrip().endswith("…")  # a long title has the whole row
        assert cell_len(rows[2]) in {width - 1, width}
        assert [cell_len(row) for row in (rows[1], rows[3])] == [width] * 2
        assert all(":" in row.split()[-1] for row in (rows[1], rows[3]))


@pytest.mark.parametrize(("n_columns", "n_title_columns"), [(80, 27), (100, 32), (160, 48)])
async def test_titles_have_more_room_than_counts_and_dates(n_columns: int, n_title_columns: int) -> None:
    store = open_ephemeral_store()
    title = "Sorting photos by the date taken and place"[:n_title_columns].strip()
    save_conversation(store, [("about photos", "yes")], title)
    app = make_scripted_app(store=store)
    async with app.run_test(size=(n_columns, 30)) as pilot:
        await wait_until_ready(app)
        await pilot.press("ctrl+b")
        await until_async(lambda: title in screen_text(app))
        assert app.pane.size.width >= 40


@pytest.mark.parametrize("size", [(100, 24), (80, 24), (60, 20)])
async def test_keys_of_the_list_are_shown(size: tuple[int, int]) -> None:
    app = make_scripted_app(store=make_store(), keys={"list.pin": "f8"})
    async with app.run_test(size=size) as pilot:
        await open_list(app, pilot)
        await until_async(lambda: "Enter open" in screen_text(app))
        text = screen_text(app)
        assert "F8 pin" in text
        assert "Ctrl+X delete" in text
        if size[0] < 100:  # the list covers the input
            return
        app.pane.prompt.focus()
        await until_async(lambda: "Ctrl+X delete" not in screen_text(app))
        app.screen.query_one("#filter").focus()
        await until_async(lambda: "Ctrl+X delete" in screen_text(app))


async def test_filter_is_empty_after_a_choice_and_when_the_list_opens() -> None:
    app = make_scripted_app(store=make_store())
    async with app.run_test(size=(120, 30)) as pilot:
        await open_list(app, pilot)
        await pilot.press(*"nothing like it")
        await until_async(lambda: option_texts(app, "#conversations") == ["No title matches. Ctrl+F searches messages"])
        await pilot.press("enter", "escape", "ctrl+b", *"tr")
        await until_async(lambda: option_list(app, "#conversations").option_count == 2)
        assert app.screen.query_one("#filter", Input).value == "tr"
        await pilot.press("enter")
        await until_async(lambda: shown_texts(app, "user") == ["about Trees 0", "about Trees 1"])
        await until_async(lambda: option_list(app, "#conversations").option_count == 4)
        await pilot.press("ctrl+b", "ctrl+b", *"boat")
        await until_async(lambda: app.screen.query_one("#filter", Input).value == "boat")


@pytest.mark.parametrize("close_key", ["escape", "ctrl+b"])
@pytest.mark.parametrize("part", ["input", "conversation"])
async def test_closed_list_returns_the_focus(part: str, close_key: str) -> None:
    app = make_scripted_app(store=make_store())
    async with app.run_test(size=(100, 30)) as pilot:
        await open_list(app, pilot)  # the first time, the list is created
        await pilot.press("escape")
        await until_async(lambda: app.pane.prompt.has_focus)
        widget = app.pane.prompt if part == "input" else app.pane.transcript
        widget.focus()
        await pilot.press("ctrl+b")
        await until_async(lambda: app.screen.query_one("#filter").has_focus)
        await pilot.press(close_key)
        await until_async(lambda: widget.has_focus)
        await pilot.press("ctrl+b")
        await until_async(lambda: app.screen.query_one("#filter").has_focus)
        app.pane.transcript.focus()
        await pilot.press("ctrl+b")  # closes the list without its focus
        await until_async(lambda: not app.screen.query_one("Sidebar").display)
        await pilot.pause()
        assert app.pane.transcript.has_focus


async def test_keys_act_on_the_highlighted_conversation_from_the_filter() -> None:
    store = make_store()
    app = make_scripted_app(store=store)
    async with app.run_test(size=(80, 24)) as pilot:
        await open_list(app, pilot)
        await pilot.press(*"boat")
        await until_async(lambda: option_list(app, "#conversations").option_count == 2)
        await pilot.press("ctrl+s")
        await until_async(lambda: option_texts(app, "#conversations")[0] == "Pinned")
        await pilot.press("ctrl+x", "ctrl+x")
        await until_async(lambda: len(store.list_conversations()) == 2)
        assert all(summary.conversation.title != "Boats" for summary in store.list_conversations())


async def test_letters_go_to_the_filter_and_enter_opens_the_highlighted_conversation() -> None:
    app = make_scripted_app(store=make_store())
    async with app.run_test(size=(80, 24)) as pilot:
        await open_list(app, pilot)
        await pilot.press("down", *"tr")
        await until_async(lambda: option_list(app, "#conversations").option_count == 2)
        assert app.screen.query_one("#filter", Input).value == "tr"
        await pilot.press("enter")
        await until_async(lambda: shown_texts(app, "user") == ["about Trees 0", "about Trees 1"])


async def test_list_covers_a_part_of_the_conversation_on_a_narrow_screen_while_it_has_the_focus() -> None:
    store = open_ephemeral_store()
    save_conversation(store, [("Question", "word " * 200)], "Old talk")
    app = make_scripted_app("A reply.", store=store)
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until_ready(app)
        await ask(app, "Question")
        await pilot.press("ctrl+b")
        await until_async(lambda: app.chat.sidebar is not None and app.chat.sidebar.size.width > 50)
        assert app.pane.size.width == 80  # the conversation keeps its layout
        assert app.chat.sidebar is not None
        await pilot.resize_terminal(120, 24)
        await until_async(lambda: app.pane.size.width < 80)
        await pilot.resize_terminal(60, 24)
        await until_async(lambda: app.chat.sidebar is not None and app.chat.sidebar.outer_size.width == 60)
        await pilot.resize_terminal(80, 24)
        await until_async(lambda: app.chat.sidebar is not None and app.chat.sidebar.outer_size.width == 56)
        app.pane.prompt.focus()
        await until_async(lambda: app.chat.sidebar is not None and not app.chat.sidebar.display)
        await pilot.press("ctrl+b")
        await until_async(lambda: app.screen.focused is not None and app.screen.focused.id == "filter")
        assert app.chat.sidebar.display
