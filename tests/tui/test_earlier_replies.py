"""The offer of an earlier reply to the same first message, in the terminal UI."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgechat.bench.scripted_session import Script
from edgechat.chat.earlier_replies import EarlierReply
from edgechat.chat.session import Session
from edgechat.errors import StoreError
from edgechat.store import open_store
from edgechat.store.sqlite import SqliteStore
from edgechat.tui.app import ChatApp
from edgechat.tui.messages import EarlierReplyFound
from tests.tui.app_driver import (
    ask,
    footer_text,
    make_scripted_app,
    problem_text,
    save_conversation,
    saved_texts,
    screen_text,
    session,
    shown_texts,
    wait_for_jobs,
    wait_until_ready,
)
from tests.tui.drawing import until_async

QUESTION = "What is the capital of France?"
AT_MS = 1_762_171_200_000  # 3 November 2025, at noon
OFFER = "Asked on 3 November 2025: F6 shows the earlier reply"

pytestmark = pytest.mark.usefixtures("independent_of_load")


@pytest.fixture
def store(home: Path) -> Iterator[SqliteStore]:
    store = open_store()
    save_conversation(store, [(QUESTION, "It is Paris.")], at_ms=AT_MS)
    yield store
    store.close()


def is_offered(app: ChatApp) -> bool:
    offer = app.pane.earlier_offer
    return offer is not None and offer.display


def send(app: ChatApp, text: str = "Tell me the capital of France") -> None:
    app.pane.prompt.load(text)
    app.pane.prompt.action_send()


def make_paused_script(*replies: str) -> Script:
    script = Script(replies)
    script.may_continue.clear()
    return script


async def test_offer_appears_during_the_reply_and_its_key_inserts_the_earlier_one(store: SqliteStore) -> None:
    script = make_paused_script("A new reply that is long.", "Another.")
    app = make_scripted_app(store=store, script=script)
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until_ready(app)
        send(app)
        # The search does not wait for the model. F6 before the first word would leave the first reply to /retry.
        await until_async(lambda: is_offered(app) and script.n_started == 1)
        assert OFFER in screen_text(app)
        await pilot.press("f6")
        script.may_continue.set()
        await until_async(lambda: shown_texts(app, "assistant") == ["It is Paris."])
        await wait_for_jobs(app)
        assert not is_offered(app)
        assert "Earlier reply of 3 November 2025" in screen_text(app)
        assert saved_texts(app)[-1] == "It is Paris."
        app.actions.run("retry")
        await until_async(lambda: shown_texts(app, "assistant") == ["Another."] and not app.pane.is_busy)


async def test_another_key_removes_the_offer_and_the_command_still_works(store: SqliteStore) -> None:
    app = make_scripted_app("New.", store=store)
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until_ready(app)
        await ask(app, QUESTION)
        await until_async(lambda: is_offered(app))
        await pilot.press("x")
        assert not is_offered(app)
        assert app.pane.prompt.text == "x"  # the key types as usual
        app.pane.prompt.load("")
        send(app, "/earlier")
        await until_async(lambda: shown_texts(app, "assistant") == ["It is Paris."])


async def test_nothing_is_offered_for_other_messages_and_by_setting(store: SqliteStore) -> None:
    app = make_scripted_app("New.", store=store)
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        await ask(app, "What is the capital of Italy?")
        await ask(app, QUESTION)  # not a first message
        await wait_for_jobs(app)
        assert not is_offered(app)
        await pilot.press("f6")
        await until_async(lambda: "No earlier conversation" in footer_text(app))
    app = make_scripted_app("New.", store=store, offer_earlier=False)
    async with app.run_test():
        await wait_until_ready(app)
        await ask(app, QUESTION)
        await wait_for_jobs(app)
        assert not is_offered(app)


async def test_offer_is_removed_with_its_conversation(store: SqliteStore) -> None:
    app = make_scripted_app("New.", store=store)
    async with app.run_test():
        await wait_until_ready(app)
        await ask(app, QUESTION)
        await until_async(lambda: is_offered(app))
        app.actions.run("new")
        await until_async(lambda: len(session(app).tree) == 0 and not is_offered(app))


async def test_retry_and_edit_of_the_first_message_offer_nothing(store: SqliteStore) -> None:
    app = make_scripted_app("New.", store=store)
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        await ask(app, QUESTION)
        await until_async(lambda: is_offered(app))
        await pilot.press("escape")
        for command in ("retry", f"edit {QUESTION}"):
            n_before = len(session(app).tree)
            name, _, argument = command.partition(" ")
            app.actions.run(name, argument)
            await until_async(lambda n=n_before: len(session(app).tree) > n and not app.pane.is_busy)  # type: ignore[misc]
            await wait_for_jobs(app)
            assert not is_offered(app)


@pytest.mark.parametrize("width", [40, 24])
async def test_offer_fits_in_a_narrow_window(store: SqliteStore, width: int) -> None:
    app = make_scripted_app("New.", store=store)
    async with app.run_test(size=(width, 20)):
        await wait_until_ready(app)
        await ask(app, QUESTION)
        await until_async(lambda: is_offered(app))
        await wait_for_jobs(app)
        assert "Asked on 3 Nov" in screen_text(app)


async def test_click_on_the_offer_uses_the_earlier_reply(store: SqliteStore) -> None:
    app = make_scripted_app("New.", store=store)
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until_ready(app)
        await ask(app, QUESTION)
        await until_async(lambda: is_offered(app))
        await wait_for_jobs(app)
        await pilot.click("#earlier-offer", offset=(30, 0))
        await until_async(lambda: shown_texts(app, "assistant") == ["It is Paris."])


async def test_slow_search_delays_neither_typing_nor_the_reply(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_find = threading.Event()
    find = Session.find_earlier_reply

    def find_slowly(self: Session) -> EarlierReply | None:
        may_find.wait(60)
        return find(self)

    monkeypatch.setattr(Session, "find_earlier_reply", find_slowly)
    app = make_scripted_app("New.", store=store)
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until_ready(app)
        await ask(app, QUESTION)
        await pilot.press("h", "i")
        assert app.pane.prompt.text == "hi"
        assert not is_offered(app)
        may_find.set()
        await until_async(lambda: is_offered(app))
        assert app.pane.prompt.text == "hi"


async def test_offer_that_is_found_too_late_is_not_shown_in_another_conversation(store: SqliteStore) -> None:
    app = make_scripted_app("New.", store=store)
    async with app.run_test(size=(80, 24)):
        await wait_until_ready(app)
        await ask(app, "What is the capital of Italy?")
        app.pane.post_message(EarlierReplyFound("another", "Asked on 3 November"))
        await wait_for_jobs(app)
        assert not is_offered(app)
        app.pane.post_message(EarlierReplyFound(session(app).conversation.id, "Asked on 3 November"))
        await until_async(lambda: is_offered(app))
        await ask(app, "And of Spain?")
        app.pane.post_message(EarlierReplyFound(session(app).conversation.id, "Asked on 3 November"))
        await wait_for_jobs(app)
        assert not is_offered(app)


async def test_failed_search_and_full_disk_leave_the_chat_usable(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_scripted_app("New.", store=store)
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until_ready(app)
        await ask(app, QUESTION)
        await until_async(lambda: is_offered(app))

        def fail(self: Session) -> EarlierReply:
            raise StoreError("The disk is full. Free some space.")

        monkeypatch.setattr(Session, "insert_earlier_reply", fail)
        await pilot.press("f6")
        await until_async(lambda: "The disk is full" in problem_text(app))
        assert shown_texts(app, "assistant") == ["New."]
        monkeypatch.setattr(Session, "find_earlier_reply", fail)
        app.actions.run("new")
        await until_async(lambda: len(session(app).tree) == 0)
        await ask(app, QUESTION)
        await wait_for_jobs(app)
        assert shown_texts(app, "assistant") == ["New."]
        assert shown_texts(app, "error") == []
