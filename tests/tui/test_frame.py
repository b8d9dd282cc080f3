"""Title line, footer with keys and notices, context bar and window title of the chat."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from rich.cells import cell_len

from edgechat import paths
from edgechat.bench.scripted_session import Script
from edgechat.store import open_store
from edgechat.tui.messages import ContextMeasured
from edgechat.tui.widgets.status_line import format_context
from edgechat.tui.widgets.title_line import ChatTitle
from tests.tui.app_driver import (
    ask,
    footer_text,
    is_open,
    make_scripted_app,
    save_conversation,
    screen_text,
    session,
    shown_texts,
    status_text,
    title_text,
    wait_until_ready,
)
from tests.waiting import until_async


async def test_title_line_names_conversation_model_and_changed_settings() -> None:
    paths.personas_dir().mkdir(parents=True)
    (paths.personas_dir() / "cook.toml").write_text('system_prompt = "Cook."\ntemperature = 0.3\n')
    store = open_store()
    app = make_scripted_app(store=store, conversation=save_conversation(store, [("Q", "A")], "Old talk"))
    async with app.run_test():
        await wait_until_ready(app)
        model = app.worker.session.model_path.stem if app.worker.session is not None else ""
        assert title_text(app) == f"Old talk · {model}"
        app.actions.run("set", "top_k 20")
        await until_async(lambda: title_text(app) == f"Old talk · {model} · top-k 20")
        app.actions.run("system", "Be brief.")
        await until_async(lambda: title_text(app) == f"Old talk · {model} · system prompt · top-k 20")
        app.actions.run("rename", "New name")
        await until_async(lambda: title_text(app).startswith("New name · "))
        app.actions.run("persona", "cook")
        await until_async(lambda: title_text(app) == f"New name · {model} · cook · top-k 20")
        app.actions.run("set", "temperature 0.5")
        await until_async(lambda: "system prompt · temperature 0.5" in title_text(app))
        app.actions.run("new")
        await until_async(lambda: title_text(app) == f"New conversation · {model}")


async def test_ephemeral_conversation_is_marked_and_long_titles_are_cut() -> None:
    app = make_scripted_app()
    async with app.run_test(size=(60, 24)):
        await wait_until_ready(app)
        await until_async(lambda: title_text(app).endswith(" · ephemeral"))
        await ask(app, "word " * 50)
        await until_async(lambda: title_text(app).startswith("word"))
        assert len(title_text(app)) <= 56
        assert title_text(app).endswith(" · ephemeral")


async def test_title_line_folds_away_below_24_rows() -> None:
    app = make_scripted_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until_ready(app)
        assert screen_text(app).startswith("  New conversation")
        await pilot.resize_terminal(80, 23)
        await until_async(lambda: not title_text(app))
        await pilot.resize_terminal(80, 24)
        await until_async(lambda: title_text(app).startswith("New conversation"))


async def test_footer_lists_the_keys_of_the_focused_part() -> None:
    app = make_scripted_app(keys={"chat.help": "f7", "message.copy": "z"})
    async with app.run_test(size=(100, 30)) as pilot:
        await wait_until_ready(app)
        assert footer_text(app).startswith(
            "Esc copy/edit/retry  Up/Down history  F7 help  Ctrl+P commands  Ctrl+Q quit"
        )
        await pilot.press("a")
        assert footer_text(app).startswith("Enter send  Ctrl+J new line  Esc copy/edit/retry  Up/Down history  F7 help")
        await pilot.press("backspace")
        await pilot.press("escape")
        await until_async(lambda: footer_text(app).startswith("z copy  c code  s save  e edit"))
        await pilot.press("ctrl+b")
        await until_async(lambda: footer_text(app).startswith("Enter open  Ctrl+S pin  Ctrl+X delete  Esc back"))
        await pilot.press("escape", "i")  # the list returns the focus to the conversation
        await until_async(lambda: footer_text(app).startswith("Esc copy/edit/retry"))
        assert max(map(len, screen_text(app).splitlines())) <= 100


async def test_footer_shows_how_to_stop_a_reply() -> None:
    script = Script(["A long reply."])
    script.may_continue.clear()
    app = make_scripted_app(script=script)
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        app.pane.submit("Question")
        await until_async(lambda: footer_text(app).startswith("Esc stop  Enter queue"))
        script.may_continue.set()
        await until_async(lambda: footer_text(app).startswith("Esc copy/edit/retry"))
        await pilot.press("escape", "e")
        await until_async(lambda: footer_text(app).startswith("Enter send  Esc cancel the edit"))


async def test_footer_can_be_switched_off_and_hides_on_low_screens() -> None:
    app = make_scripted_app(footer=False)
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        assert not footer_text(app)
        app.notify("A notice")
        await until_async(lambda: footer_text(app) == "A notice")
        app.apply_settings(type(app.settings)(footer=True))
        app.notify("")
        await until_async(lambda: footer_text(app).startswith("Esc copy/edit/retry"))
        await pilot.resize_terminal(80, 11)
        await until_async(lambda: not footer_text(app))
        await pilot.resize_terminal(80, 7)
        app.notify("Another notice")
        await until_async(lambda: "Another notice" in status_text(app))


async def test_new_notice_replaces_the_old_one_and_never_covers_the_input() -> None:
    app = make_scripted_app("A", store=open_store())
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        await ask(app, "Question")
        await pilot.press("escape", "d")
        await until_async(lambda: footer_text(app).startswith("Press d again"))
        await pilot.press("d")
        await until_async(lambda: footer_text(app).startswith("Message deleted"))
        await pilot.press("u")
        await until_async(lambda: footer_text(app) == "Message restored")
        assert not list(app._notifications)
        app.notify("long " * 40)
        await until_async(lambda: app.pane.footer.size.height == 3)
        assert "╰" in screen_text(app)
        app.pane.footer.show_notice("")
        await until_async(lambda: footer_text(app).startswith("y copy"))


@pytest.mark.parametrize("text", ["記" * 60 + "終", "w" * 50 + " " + "x" * 50 + " " + "終"], ids=["cjk", "words"])
async def test_notice_is_shown_to_its_end(text: str) -> None:
    app = make_scripted_app("A")
    async with app.run_test(size=(80, 24)):
        await wait_until_ready(app)
        app.notify(text)
        await until_async(lambda: "終" in screen_text(app))


def test_wide_title_leaves_room_for_the_marks() -> None:
    text = ChatTitle("会話" * 40, "model", ("ephemeral",)).format(" · ", "…", 60)
    assert text.endswith("… · model · ephemeral")
    assert 58 <= cell_len(text) <= 60


@pytest.mark.parametrize(
    "model",
    [
        f"box/{'long-model-name' * 4} (remote, 192.168.100.50:8080)",
        f"route: {'small' * 9}, or box/{'large' * 9} (remote, 192.168.100.50:8080)",
    ],
    ids=["remote", "route"],
)
def test_host_of_a_remote_is_shown_before_titles_and_names(model: str) -> None:
    text = ChatTitle("A long title of a conversation " * 3, model, ("temperature 0.5",)).format(" · ", "…", 76)
    host = " (remote, 192.168.100.50:8080)"
    assert cell_len(text[: text.index(host) + len(host)]) <= 76
    assert text.startswith("A long title of a conver… · box/long" if "long-model" in model else "A long title")
    narrow = ChatTitle("A long title of a conversation", model).format(" · ", "…", 52)
    assert cell_len(narrow) <= 52
    assert narrow.endswith(host)


async def test_start_of_a_reply_removes_notices_and_shows_the_key_that_stops_it() -> None:
    script = Script(["An answer."])
    script.may_continue.clear()
    app = make_scripted_app(script=script)
    async with app.run_test(size=(100, 30)):
        await wait_until_ready(app)
        app.notify("New conversation")
        app.actions.run("system", "Be short.")  # its notice arrives after the message is sent
        app.pane.submit("Hi")
        assert app.pane.footer.notice == ""
        await until_async(lambda: app.pane.is_streaming)
        await until_async(lambda: "stop" in footer_text(app))
        assert app.pane.footer.notice == ""
        script.may_continue.set()
        await until_async(lambda: not app.pane.is_busy)


async def test_notice_before_the_start_and_after_the_end_is_no_error() -> None:
    app = make_scripted_app()
    app.notify("too early")
    async with app.run_test():
        await wait_until_ready(app)
    app.notify("too late")


async def test_toast_of_another_screen_does_not_cover_the_chat() -> None:
    app = make_scripted_app()
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        await pilot.press("f2")
        await until_async(lambda: is_open(app, "SettingsScreen"))
        app.notify("Installed something")
        await until_async(lambda: list(app._notifications))
        await pilot.press("escape")
        await until_async(lambda: app.screen is app.chat and not list(app._notifications))


def test_context_bar_warns_at_75_and_90_percent() -> None:
    glyphs = ("#", "-")
    texts = [str(format_context(n, 1000, glyphs)) for n in (0, 1, 500, 749, 750, 899, 900, 5000)]
    assert texts == [
        "context -------- 0/1000", "context #------- 1/1000", "context ####---- 500/1000",
        "context ######-- 749/1000", "context ######-- 750/1000 75 % full", "context #######- 899/1000 89 % full",
        "context #######- 900/1000 nearly full", "context ######## 5000/1000 nearly full",
    ]  # fmt: skip
    styles = [format_context(n, 1000, glyphs).spans for n in (749, 750, 900)]
    assert [str(s[0].style) if s else "" for s in styles] == ["", "$text-warning", "$text-error"]


async def test_measurement_from_before_a_reply_is_ignored() -> None:
    app = make_scripted_app()
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        await ask(app, "A question that needs some tokens of the context")
        await until_async(lambda: app.pane.status_line.context_tokens > 15)
        app.pane.post_message(ContextMeasured(1, "", 4, "", {}))
        await pilot.pause()
        assert app.pane.status_line.context_tokens > 15


@pytest.mark.parametrize("command", ["/export {folder}/x.md", "/temperature 99", "/theme nothing"])
async def test_context_is_measured_without_a_command_that_was_taken_from_the_input(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_scripted_app()
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        await ask(app, "Question")
        texts: list[str] = []
        monkeypatch.setattr(app.worker, "measure_context", lambda _number, text, _files: texts.append(text))
        app.pane.prompt.load(command.format(folder=tmp_path))
        app.pane.measure_context()
        await pilot.press("enter")
        await until_async(lambda: "" in texts)


async def test_name_of_the_model_is_in_one_line_after_a_resize() -> None:
    app = make_scripted_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await wait_until_ready(app)
        name = session(app).model_path.stem
        await pilot.resize_terminal(60, 16)
        await until_async(lambda: not title_text(app))
        await pilot.resize_terminal(100, 30)
        await until_async(lambda: name in title_text(app))
        await until_async(lambda: name not in status_text(app))


async def test_key_hints_are_never_cut() -> None:
    app = make_scripted_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await wait_until_ready(app)
        await ask(app, "Question")
        for keys in ([], ["escape"]):
            await pilot.press(*keys)
            for width in (40, 100, 61, 60, 57, 100, 30):
                await pilot.resize_terminal(width, 16)
                await pilot.pause()
                await pilot.pause()
                text = footer_text(app)
                assert len(text) <= width - 4
                assert screen_text(app).splitlines()[-1].strip() == text


async def test_speed_is_not_carried_into_another_conversation() -> None:
    app = make_scripted_app()
    async with app.run_test():
        await wait_until_ready(app)
        await ask(app, "Question")
        app.pane._speed = "15 tokens/s"
        app.pane.measure_context()
        await until_async(lambda: "15 tokens/s" in status_text(app))
        app.actions.run("new")
        await until_async(lambda: not shown_texts(app, "user"))
        app.pane.measure_context()
        await until_async(lambda: "tokens/s" not in status_text(app))
        assert app.pane._speed == ""


@pytest.mark.parametrize(
    ("gain", "source", "shown"),
    [(1.52, "model", "tokens/s (1.5x by the drafter)"), (2.0, "corpus", "tokens/s (2.0x by repeated text)")],
)
async def test_gain_from_drafts_is_shown_during_a_reply(gain: float, source: str, shown: str) -> None:
    script = Script(["word " * 2000, "Short."], token_interval_s=0.02)
    script.draft_gain, script.draft_source = gain, source
    app = make_scripted_app(script=script)
    async with app.run_test(size=(110, 30)) as pilot:
        await wait_until_ready(app)
        app.pane.prompt.load("Question")
        await pilot.press("enter")
        await until_async(lambda: shown in status_text(app))
        script.draft_gain = 1.01
        await until_async(lambda: "tokens/s" in status_text(app) and "x by" not in status_text(app))
        await pilot.press("escape")
        await until_async(lambda: app.pane.status_line.state != "Generating")


async def test_used_context_stays_visible_beside_the_gain_from_drafts() -> None:
    script = Script(["word " * 2000], token_interval_s=0.02)
    script.draft_gain, script.draft_source = 1.52, "model"
    app = make_scripted_app(script=script)
    async with app.run_test(size=(70, 24)) as pilot:
        await wait_until_ready(app)
        app.pane.prompt.load("Question")
        await pilot.press("enter")
        await until_async(lambda: "tokens/s" in status_text(app))
        figure = re.search(r"context \S+ \d+/\d+", status_text(app))
        assert figure is not None
        assert figure.end() <= app.pane.status_line.size.width
        assert "x by" not in status_text(app)
        await pilot.press("escape")
        await until_async(lambda: app.pane.status_line.state != "Generating")


async def test_used_context_stays_visible_beside_a_long_warning() -> None:
    app = make_scripted_app()
    async with app.run_test(size=(70, 24)):
        await wait_until_ready(app)
        app.pane.status_line.show_state("Ready", "sending drops 2 messages from the start of the context")
        assert re.match(r"Ready  context \S+ \d+/\d+  sending drops", status_text(app))


async def test_command_is_not_counted_while_it_is_typed() -> None:
    app = make_scripted_app()
    async with app.run_test():
        await wait_until_ready(app)
        await ask(app, "Question")
        await until_async(lambda: app.pane.status_line.state == "Ready" and app.pane.status_line.context_tokens)
        pane = app.pane
        pane.prompt.load("word " * 500)
        pane.measure_context()
        await until_async(lambda: pane.status_line.context_tokens > 500)
        for line in ("/system " + "word " * 500, "/frobnicate " + "word " * 500, "/"):
            pane.prompt.load(line)
            pane.measure_context()
            await until_async(lambda: 0 < pane.status_line.context_tokens < 500)
            pane.prompt.load(" " + line + "word " * 500)  # a message, because it starts with a space
            pane.measure_context()
            await until_async(lambda: pane.status_line.context_tokens > 500)


async def test_error_in_the_footer_stays_until_a_key_after_its_time() -> None:
    app = make_scripted_app()
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        footer = app.pane.footer
        footer.show_notice("Unknown command", "error")
        await pilot.press("a")
        assert footer.notice == "Unknown command"
        footer._on_notice_read()  # its time is over
        assert footer.notice == "Unknown command"
        await pilot.press("b")
        assert footer.notice == ""


async def test_mistake_that_is_too_long_for_the_footer_stays_in_the_transcript() -> None:
    app = make_scripted_app()
    async with app.run_test():
        await wait_until_ready(app)
        app.pane.show_failure("word " * 100, is_mistake=True)
        assert shown_texts(app, "error") == ["word " * 100]
        assert app.pane.footer.notice == ""


async def test_footer_names_the_keys_of_the_completions_while_they_are_open() -> None:
    app = make_scripted_app()
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        await pilot.press("/", "r")
        await until_async(lambda: footer_text(app).startswith("Tab accept  Up/Down choose  Esc close the list"))
        await pilot.press("escape")
        await until_async(lambda: footer_text(app).startswith("Enter send"))


@pytest.mark.parametrize(
    ("key", "screen"), [("ctrl+p", "CommandPaletteScreen"), ("ctrl+f", "SearchScreen"), ("ctrl+r", "PickerScreen")]
)
async def test_footer_lists_no_keys_of_the_chat_below_another_screen(key: str, screen: str) -> None:
    app = make_scripted_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await wait_until_ready(app)
        await ask(app, "Question")
        await pilot.press(key)
        await until_async(lambda: is_open(app, screen) and footer_text(app) == "")
        assert "Ctrl+Q" not in screen_text(app)
        assert "Esc: close" in screen_text(app)
        await pilot.press("escape")
        await until_async(lambda: footer_text(app).startswith("Esc copy/edit/retry"))


async def test_placeholder_names_the_configured_keys() -> None:
    app = make_scripted_app(keys={"prompt.send": "ctrl+s", "chat.help": "f9"})
    async with app.run_test():
        await wait_until_ready(app)
        assert "Ctrl+S sends, Ctrl+J new line, F9 help" in screen_text(app)
        app.apply_settings(type(app.settings)(keys={"prompt.newline": "f8"}))
        await until_async(lambda: "Enter sends, F8 new line, F1 help" in screen_text(app))
