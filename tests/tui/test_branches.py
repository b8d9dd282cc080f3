"""Editing, retrying, continuing and deleting messages, and switching between alternatives."""

from __future__ import annotations

import pytest

from edgechat.bench.scripted_session import Script
from edgechat.chat.commands import Destination
from edgechat.store import open_ephemeral_store
from edgechat.tui import messages
from tests.tui.app_driver import (  # fmt: skip
    ask,
    footer_text,
    make_scripted_app,
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


async def test_edited_message_becomes_an_alternative() -> None:
    app = make_scripted_app("First.", "Second.", "Third.")
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        await ask(app, "Question")
        await pilot.press("escape")
        await pilot.press("e")
        assert app.pane.prompt.text == "Question"
        assert "editing" in status_text(app)
        await pilot.press(*" again", "enter")
        await until_async(lambda: not app.pane.is_busy and len(session(app).tree) == 4)
        assert saved_texts(app) == ["Question again", "Second."]
        assert [e.alternative for e in shown_messages(app)] == [(2, 2), (1, 1)]
        assert "‹2/2›" in screen_text(app)  # noqa: RUF001
        await pilot.press("alt+left")
        await until_async(lambda: shown_texts(app, "user") == ["Question"])
        assert saved_texts(app) == ["Question", "First."]
        app.actions.run("switch", "2")
        await until_async(lambda: shown_texts(app, "user") == ["Question again"])


async def test_escape_cancels_an_edit() -> None:
    app = make_scripted_app()
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        await ask(app, "Question")
        app.actions.run("edit", "")
        assert app.pane.composer.edited_id is not None
        await pilot.press("escape")
        assert app.pane.composer.edited_id is None
        assert app.pane.prompt.text == ""


async def test_retry_adds_an_alternative_and_branch_continues_from_a_reply() -> None:
    app = make_scripted_app("One.", "Two.", "Three.")
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        await ask(app, "Question")
        await pilot.press("escape", "r", "r")
        await until_async(lambda: not app.pane.is_busy and len(session(app).tree) == 3)
        assert saved_texts(app) == ["Question", "Two."]
        await pilot.press("left")
        await until_async(lambda: shown_texts(app, "assistant") == ["One."])
        await ask(app, "More")
        assert saved_texts(app) == ["Question", "One.", "More", "Three."]
        await pilot.press("home", "down")
        assert app.pane.transcript.current_message is shown_messages(app)[1]
        await pilot.press("b")
        await until_async(lambda: len(shown_messages(app)) == 2)
        await ask(app, "Instead")
        assert [e.alternative for e in shown_messages(app)][2] == (2, 2)
        assert saved_texts(app)[2] == "Instead"


async def test_stopped_reply_is_saved_and_can_be_continued() -> None:
    script = Script(["Word after word after word.", " And more."], token_interval_s=0.01)
    script.may_continue.clear()
    app = make_scripted_app(script=script)
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        app.pane.prompt.load("Go")
        await pilot.press("enter")
        await until_async(lambda: shown_texts(app, "assistant") == ["Word"])
        await pilot.press("escape")
        script.may_continue.set()
        await until_async(lambda: not app.pane.is_busy)
        partial = saved_texts(app)[1]
        assert partial.startswith("Word")
        assert "(Stopped; /continue resumes the reply)" in screen_text(app)
        app.actions.run("continue", "")
        await until_async(lambda: not app.pane.is_busy and saved_texts(app)[1].endswith("more."))
        assert saved_texts(app)[1] == f"{partial} And more."
        assert shown_texts(app, "assistant") == [saved_texts(app)[1]]


async def test_deleted_messages_return_with_undo() -> None:
    app = make_scripted_app()
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        await ask(app, "One")
        await ask(app, "Two")
        await pilot.press("escape", "up", "d")
        assert len(session(app).tree) == 4  # not confirmed yet
        await pilot.press("d")
        await until_async(lambda: len(shown_messages(app)) == 2)
        assert saved_texts(app) == ["One", "An answer."]
        await pilot.press("u")
        await until_async(lambda: len(shown_messages(app)) == 4)
        app.pane.prompt.load("/delete")
        app.pane.prompt.action_send()
        await until_async(lambda: len(shown_messages(app)) == 2)


async def test_failed_command_does_not_stop_the_reply() -> None:
    script = Script(["A very long answer indeed."], token_interval_s=0.01)
    script.may_continue.clear()
    app = make_scripted_app(script=script)
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        app.pane.prompt.load("Go")
        await pilot.press("enter")
        await until_async(lambda: shown_texts(app, "assistant") == ["A ve"])
        app.actions.run("export", "bad.xyz")
        await until_async(lambda: problem_text(app))
        app.pane.prompt.load("Next")
        await pilot.press("enter")
        script.may_continue.set()
        await until_async(lambda: len(shown_texts(app, "user")) == 2)
        assert app.pane.is_busy or len(session(app).tree) == 4
        await wait_until_ready(app)
        await until_async(lambda: len(saved_texts(app)) == 4)


async def test_mark_of_hidden_rows_appears_only_if_rows_are_hidden() -> None:
    store = open_ephemeral_store()
    conversation = save_conversation(store, [("common", "a zebra"), ("more", "end")], "Animals")
    app = make_scripted_app("One.", "Two.", store=store, conversation=conversation)
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until_ready(app)
        first = store.messages(conversation.id)[0]
        app.actions.go_to(Destination(conversation.id, first.id))
        await until_async(lambda: app.pane.transcript.cursor == 0 and "copy" in footer_text(app))
        app.pane.status_line.redraw()
        assert "More below" not in status_text(app)
        await pilot.press("end", "r", "r")
        await until_async(lambda: not app.pane.is_busy and len(session(app).tree) == 5)
        await pilot.press("left")
        await until_async(lambda: shown_texts(app, "assistant")[-1] == "end")
        await until_async(lambda: "copy" in footer_text(app))
        await pilot.press("enter")
        await until_async(lambda: app.pane.prompt.has_focus)
        app.pane.status_line.redraw()
        assert "More below" not in status_text(app)


async def test_mark_of_hidden_rows_disappears_when_the_rows_are_deleted() -> None:
    store = open_ephemeral_store()
    conversation = save_conversation(store, [("first", "short"), ("second", "line\n\n" * 60)], "Long")
    app = make_scripted_app(store=store, conversation=conversation)
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until_ready(app)
        app.actions.go_to(Destination(conversation.id, store.messages(conversation.id)[0].id))
        await until_async(lambda: app.pane.transcript.cursor == 0 and not app.pane.transcript.follows_end)
        await pilot.press("enter")
        await until_async(lambda: "More below" in status_text(app))
        app.actions.run("delete")
        await until_async(lambda: len(shown_messages(app)) == 2 and "More below" not in status_text(app))


async def test_questions_name_the_action_and_stay_until_the_next_key() -> None:
    app = make_scripted_app("One.", "Two.", "Three.", "Four.", keys={"message.retry": "f8,r"})
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until_ready(app)
        await ask(app, "First")
        await ask(app, "Question")
        await pilot.press("escape", "r")
        assert app.pane.footer.notice == "Press F8 again to generate another reply; this one is kept"
        assert app.pane.footer.severity == "warning"
        assert app.pane.footer._timer is None
        await pilot.press("n")
        assert app.pane.footer.notice == "Press n again to continue this reply"
        await pilot.press("d")
        assert app.pane.footer.notice == "Press d again to delete this reply, or D to delete your message, too"
        await pilot.press("up", "d")
        assert app.pane.footer.notice == "Press d again to delete this message and all messages below it"
        await pilot.press("f9", "d")  # another key in between
        assert app.pane.footer.notice.startswith("Press d again")
        assert len(session(app).tree) == 4


async def test_message_stays_selected_after_retry_delete_and_undo() -> None:
    app = make_scripted_app("One.", "Two.", "Three.")
    async with app.run_test(size=(100, 30)) as pilot:
        await wait_until_ready(app)
        await ask(app, "First")
        await ask(app, "Question")
        transcript = app.pane.transcript
        await pilot.press("escape", "r", "r")
        await until_async(lambda: not app.pane.is_busy and len(session(app).tree) == 5)
        assert transcript.cursor == 3
        assert transcript.current_message is not None
        assert transcript.current_message.text == "Three."
        await pilot.press("up", "d", "d")
        await until_async(lambda: len(shown_messages(app)) == 2)
        assert transcript.cursor == 1
        await pilot.press("u")
        await until_async(lambda: len(shown_messages(app)) == 4)
        assert transcript.current_message.text == "Question"
        assert transcript.has_focus


async def test_keys_for_other_replies_are_shown() -> None:
    app = make_scripted_app("One.", "Two.", "Three.", keys={"message.next": "f9,right", "chat.next": "alt+x,alt+right"})
    async with app.run_test(size=(100, 30)) as pilot:
        await wait_until_ready(app)
        await ask(app, "Question")
        app.actions.run("retry")
        await until_async(lambda: app.pane.footer.notice == "Reply 2 of 2; Alt+Left/X other reply")
        await wait_until_ready(app)
        app.notify("")
        await pilot.press("escape")
        await until_async(lambda: footer_text(app).startswith("Left/F9 other reply  y copy"))
        await pilot.press("up")
        await until_async(lambda: footer_text(app).startswith("y copy"))
        await pilot.press("down")
        app.pane.footer.shows_keys = False
        app.pane.footer.redraw()
        app.pane.status_line.redraw()
        await until_async(lambda: status_text(app).startswith("Left/F9 other reply  y copy"))


async def test_best_reply_is_shown_with_its_vote_and_its_cost() -> None:
    replies = ["Hm.", "The answer is 8.", "So it is. The answer is 7.", "The answer is 7."]
    app = make_scripted_app(*replies, temperature=0.7)
    async with app.run_test(size=(100, 30)) as pilot:
        await wait_until_ready(app)
        await ask(app, "What is 3 + 4?")
        app.pane.prompt.load("/best 3")
        await pilot.press("enter")
        await until_async(lambda: any("replies, " in text for text in shown_texts(app, "note")))
        await wait_until_ready(app)
        assert shown_messages(app)[-1].text == "So it is. The answer is 7."
        assert shown_texts(app, "note")[-1].startswith("2 of 3 agree (3 replies, ")
        assert "3/4> 2 of 3 agree" in screen_text(app) or "3/4\u203a 2 of 3 agree" in screen_text(app)
        assert len(saved_texts(app)) == 2


async def test_status_line_shows_how_many_replies_are_finished_beside_the_first_one() -> None:
    script = Script(["Hm.", "The answer is 7."])
    app = make_scripted_app(script=script, temperature=0.7)
    async with app.run_test(size=(120, 30)) as pilot:
        await wait_until_ready(app)
        await ask(app, "What is 3 + 4?")
        script.may_continue.clear()
        app.pane.prompt.load("/best 3")
        await pilot.press("enter")
        await until_async(lambda: "Reading" in screen_text(app))
        for thinking, expected in (("", "Generating, 1 of up to 3"), ("Reasoning 2 s", "Reasoning 2 s, 1 of up to 3")):

            def is_shown(thinking: str = thinking, expected: str = expected) -> bool:
                app.pane.post_message(messages.TextArrived("", "", 1, thinking, "1 of up to 3 replies finished"))
                return f"{expected} replies finished" in screen_text(app)

            await until_async(is_shown)
        script.may_continue.set()
        await until_async(lambda: not app.pane.is_busy)


@pytest.mark.parametrize("keys", [("D", "D"), ("d", "D"), ("delete", "D"), ("up", "D", "D"), ("up", "d", "d")])
async def test_message_and_reply_are_deleted_together(keys: tuple[str, ...]) -> None:
    app = make_scripted_app("One.", "Two.")
    async with app.run_test(size=(100, 30)) as pilot:
        await wait_until_ready(app)
        await ask(app, "First")
        await ask(app, "Second")
        await pilot.press("escape", *keys[:-1])
        assert len(saved_texts(app)) == 4
        assert app.pane.footer.notice.startswith("Press d again" if keys[-2] != "D" else "Press D again")
        await pilot.press(keys[-1])
        await until_async(lambda: shown_texts(app, "user") == ["First"])
        assert shown_texts(app, "assistant") == ["One."]
        await until_async(lambda: app.pane.footer.notice == "Message deleted. u or /undo restores it")
        await pilot.press("u")
        await until_async(lambda: shown_texts(app, "user") == ["First", "Second"])


async def test_question_names_the_key_that_deletes_both_messages() -> None:
    app = make_scripted_app("One.", keys={"message.delete_pair": "f9"})
    async with app.run_test(size=(100, 30)) as pilot:
        await wait_until_ready(app)
        await ask(app, "First")
        await pilot.press("escape", "d")
        assert app.pane.footer.notice == "Press d again to delete this reply, or F9 to delete your message, too"
        await pilot.press("f9")
        await until_async(lambda: shown_messages(app) == [])
