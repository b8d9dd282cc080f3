"""Keys that terminal users expect: scrolling from the input, readline, Ctrl+C, Ctrl+L, Ctrl+Z; letters after Esc."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from edgechat.bench.scripted_session import Script
from edgechat.tui.screens import chat as chat_screen
from tests.terminal import terminal
from tests.tui.app_driver import (
    ask,
    footer_text,
    make_scripted_app,
    problem_text,
    session,
    shown_texts,
    wait_for_completions,
    wait_for_jobs,
    wait_until_ready,
)
from tests.tui.drawing import until_async

if TYPE_CHECKING:
    from textual.pilot import Pilot

pytestmark = pytest.mark.usefixtures("independent_of_load")
LONG = "\n\n".join(f"paragraph {n}" for n in range(60))


async def press(pilot: Pilot[int], *keys: str) -> None:
    await pilot.press(*keys)
    await pilot.pause()


@pytest.mark.parametrize(("up", "down"), [("pageup", "pagedown"), ("ctrl+up", "ctrl+down"), ("shift+up", "shift+down")])
async def test_conversation_scrolls_while_the_cursor_is_in_the_input(up: str, down: str) -> None:
    app = make_scripted_app(LONG)
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until_ready(app)
        await ask(app, "Question")
        transcript = app.pane.transcript
        end = transcript.scroll_y
        await press(pilot, *"draft", up)
        assert transcript.scroll_y < end
        assert app.pane.prompt.has_focus
        await press(pilot, down)
        assert transcript.scroll_y == end
        assert app.pane.prompt.text == "draft"


async def test_wheel_over_the_input_scrolls_the_conversation() -> None:
    from textual.events import MouseScrollUp

    app = make_scripted_app(LONG)
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until_ready(app)
        await ask(app, "Question")
        end = app.pane.transcript.scroll_y
        await pilot._post_mouse_events([MouseScrollUp], app.pane.prompt, offset=(5, 1))
        await until_async(lambda: app.pane.transcript.scroll_y < end)


async def test_page_keys_move_the_cursor_in_a_text_taller_than_the_input() -> None:
    app = make_scripted_app(LONG)
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until_ready(app)
        await ask(app, "Question")
        end, prompt = app.pane.transcript.scroll_y, app.pane.prompt
        prompt.load("\n".join("abc" for _ in range(30)))
        await pilot.pause()
        for _ in range(5):
            await press(pilot, "pageup")
        assert prompt.cursor_location[0] == 0
        await press(pilot, "pageup")
        assert app.pane.transcript.scroll_y < end


async def test_letters_that_are_no_commands_are_typed_into_the_input() -> None:
    app = make_scripted_app("A reply.")
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until_ready(app)
        await ask(app, "Question")
        await press(pilot, "escape")
        assert app.pane.transcript.has_focus
        await press(pilot, *"hello 日本")
        assert app.pane.prompt.text == "hello 日本"
        assert app.pane.prompt.has_focus


async def test_paste_into_the_conversation_goes_to_the_input() -> None:
    from textual.events import Paste

    app = make_scripted_app("A reply.")
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until_ready(app)
        await press(pilot, "escape")
        app.pane.transcript.post_message(Paste("pasted"))
        await until_async(lambda: app.pane.prompt.text == "pasted")


async def test_retry_and_continue_ask_once() -> None:
    app = make_scripted_app("A reply.")
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until_ready(app)
        await ask(app, "Question")
        n_messages = len(session(app).tree)
        await press(pilot, "escape", "r", "n", "r", "n")
        assert len(session(app).tree) == n_messages
        assert not app.pane.is_busy
        await press(pilot, "r", "r")
        await until_async(lambda: len(session(app).tree) == n_messages + 1 and not app.pane.is_busy)


async def test_second_escape_after_a_stop_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_screen, "_DOUBLE_PRESS_S", 1000.0)
    script = Script([LONG])
    script.may_continue.clear()
    app = make_scripted_app(script=script)
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until_ready(app)
        app.pane.prompt.load("Question")
        await press(pilot, "enter")
        await until_async(lambda: any(shown_texts(app, "assistant")))
        await press(pilot, "escape", "escape", *"explain")
        assert app.pane.prompt.text == "explain"
        script.may_continue.set()
        await until_async(lambda: not app.pane.is_busy)
        assert app.pane.composer.edited_id is None


async def test_escape_stops_a_reply_at_once_after_it_closed_the_completions() -> None:
    script = Script([LONG], token_interval_s=0.01)
    script.may_continue.clear()
    app = make_scripted_app(script=script)
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until_ready(app)
        app.pane.prompt.load("Question")
        await press(pilot, "enter")
        await until_async(lambda: any(shown_texts(app, "assistant")))
        await press(pilot, "/")
        await wait_for_completions(app)
        await press(pilot, "escape")
        assert app.pane.is_generating
        await press(pilot, "escape")
        script.may_continue.set()
        await until_async(lambda: not app.pane.is_busy)
        assert shown_texts(app, "assistant") != [LONG]


async def test_ctrl_c_clears_the_input_and_quits_when_repeated_without_text() -> None:
    app = make_scripted_app("A reply.")
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until_ready(app)
        await press(pilot, *"some words", "ctrl+c")
        assert app.pane.prompt.text == ""
        await press(pilot, "ctrl+underscore")
        assert app.pane.prompt.text == "some words"
        await press(pilot, "ctrl+c", "ctrl+c")
        assert not app.is_leaving
        assert "again to quit" in footer_text(app)
        await press(pilot, "ctrl+c")
        assert app.is_leaving
        await until_async(lambda: app.return_code is not None)


async def test_cleared_paste_is_restored_by_undo() -> None:
    app = make_scripted_app("A reply.")
    text = "\n".join(f"line {n}" for n in range(500))
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until_ready(app)
        app.pane.prompt.load(text)
        await press(pilot, "ctrl+c", "ctrl+underscore")
        assert app.pane.prompt.full_text == text


async def test_readline_keys() -> None:
    cases: list[tuple[list[str], str, int]] = [
        (["ctrl+a"], "one two three", 0),
        (["ctrl+a", "ctrl+e"], "one two three", 13),
        (["alt+b"], "one two three", 8),
        (["ctrl+a", "alt+f"], "one two three", 3),
        (["ctrl+w"], "one two ", 8),
        (["ctrl+w", "ctrl+w", "ctrl+y"], "one two three", 13),
        (["alt+b", "alt+d"], "one two ", 8),
        (["alt+b", "ctrl+k", "ctrl+a", "ctrl+y"], "threeone two ", 5),
        (["alt+b", "ctrl+u"], "three", 0),
        (["ctrl+u", "ctrl+underscore"], "one two three", 13),
        (["ctrl+u", "ctrl+underscore", "alt+z"], "", 0),
    ]
    app = make_scripted_app("A reply.")
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until_ready(app)
        for keys, text, column in cases:
            app.pane.prompt.load("one two three")
            await press(pilot, "ctrl+e", *keys)  # Ctrl+E, because two deletions in a row are yanked as one text
            assert app.pane.prompt.text == text, keys
            assert app.pane.prompt.cursor_location == (0, column), keys


@pytest.mark.parametrize("key", ["f6", "f7", "ctrl+w", "ctrl+home", "ctrl+k"])
async def test_every_key_can_be_assigned_to_the_search(key: str) -> None:
    app = make_scripted_app("A reply.", keys={"chat.search": key})
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until_ready(app)
        await press(pilot, *"draft", key)
        await until_async(lambda: type(app.screen).__name__ == "SearchScreen")
        assert app.pane.prompt.text == "draft"


@pytest.mark.parametrize("key", ["f6", "f7"])
async def test_keys_of_textual_that_the_help_does_not_list_do_nothing(key: str) -> None:
    app = make_scripted_app("A reply.")
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until_ready(app)
        await press(pilot, *"draft", key, "x")
        assert app.pane.prompt.text == "draftx"


async def test_ctrl_l_removes_notes_and_errors_and_keeps_messages() -> None:
    app = make_scripted_app("A reply.")
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until_ready(app)
        await ask(app, "Question")
        app.pane.add_error("Something failed.")
        app.pane.add_note("A note.")
        app.notify("A notice.")
        await press(pilot, "ctrl+l")
        assert shown_texts(app, "error") == shown_texts(app, "note") == []
        assert app.pane.footer.notice == ""
        assert shown_texts(app, "assistant") == ["A reply."]


@pytest.mark.cold
@pytest.mark.parametrize("starter_program", ["", "sh -c '{}; true'"], ids=["shell", "program"])
def test_ctrl_z_returns_to_the_shell_and_fg_resumes(tmp_path: Path, starter_program: str) -> None:
    command = f"{sys.executable} -m tests.tui.scripted_program"
    if starter_program:  # as `make` does
        command = starter_program.format(command)
    env = {**os.environ, "PS1": "shell> ", "HISTFILE": str(tmp_path / "history")}
    with terminal("bash", "--norc", "-i", env=env, is_controlling=True) as t:
        t.until("shell>")
        t.type(f"{command}\r")
        t.until_stable("Ready")
        t.type("half a draft")
        t.until("half a draft")
        t.type("\x1a")
        t.until("Stopped")
        t.type("echo in the $((1+1))nd shell\r")
        t.until("in the 2nd shell")
        t.type("fg\r")
        t.until(lambda: t.output.count(b"\x1b[?1049h") == 2)
        t.until("half a draft")
        t.type(" goes on")
        t.until("half a draft goes on")


@pytest.mark.cold
def test_ctrl_z_without_a_shell_is_refused() -> None:
    with terminal(sys.executable, "-m", "tests.tui.scripted_program", is_controlling=True) as t:
        t.until_stable("Ready")
        t.type("\x1a")
        t.until("There is no shell to return to")


async def test_ctrl_home_and_ctrl_end_scroll_to_the_ends_from_the_input() -> None:
    app = make_scripted_app(LONG)
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until_ready(app)
        await ask(app, "Question")
        transcript = app.pane.transcript
        end = transcript.scroll_y
        await press(pilot, *"draft", "ctrl+home")
        await until_async(lambda: transcript.scroll_y == 0)
        assert app.pane.prompt.has_focus
        assert transcript.cursor is None
        await press(pilot, "ctrl+end")
        await until_async(lambda: transcript.scroll_y == end)
        assert transcript.cursor is None
        assert app.pane.prompt.text == "draft"


async def test_home_and_end_scroll_to_the_ends_when_the_cursor_cannot_go_further() -> None:
    app = make_scripted_app(LONG)
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until_ready(app)
        await ask(app, "Question")
        transcript, prompt = app.pane.transcript, app.pane.prompt
        end = transcript.scroll_y
        await press(pilot, "home")
        await until_async(lambda: transcript.scroll_y == 0)
        await press(pilot, "end")
        await until_async(lambda: transcript.scroll_y == end)
        await press(pilot, *"draft", "home")
        assert (prompt.cursor_location, transcript.scroll_y) == ((0, 0), end)
        await press(pilot, "home")
        await until_async(lambda: transcript.scroll_y == 0)
        await press(pilot, "end")
        assert (prompt.cursor_location, transcript.scroll_y) == ((0, 5), 0)
        await press(pilot, "end")
        await until_async(lambda: transcript.scroll_y == end)
        assert prompt.text == "draft"


async def test_unknown_command_is_never_sent() -> None:
    app = make_scripted_app("A reply.")
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until_ready(app)
        for line in ("/frob", "/Frobnicate the text", "/quit now", "/ne", "/?x", "/", "/xyzzy\nsecond line"):
            app.pane.remove_notes()
            app.pane.prompt.load(line)
            app.pane.prompt.action_send()
            await wait_for_jobs(app)
            assert problem_text(app), line
            assert app.pane.prompt.text == line
            assert "command" in footer_text(app) or "takes no argument" in footer_text(app)
            assert shown_texts(app, "error") == []  # the footer shows a mistake
            assert not app.is_leaving
            await press(pilot, "ctrl+c")
        await ask(app, "Question")
        assert [message.text for message in session(app).tree.path] == ["Question", "A reply."]
