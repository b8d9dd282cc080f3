"""Replies of a second model: they grow beside the present reply, are compared, stopped, and continued."""

from __future__ import annotations

import pytest

from edgechat.bench.scripted_session import Script, ScriptedSession
from edgechat.tui.app import ChatApp
from edgechat.tui.render.code_layout import CodeLayout
from edgechat.tui.screens.compare import CompareScreen
from edgechat.tui.widgets.transcript import Transcript
from tests.tui.app_driver import (
    ask,
    footer_text,
    is_open,
    make_scripted_app,
    problem_text,
    saved_texts,
    screen_text,
    session,
    shown_messages,
    shown_texts,
    status_text,
    wait_until_ready,
)
from tests.tui.drawing import until_async

pytestmark = pytest.mark.usefixtures("independent_of_load")
ANSWER = "The first answer, in some words."
OTHER_ANSWER = "Another answer, in more words than the first."


def make_app(script: Script, second_script: Script) -> ChatApp:
    """Create an application whose second model follows `second_script`."""
    app = make_scripted_app(script=script)
    make_session = app.worker._make_session

    def make() -> ScriptedSession:
        created = make_session()
        assert isinstance(created, ScriptedSession)
        created.second_script = second_script
        return created

    app.worker._make_session = make
    return app


def held(text: str) -> Script:
    """Return a script whose replies wait after their first token."""
    script = Script([text])
    script.may_continue.clear()
    return script


def growing_texts(app: ChatApp) -> list[str]:
    return [reply.text for reply in session(app).second.growing_replies]


async def start_both_replies(app: ChatApp) -> None:
    """Send a message, and answer it with a second model while the first one replies."""
    await wait_until_ready(app)
    app.pane.submit("Hi")
    await until_async(lambda: app.pane.is_streaming)
    app.actions.run("also", "starter")


async def test_both_replies_grow_and_remain_as_alternatives() -> None:
    script, second = held(ANSWER), held(OTHER_ANSWER)
    app = make_app(script, second)
    async with app.run_test(size=(120, 36)) as pilot:
        await start_both_replies(app)
        await until_async(lambda: growing_texts(app) == [ANSWER[:4], OTHER_ANSWER[:4]])
        await until_async(lambda: "1/2" in screen_text(app) and "words" in status_text(app))
        app.actions.run("also", "starter")
        assert "replying already" in problem_text(app)
        app.actions.run("model", "starter")
        assert "replying, too" in problem_text(app), "another model would stop two replies"
        second.may_continue.set()
        await until_async(lambda: any("Reply 2 of 2" in note for note in shown_texts(app, "note")))
        assert app.pane.is_generating
        script.may_continue.set()
        await until_async(lambda: not app.pane.is_busy)
        assert [entry.text for entry in shown_messages(app)] == ["Hi", ANSWER]
        await pilot.press("alt+right")
        await until_async(lambda: [entry.text for entry in shown_messages(app)] == ["Hi", OTHER_ANSWER])
        assert "2/2" in screen_text(app)
        assert "starter" in screen_text(app)
        await ask(app, "More")
        assert saved_texts(app) == ["Hi", OTHER_ANSWER, "More", ANSWER]


async def test_reply_grows_in_the_transcript_after_switching_to_it() -> None:
    second = held(OTHER_ANSWER)
    app = make_app(Script([ANSWER]), second)
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        await ask(app, "Hi")
        app.actions.run("also", "starter")
        await until_async(lambda: growing_texts(app) == [OTHER_ANSWER[:4]])
        await until_async(lambda: "1/2" in screen_text(app))
        await pilot.press("alt+right")
        await until_async(lambda: shown_messages(app)[-1].text == OTHER_ANSWER[:4])
        app.pane.submit("Too early")
        await until_async(lambda: "still being generated" in problem_text(app))
        assert app.pane.prompt.text == "Too early"
        second.may_continue.set()
        await until_async(lambda: shown_messages(app)[-1].text == OTHER_ANSWER)
        await until_async(lambda: not app.pane.second_status and not shown_messages(app)[-1].is_streaming)


