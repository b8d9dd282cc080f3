"""Text typed at once after a key, in one packet, goes where a slow typist would have put it."""

from __future__ import annotations

import pytest
from textual import events
from textual.widgets import Input

from edgechat.tui.app import ChatApp
from tests.tui.app_driver import (
    ask,
    is_open,
    make_scripted_app,
    option_texts,
    session,
    wait_for_completions,
    wait_until_ready,
)
from tests.waiting import until_async

_NAMES = {" ": "space", "/": "slash"}


def type_at_once(app: ChatApp, *keys: str) -> None:
    """Send keys as the driver does when they arrive in one packet; texts of several characters are key names."""
    for key in keys:
        app.post_message(events.Key(_NAMES.get(key, key), key if len(key) == 1 else None))


@pytest.mark.parametrize("focus", ["prompt", "transcript"])
@pytest.mark.parametrize("is_pasted", [False, True], ids=["typed", "pasted"])
async def test_command_typed_at_once_arrives_complete(focus: str, *, is_pasted: bool) -> None:
    app = make_scripted_app("A reply.")
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until_ready(app)
        await ask(app, "Question")
        app.screen.query_one(f"#{focus}").focus()
        await pilot.pause()
        n_messages = len(session(app).tree)
        if is_pasted:
            app.post_message(events.Paste("/rename x"))
        else:
            type_at_once(app, *"/rename x")
        await until_async(lambda: app.pane.prompt.text == "/rename x")
        assert app.pane.prompt.has_focus
        type_at_once(app, "enter")
        await until_async(lambda: session(app).conversation.title == "x")
        assert len(session(app).tree) == n_messages


@pytest.mark.parametrize("focus", ["prompt", "transcript"])
async def test_slash_opens_the_completions(focus: str) -> None:
    app = make_scripted_app("A reply.")
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until_ready(app)
        await ask(app, "Question")
        app.screen.query_one(f"#{focus}").focus()
        await pilot.press("/", *"per")
        await wait_for_completions(app)
        assert option_texts(app, "CompletionPopup")[0].startswith("/persona")


@pytest.mark.parametrize("focus", ["prompt", "transcript"])
@pytest.mark.parametrize(
    ("key", "screen", "selector"),
    [
        ("ctrl+f", "SearchScreen", "Input"),
        ("ctrl+o", "ModelsScreen", "Input"),
        ("ctrl+b", "ChatScreen", "#filter"),
        ("ctrl+p", "CommandPaletteScreen", "Input"),
    ],
)
async def test_words_after_a_key_go_to_the_list_that_opens(focus: str, key: str, screen: str, selector: str) -> None:
    app = make_scripted_app("A reply.")
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until_ready(app)
        await ask(app, "Question")
        app.screen.query_one(f"#{focus}").focus()
        await pilot.pause()
        n_messages = len(session(app).tree)
        type_at_once(app, key, *"renew")
        await until_async(lambda: is_open(app, screen) and app.screen.query(selector))
        await until_async(lambda: app.screen.query_one(selector, Input).value == "renew")
        assert app.pane.prompt.text == ""
        assert len(session(app).tree) == n_messages


async def test_keys_return_to_the_input_if_nothing_opens() -> None:
    app = make_scripted_app("A reply.")
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until_ready(app)
        type_at_once(app, "ctrl+r", *"words")  # there are no earlier messages to search
        await until_async(lambda: app.pane.prompt.text == "words")
        await pilot.pause()
        assert is_open(app, "ChatScreen")


async def test_keys_of_a_filter_act_in_the_order_in_which_they_were_typed() -> None:
    app = make_scripted_app("A reply.")
    async with app.run_test(size=(80, 24)):
        await wait_until_ready(app)
        type_at_once(app, "ctrl+p", *"wrong", "ctrl+u", *"themex", "backspace")
        await until_async(lambda: is_open(app, "CommandPaletteScreen"))
        await until_async(lambda: app.screen.query_one(Input).value == "theme")
        type_at_once(app, "ctrl+u", *"theme textual", "down", "enter")
        await until_async(lambda: app.theme == "textual-light")
