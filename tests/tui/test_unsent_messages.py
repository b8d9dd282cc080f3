"""Messages that were not sent are never lost: unsent text, queued messages, failed edits."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgechat import paths
from edgechat.bench.scripted_session import Script
from edgechat.chat import unsent_messages
from edgechat.chat.commands import Destination
from edgechat.cli.history_store import open_history
from edgechat.store import open_store
from tests.tui.app_driver import (  # fmt: skip
    ask,
    make_app,
    make_scripted_app,
    problem_text,
    save_conversation,
    session,
    shown_texts,
    wait_until_ready,
)
from tests.waiting import until_async


async def test_unsent_text_survives_a_crash() -> None:
    store = open_store()
    saved = save_conversation(store, [("a", "b")])
    for conversation in (None, saved):
        conversation_id = saved.id if conversation else ""
        app = make_scripted_app(store=store, conversation=conversation)
        async with app.run_test() as pilot:
            await wait_until_ready(app)
            await pilot.press(*"half a thou")
            await until_async(lambda: unsent_messages.load(conversation_id) == "half a thou")  # noqa: B023
        # Without a regular end, as after a crash.
        again = make_scripted_app(store=store, conversation=conversation)
        async with again.run_test() as pilot:
            await until_async(lambda: again.pane.prompt.text == "half a thou")  # noqa: B023
            await wait_until_ready(again)
            await pilot.press("enter")
            await until_async(lambda: not unsent_messages.load(conversation_id))  # noqa: B023
            await wait_until_ready(again)
    store.close()


async def test_unsent_text_of_an_ephemeral_session_is_not_saved() -> None:
    app = make_scripted_app()
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        await pilot.press(*"secret")
        await pilot.pause(0.6)
        assert not paths.unsent_messages_dir().exists()


async def test_message_returns_to_the_prompt_without_a_model(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_text("no model")
    app = make_app(broken)
    async with app.run_test() as pilot:
        await until_async(lambda: shown_texts(app, "error") and not app.pane.is_busy)
        app.pane.prompt.load("Important text")
        await pilot.press("enter")
        await until_async(lambda: not app.pane.is_busy and app.pane.prompt.text == "Important text")
        assert len(shown_texts(app, "error")) == 1


async def test_queued_message_returns_to_the_prompt_when_the_first_load_fails(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_text("no model")
    app = make_app(broken)
    async with app.run_test() as pilot:
        app.pane.prompt.load("Important text")
        await pilot.press("enter")
        await until_async(lambda: shown_texts(app, "error") and not app.pane.is_busy)
        await pilot.press("escape")
        assert app.pane.prompt.text == "Important text"


async def test_quit_saves_typed_and_queued_messages() -> None:
    store = open_store()
    script = Script(["Word after word."], token_interval_s=0.01)
    script.may_continue.clear()
    app = make_scripted_app(store=store, script=script)
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        app.pane.prompt.load("First")
        await pilot.press("enter")
        await until_async(lambda: shown_texts(app, "assistant") == ["Word"])
        app.pane.prompt.load("Waits")
        await pilot.press("enter", *"typed", "ctrl+q")
        await until_async(lambda: app.return_code == 0)
    saved = open_store().list_conversations()[0].conversation
    assert unsent_messages.load(saved.id) == "Waits\n\ntyped"
    assert unsent_messages.load("") == ""


async def test_unsent_text_stays_with_its_conversation() -> None:
    store = open_history()
    one, two = save_conversation(store, [("a", "b")], "One"), save_conversation(store, [("c", "d")], "Two")
    app = make_scripted_app(store=store, conversation=one)
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        await pilot.press(*"about one")
        app.actions.go_to(Destination(two.id))
        await until_async(lambda: shown_texts(app, "user") == ["c"])
        assert app.pane.prompt.text == ""
        app.actions.go_to(Destination(one.id))
        await until_async(lambda: app.pane.prompt.text == "about one")
        app.actions.edit_message(app.pane.last_message)
        await pilot.press("escape")
        assert app.pane.prompt.text == "about one"
        store.delete_conversation(two.id)
        assert not (paths.unsent_messages_dir() / f"{two.id}.txt").exists()


async def test_edit_that_exceeds_the_context_is_still_an_edit(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    app = make_scripted_app()
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        await ask(app, "Question")
        app.actions.edit_message(app.pane.last_message)
        editing = app.pane.composer.edited_id
        app.pane.prompt.load("word " * 40_000)
        await pilot.press("enter")
        await until_async(lambda: shown_texts(app, "error"))
        assert app.pane.composer.edited_id == editing
        app.actions.run("attach", "~nosuchuser/x")
        error = problem_text(app)
        assert "is not a valid file name" in error or "Cannot read" in error


@pytest.mark.parametrize("end", ["enter", "escape"])
async def test_draft_before_a_recalled_prompt_returns_after_an_edit(end: str) -> None:
    app = make_scripted_app()
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        await ask(app, "Question")
        await pilot.press(*"my unsent draft", "up")
        await until_async(lambda: app.pane.prompt.text == "Question")
        assert app.pane.composer._input_text == "my unsent draft"
        await pilot.press("escape", "up", "e", *" again", end)
        await until_async(lambda: app.pane.composer.edited_id is None)
        await until_async(lambda: app.pane.prompt.text == "my unsent draft")
        await wait_until_ready(app)
        await pilot.press("down")
        assert app.pane.prompt.text == "my unsent draft"


async def test_changed_text_of_a_recalled_prompt_is_part_of_the_draft() -> None:
    app = make_scripted_app()
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        await ask(app, "Question")
        await pilot.press(*"draft", "up")
        await until_async(lambda: app.pane.prompt.text == "Question")
        await pilot.press(*"A ")
        assert app.pane.prompt.take_draft() == "draft\n\nA Question"


@pytest.mark.parametrize(
    "line",
    ["/temperature hot", "/export bad.xyz", "/set", "/set top_k many", "/rename", "/theme nothing", "/copy 99", "/undo",
     "/open nothing", "/model nothing", "/persona nobody", "/new nobody", "/detach", "/reasoning maybe",
     "/switch", "/attach nothing.txt"],
)  # fmt: skip
async def test_failed_command_stays_in_the_input_and_its_error_is_shown_once(line: str) -> None:
    app = make_scripted_app()
    async with app.run_test():
        await wait_until_ready(app)
        await ask(app, "Question")
        app.notify("An old notice")
        for _ in range(2):
            app.pane.prompt.load(line)
            app.pane.prompt.action_send()
            await until_async(lambda: problem_text(app) and app.pane.prompt.text == line)
            await wait_until_ready(app)
        assert len(shown_texts(app, "error")) == (0 if app.pane.footer.notice else 1)
        assert app.pane.footer.notice != "An old notice"


async def test_retry_without_a_message_stays_in_the_input() -> None:
    app = make_scripted_app()
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        await pilot.press(*"/retry", "space", "enter")
        await until_async(lambda: problem_text(app) and not app.pane.is_busy)
        await until_async(lambda: app.pane.prompt.text == "/retry")


async def test_message_with_a_missing_file_is_sent_on_the_second_enter() -> None:
    app = make_scripted_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await wait_until_ready(app)
        question = "No file /nosuch/nofile.txt; press Enter again to send it as text"
        app.pane.prompt.load("hello @/nosuch/nofile.txt")
        await pilot.press("enter")
        await until_async(lambda: app.pane.footer.notice == question)
        assert len(session(app).tree) == 0
        await pilot.press("!", "enter")  # another text is another question
        await until_async(lambda: "nofile.txt!; press Enter" in app.pane.footer.notice)
        assert app.pane.prompt.text == "hello @/nosuch/nofile.txt!"
        await pilot.press("enter")
        await until_async(lambda: len(session(app).tree) == 2 and not app.pane.is_busy)
        assert app.pane.prompt.text == ""
        await ask(app, "hello @everyone and a@b.de")