async def test_escape_stops_both_and_keeps_their_texts() -> None:
    script, second = held(ANSWER), held(OTHER_ANSWER)
    app = make_app(script, second)
    async with app.run_test() as pilot:
        await start_both_replies(app)
        await until_async(lambda: len(growing_texts(app)) == 2 and growing_texts(app)[1])
        await pilot.press("escape")
        script.may_continue.set()
        second.may_continue.set()
        await until_async(lambda: not app.pane.is_replying)
        texts = [m.text for m in session(app).tree._messages.values()]
        assert texts == ["Hi", ANSWER[:4], OTHER_ANSWER[:4]]
        assert "is stopped" in shown_texts(app, "note")[-1]


async def test_escape_stops_a_second_reply_alone() -> None:
    second = held(OTHER_ANSWER)
    app = make_app(Script([ANSWER]), second)
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        await ask(app, "Hi")
        app.actions.run("also", "starter")
        await until_async(lambda: growing_texts(app) == [OTHER_ANSWER[:4]])
        assert "stop" in footer_text(app)
        await pilot.press("escape")
        second.may_continue.set()
        await until_async(lambda: not app.pane.is_replying)
        await ask(app, "More")
        assert saved_texts(app) == ["Hi", ANSWER, "More", ANSWER]


async def test_key_opens_the_list_of_models_and_the_last_choice_is_repeated() -> None:
    app = make_app(Script([ANSWER]), Script([OTHER_ANSWER]))
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        await pilot.press("f8")
        assert "no message to reply to" in problem_text(app)
        await ask(app, "Hi")
        for n_replies in (2, 3):
            await pilot.press("f8")
            await until_async(lambda: is_open(app, "PickerScreen"))
            await pilot.press("enter")
            await until_async(lambda: len(session(app).tree) == 1 + n_replies and not app.pane.is_replying)  # noqa: B023
        assert session(app).second.last_name == "starter"


@pytest.mark.parametrize("size", [(120, 36), (200, 60), (80, 24)])
async def test_comparison_grows_and_the_chosen_reply_is_continued(size: tuple[int, int]) -> None:
    script, second = held(ANSWER), held(OTHER_ANSWER)
    app = make_app(script, second)
    async with app.run_test(size=size) as pilot:
        await start_both_replies(app)
        await until_async(lambda: len(growing_texts(app)) == 2 and growing_texts(app)[1])
        await pilot.press("f9")
        await until_async(lambda: is_open(app, "CompareScreen"))
        assert isinstance(app.screen, CompareScreen)
        await until_async(lambda: screen_text(app).count("(growing)") == 2)
        rows = [row for row in screen_text(app).splitlines() if "(growing)" in row]
        assert len(rows) == (1 if size[0] >= 120 else 2)
        script.may_continue.set()
        await until_async(lambda: ANSWER in screen_text(app) and screen_text(app).count("(growing)") == 1)
        second.may_continue.set()
        await until_async(lambda: OTHER_ANSWER in screen_text(app) and "(growing)" not in screen_text(app))
        await pilot.press("tab")
        assert app.screen.query_one("#second", Transcript).has_focus
        await pilot.press("enter")
        await until_async(lambda: [entry.text for entry in shown_messages(app)] == ["Hi", OTHER_ANSWER])
        await ask(app, "More")
        assert saved_texts(app)[:2] == ["Hi", OTHER_ANSWER]


async def test_comparison_stops_one_reply_and_the_choice_waits_for_the_other() -> None:
    script, second = held(ANSWER), held(OTHER_ANSWER)
    app = make_app(script, second)
    async with app.run_test(size=(120, 36)) as pilot:
        await start_both_replies(app)
        await until_async(lambda: len(growing_texts(app)) == 2 and growing_texts(app)[1])
        await pilot.press("f9")
        await until_async(lambda: is_open(app, "CompareScreen") and "Reply 2 of 2" in screen_text(app))
        for key in ("right", "s"):  # in one packet
            app.simulate_key(key)
        await until_async(lambda: session(app).second._is_stopped)
        second.may_continue.set()
        await until_async(lambda: screen_text(app).count("(growing)") == 1)
        await pilot.press("2")
        await until_async(lambda: app.screen is app.chat)
        assert "when the present one is complete" in footer_text(app)
        script.may_continue.set()
        await until_async(lambda: [entry.text for entry in shown_messages(app)] == ["Hi", OTHER_ANSWER[:4]])
        assert [m.text for m in session(app).tree._messages.values()] == ["Hi", ANSWER, OTHER_ANSWER[:4]]


