"""Opening, filtering, searching, renaming, pinning, exporting and deleting conversations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from textual.widgets import Input, Static

from edgechat.chat.messages import Message, new_id
from edgechat.store import open_ephemeral_store
from edgechat.tui.widgets.sidebar import Sidebar
from tests.tui.app_driver import (  # fmt: skip
    ask,
    footer_text,
    is_open,
    make_scripted_app,
    option_list,
    option_texts,
    problem_text,
    save_conversation,
    saved_texts,
    screen_text,
    session,
    shown_messages,
    shown_texts,
    status_text,
    wait_until_ready,
)
from tests.waiting import until_async

if TYPE_CHECKING:
    import pytest


async def test_reopened_conversation_shows_and_continues_its_messages(starter: Path) -> None:
    store = open_ephemeral_store()
    conversation = save_conversation(store, [(f"question {i}", f"answer \x1b[31m{i}") for i in range(30)])
    app = make_scripted_app(store=store, conversation=conversation)
    async with app.run_test():
        await wait_until_ready(app)
        assert shown_texts(app, "user") == [f"question {i}" for i in range(30)]
        assert "answer ␛[31m29" in screen_text(app)
        await until_async(lambda: " 0/" not in status_text(app))
        await ask(app, "More")
        assert saved_texts(app)[-2:] == ["More", "An answer."]


async def test_sidebar_filters_and_opens_conversations() -> None:
    store = open_ephemeral_store()
    for title in ("Boats", "Trees", "More boats"):
        save_conversation(store, [(f"about {title}", "yes")], title)
    app = make_scripted_app(store=store)
    async with app.run_test(size=(120, 30)) as pilot:
        await wait_until_ready(app)
        await pilot.press("ctrl+b")
        await until_async(
            lambda: app.screen.query("#conversations") and option_list(app, "#conversations").option_count == 4
        )
        await pilot.press(*"boats")
        await until_async(lambda: option_list(app, "#conversations").option_count == 3)
        rows = option_texts(app, "#conversations")[1:]
        assert [row.partition("(")[0].strip() for row in rows] == ["More boats", "Boats"]
        await pilot.press("enter")
        await until_async(lambda: shown_texts(app, "user") == ["about More boats"])
        assert app.pane.prompt.has_focus
        await pilot.press("ctrl+n")
        await until_async(lambda: shown_messages(app) == [])
        await ask(app, "Something new")
        await until_async(
            lambda: (
                any("Something new" in line for line in option_texts(app, "#conversations"))
                or app.chat.query_one("#filter", Input).value
            )
        )
        assert len(store.list_conversations()) == 4


async def test_sidebar_pins_and_deletes_conversations() -> None:
    store = open_ephemeral_store()
    for title in ("Boats", "Trees"):
        save_conversation(store, [(f"about {title}", "yes")], title)
    app = make_scripted_app(store=store)
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        await pilot.press("ctrl+b", "down")
        await until_async(lambda: option_list(app, "#conversations").option_count == 3)
        option_list(app, "#conversations").highlighted = 2
        await pilot.press("ctrl+s")
        await until_async(lambda: option_texts(app, "#conversations")[0] == "Pinned")
        assert store.list_conversations()[0].conversation.title == "Boats"
        option_list(app, "#conversations").highlighted = 1
        await pilot.press("ctrl+x")
        assert len(store.list_conversations()) == 2  # not confirmed yet
        await pilot.press("ctrl+x")
        await until_async(lambda: len(store.list_conversations()) == 1)
        await pilot.press("escape")
        assert not app.chat.query_one(Sidebar).display


async def test_search_opens_a_message_on_another_branch() -> None:
    store = open_ephemeral_store()
    conversation = save_conversation(store, [("common", "a zebra"), ("more", "end")], "Animals")
    first = store.messages(conversation.id)[0]
    other = Message(id=new_id(), parent_id=first.id, role="assistant", text="a giraffe", finish_reason="stop")
    store.append(conversation, [other])
    app = make_scripted_app(store=store)
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        await pilot.press("ctrl+f", *"zebra")
        await until_async(lambda: is_open(app, "SearchScreen") and option_list(app).option_count == 2)
        await until_async(lambda: "a zebra" in str(app.screen.query_one("#preview", Static).content))
        await pilot.press("enter")
        await until_async(lambda: shown_texts(app, "assistant") == ["a zebra", "end"])
        assert app.pane.transcript.current_message is shown_messages(app)[1]
        app.actions.run("search", "nowhere to be found")
        await until_async(
            lambda: (
                app.screen.query("#preview") and "No matches" in str(app.screen.query_one("#preview", Static).content)
            )
        )
        await pilot.press("escape")


async def test_conversation_is_renamed_pinned_and_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    app = make_scripted_app("**bold**")
    async with app.run_test():
        await wait_until_ready(app)
        app.actions.run("export", "")
        await until_async(lambda: "no messages yet" in problem_text(app))
        await ask(app, "Question")
        for command in ("/rename A new name", "/pin"):
            app.pane.prompt.load(command)
            app.pane.prompt.action_send()
        await until_async(lambda: "Pinned" in footer_text(app))
        for command in ("/export", "/export out.json", "/export out.html", "/export out.pdf"):
            app.pane.prompt.load(command)
            app.pane.prompt.action_send()
        await until_async(lambda: "out.pdf" in problem_text(app))
        conversation = session(app).store.conversation(session(app).conversation.id)
        assert (conversation.title, conversation.pinned) == ("A new name", True)
        assert "**bold**" in (tmp_path / "A-new-name.md").read_text()
        assert json.loads((tmp_path / "out.json").read_text())
        assert "<strong>bold</strong>" in (tmp_path / "out.html").read_text()


async def test_control_characters_of_saved_texts_are_escaped() -> None:
    store = open_ephemeral_store()
    conversation = save_conversation(store, [("\x1b]52;c;eA==\x07 evil", "x")], "evil \x1b[2J title")
    app = make_scripted_app(store=store, conversation=conversation)
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        await pilot.press("up")
        await until_async(lambda: "evil" in app.pane.prompt.text)
        assert "\x1b" not in app.pane.prompt.text
        app.notify("evil \x1b[2J [bold]title")
        await until_async(lambda: "evil" in footer_text(app))
        assert footer_text(app) == "evil ␛[2J [bold]title"