async def test_each_reply_scrolls_on_its_own() -> None:
    text = "\n\n".join(f"Line {n}." for n in range(100))
    app = make_app(Script([text]), Script([text]))
    async with app.run_test(size=(120, 36)) as pilot:
        await wait_until_ready(app)
        await ask(app, "Hi")
        app.actions.run("also", "starter")
        await until_async(lambda: len(session(app).tree) == 3 and not app.pane.is_replying)
        app.actions.run("compare", "1 2")
        await until_async(lambda: is_open(app, "CompareScreen"))
        first, second = app.screen.query(Transcript)
        assert (round(first.scroll_y), round(second.scroll_y)) == (0, 0)
        await pilot.press("down", "down", "right", "pagedown")
        await until_async(lambda: round(first.scroll_y) == 2 and second.scroll_y > 10)
        await pilot.press("escape")
        await until_async(lambda: app.screen is app.chat)


async def test_crash_of_the_second_engine_leaves_the_reply_of_the_first() -> None:
    script, second = held(ANSWER), Script([OTHER_ANSWER], crash_after_tokens=2)
    app = make_app(script, second)
    async with app.run_test(size=(120, 36)):
        await start_both_replies(app)
        await until_async(lambda: "starter: the engine process died" in "".join(shown_texts(app, "error")))
        script.may_continue.set()
        await until_async(lambda: not app.pane.is_busy)
        assert [m.text for m in session(app).tree._messages.values()] == ["Hi", ANSWER, OTHER_ANSWER[:8]]


async def test_switching_the_conversation_or_quitting_ends_the_second_reply() -> None:
    second = held(OTHER_ANSWER)
    app = make_app(Script([ANSWER]), second)
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        await ask(app, "Hi")
        first_id = session(app).conversation.id
        app.actions.run("also", "starter")
        await until_async(lambda: growing_texts(app) == [OTHER_ANSWER[:4]])
        app.actions.run("new")
        second.may_continue.set()
        await until_async(lambda: session(app).conversation.id != first_id and not app.pane.is_replying)
        [*_, saved] = session(app).store.messages(first_id)
        assert OTHER_ANSWER.startswith(saved.text)
        await ask(app, "Again")
        second.may_continue.clear()
        app.actions.run("also", "starter")
        await until_async(lambda: growing_texts(app) == [OTHER_ANSWER[:4]])
        await pilot.press("ctrl+q")
        await until_async(lambda: app.return_code == 0)


async def test_long_code_is_highlighted_in_the_comparison() -> None:
    code = (
        "```python\n" + "\n".join(f"def function_{n}(a: int) -> int:\n    return {n}" for n in range(300)) + "\n```\n"
    )
    app = make_app(Script([code]), Script([code]))
    async with app.run_test(size=(120, 36)):
        await wait_until_ready(app)
        await ask(app, "Hi")
        app.actions.run("also", "starter")
        await until_async(lambda: len(session(app).tree) == 3 and not app.pane.is_replying)
        app.actions.run("compare")
        await until_async(lambda: is_open(app, "CompareScreen"))
        first, second = app.screen.query(Transcript)

        await until_async(lambda: all(code_blocks(transcript) for transcript in (first, second)))
        blocks = [*code_blocks(first), *code_blocks(second)]
        await until_async(lambda: not any(block.needs_highlighting for block in blocks))


def code_blocks(transcript: Transcript) -> list[CodeLayout]:
    return [block for entry in transcript.entries for block in entry.blocks if isinstance(block, CodeLayout)]
