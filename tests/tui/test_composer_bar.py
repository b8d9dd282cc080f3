"""Attachments as chips, `/detach`, and the list of queued messages."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgechat.bench.scripted_session import Script
from edgechat.chat.commands import remove_attachment
from edgechat.tui.app import ChatApp
from tests.tui.app_driver import (
    footer_text,
    make_scripted_app,
    problem_text,
    screen_text,
    session,
    shown_texts,
    status_text,
    wait_until_ready,
)
from tests.waiting import until_async

pytestmark = pytest.mark.usefixtures("folder")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with a short and a long file; the scripted context holds 32,768 tokens."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.md").write_text("Remember the milk. " * 60)
    (tmp_path / "big.txt").write_text("word " * 60_000)
    return tmp_path


def bar_text(app: ChatApp) -> str:
    bar = app.pane.composer_bar
    return str(bar.content) if bar is not None and bar.display else ""


def bar_row(app: ChatApp, text: str) -> tuple[int, int]:
    """Return column and row of a text on the screen."""
    rows = screen_text(app).splitlines()
    row = next(i for i, line in enumerate(rows) if text in line)
    return rows[row].index(text), row


async def test_chips_show_name_size_and_tokens_and_name_the_long_file() -> None:
    app = make_scripted_app()
    async with app.run_test(size=(100, 30)):
        await wait_until_ready(app)
        assert bar_text(app) == ""
        app.actions.run("attach", "notes.md")
        n_tokens, n_long = (session(app).count_file_tokens(Path(name)) for name in ("notes.md", "big.txt"))
        await until_async(lambda: f"[notes.md 1 kB {n_tokens} tokens" in bar_text(app))
        app.actions.run("attach", "big.txt")
        await until_async(lambda: f"[big.txt 300 kB {n_long:,} tokens of 32,768: too long" in bar_text(app))
        warning = f"big.txt has {n_long:,} tokens, but the context holds 32,768 tokens."
        await until_async(lambda: warning in status_text(app))
        assert f"[notes.md 1 kB {n_tokens} tokens" in screen_text(app)
        app.pane.prompt.load("Summarise it")
        app.pane.prompt.action_send()
        await until_async(lambda: shown_texts(app, "error"))
        error = shown_texts(app, "error")[0]
        assert error.startswith(f"{warning} Attach a part of it")
        assert error.count("32,768") == 1
        assert str(n_long) not in error
        await until_async(lambda: app.pane.prompt.text == "Summarise it" and "big.txt" in bar_text(app))


async def test_a_file_that_is_too_long_is_never_hidden_behind_others(folder: Path) -> None:
    app = make_scripted_app()
    async with app.run_test(size=(60, 30)):
        await wait_until_ready(app)
        for number in range(4):
            (folder / f"short-{number}.md").write_text("Remember the milk.")
            app.actions.run("attach", f"short-{number}.md")
        app.actions.run("attach", "big.txt")
        await until_async(lambda: bar_text(app).startswith("[big.txt 300 kB"))
        assert "+4 more" in bar_text(app)


async def test_command_that_fails_returns_to_the_input() -> None:
    app = make_scripted_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await wait_until_ready(app)
        app.pane.prompt.load("/attach missing.md")
        await pilot.press("enter")
        await until_async(lambda: "missing.md" in problem_text(app))
        assert shown_texts(app, "error") == []
        assert app.pane.prompt.text == "/attach missing.md"


async def test_tokens_are_counted_once_for_each_version_of_a_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_scripted_app()
    async with app.run_test(size=(100, 30)):
        await wait_until_ready(app)
        chat = session(app)
        texts: list[str] = []
        tokenize = chat.model.engine.tokenize

        def record_text(text: str) -> list[int]:
            texts.append(text)
            return tokenize(text)

        monkeypatch.setattr(chat.model.engine, "tokenize", record_text)
        n_tokens = chat.count_file_tokens(Path("notes.md"))
        assert chat.find_long_attachment([Path("notes.md")]) == ""
        assert len(texts) == 1
        (folder / "notes.md").write_text("Remember the milk. " * 90)
        assert chat.count_file_tokens(Path("notes.md")) > n_tokens
        chat.model_path = Path("other.gguf")
        chat.count_file_tokens(Path("notes.md"))
        assert len(texts) == 3


async def test_backspace_at_the_start_removes_the_last_attachment() -> None:
    app = make_scripted_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await wait_until_ready(app)
        for name in ("notes.md", "big.txt"):
            app.actions.run("attach", name)
        await until_async(lambda: "notes.md" in bar_text(app) and "big.txt" in bar_text(app))
        await pilot.press("a", "b", "home", "backspace")
        await until_async(lambda: "big.txt" not in bar_text(app) and "notes.md" in bar_text(app))
        assert app.pane.prompt.text == "ab"
        await pilot.press("end", "backspace", "backspace")
        assert "notes.md" in bar_text(app)
        await pilot.press("backspace", "backspace")
        await until_async(lambda: bar_text(app) == "" and app.pane.prompt.text == "")


async def test_detach_and_the_mouse_remove_attachments() -> None:
    app = make_scripted_app("An answer.")
    async with app.run_test(size=(100, 30)) as pilot:
        await wait_until_ready(app)
        for name in ("notes.md", "big.txt"):
            app.actions.run("attach", name)
        app.actions.run("detach", "nothing")
        await until_async(lambda: problem_text(app) == "nothing is not attached. Attached: notes.md, big.txt.")
        app.actions.run("detach", "big.txt")
        await until_async(lambda: "big.txt" not in bar_text(app))
        await until_async(lambda: " tokens \u00d7]" in screen_text(app))
        column, row = bar_row(app, "\u00d7")
        await pilot.click(offset=(column, row))
        await until_async(lambda: bar_text(app) == "")
        app.actions.run("detach")
        await until_async(lambda: problem_text(app) == "No file is attached.")
        app.pane.submit("Question")
        await until_async(lambda: len(session(app).tree) == 2 and not app.pane.is_busy)
        assert session(app).tree.path[0].attachments == ()


async def test_cross_removes_its_own_file_among_files_of_the_same_name(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "notes.md").write_text("other")
    files = [Path("notes.md"), Path("sub/notes.md")]
    app = make_scripted_app()
    async with app.run_test(size=(100, 30)):
        await wait_until_ready(app)
        app.pane.composer.attachments[:] = files
        app.pane.show_attachments()
        await until_async(lambda: app.pane.composer_bar is not None)
        composer_bar = app.pane.composer_bar
        assert composer_bar is not None
        composer_bar.action_detach(0)
        await until_async(lambda: app.pane.composer.attachments == files[1:])
    attachments = list(files)
    remove_attachment(attachments, "notes.md")
    assert attachments == files[1:]


async def test_queued_messages_are_listed_edited_and_removed() -> None:
    script = Script(["One.", "Two."], token_interval_s=0.01)
    script.may_continue.clear()
    app = make_scripted_app(script=script)
    async with app.run_test(size=(80, 30)) as pilot:
        await wait_until_ready(app)
        for text in ("First", "second question", "third question"):
            app.pane.submit(text)
        await until_async(lambda: "queued 1/2  second question" in screen_text(app))
        assert "queued 2/2  third question" in screen_text(app)
        column, row = bar_row(app, "third")
        await pilot.click(offset=(column, row))
        await until_async(lambda: app.pane.prompt.text == "third question")
        await until_async(lambda: "queued 1/1  second question" in screen_text(app))
        column, row = bar_row(app, "second question \u00d7")
        await pilot.click(offset=(column + len("second question "), row))
        await until_async(lambda: bar_text(app) == "")
        script.may_continue.set()
        await until_async(lambda: not app.pane.is_busy)
        assert [m.text for m in session(app).tree.path] == ["First", "One."]


async def test_refused_click_on_a_queued_message_does_not_hold_the_queue() -> None:
    script = Script(["One.", "Two."], token_interval_s=0.01)
    script.may_continue.clear()
    app = make_scripted_app(script=script)
    async with app.run_test(size=(80, 30)) as pilot:
        await wait_until_ready(app)
        for text in ("First", "second"):
            app.pane.submit(text)
        app.pane.prompt.load("a draft")
        await until_async(lambda: "queued 1/1  second" in screen_text(app))
        await pilot.click(offset=bar_row(app, "second"))
        await until_async(lambda: "first send or delete the text" in footer_text(app))
        assert "queued 1/1  second" in screen_text(app)
        script.may_continue.set()
        await until_async(lambda: len(session(app).tree) == 4 and not app.pane.is_busy)
        assert app.pane.prompt.text == "a draft"


async def test_escape_stops_and_brings_queued_messages_back_one_by_one() -> None:
    script = Script(["A long reply " * 50, "Two.", "Three."], pause_after_tokens=3)
    script.may_continue.clear()
    app = make_scripted_app(script=script)
    async with app.run_test(size=(80, 30)) as pilot:
        await wait_until_ready(app)
        for text in ("First", "second", "third", "fourth", "fifth"):
            app.pane.submit(text)
        await until_async(lambda: "and 2 more" in screen_text(app) and "A long" in screen_text(app))
        await pilot.press("escape")
        script.may_continue.set()
        await until_async(lambda: app.pane.prompt.text == "second" and not app.pane.is_busy)
        assert "held 1/3  third" in screen_text(app)
        assert len(session(app).tree) == 2
        await pilot.press("!", "enter")
        await until_async(lambda: "second!" in [m.text for m in session(app).tree.path])
        await until_async(lambda: session(app).tree.path[-2].text == "fifth" and not app.pane.is_busy)
        assert bar_text(app) == ""


async def test_up_in_the_empty_input_takes_the_last_queued_message_back() -> None:
    script = Script(["A reply of some words."])
    script.may_continue.clear()
    app = make_scripted_app(script=script)
    async with app.run_test(size=(100, 24)) as pilot:
        await wait_until_ready(app)
        for text in ("first", "second", "third"):
            app.pane.prompt.load(text)
            await pilot.press("enter")
        await until_async(lambda: "queued 2/2  third" in screen_text(app))
        await pilot.press("up")
        assert app.pane.prompt.text == "third"
        await until_async(lambda: "queued 1/1  second" in screen_text(app))
        await pilot.press("end", "!", "enter")
        await until_async(lambda: "queued 2/2  third!" in screen_text(app))
        await pilot.press("up", "up")  # the second key finds text in the input, so it goes to the history
        await until_async(lambda: app.pane.prompt.text == "third!" or app.pane.prompt.past_messages is not None)
        assert app.pane.composer.dequeue() is not None
        script.may_continue.set()
        await until_async(lambda: not app.pane.is_busy)


async def test_queue_says_how_to_take_a_message_back() -> None:
    script = Script(["A long answer."], token_interval_s=0.01)
    script.may_continue.clear()
    app = make_scripted_app(script=script, keys={"prompt.up": "f9,up"})
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until_ready(app)
        for n in range(5):
            app.pane.submit(f"question {n} " + "long " * 30)
            await pilot.pause()
            if n == 1:
                await until_async(lambda: "F9 in the empty input edits it" in screen_text(app))
        await until_async(lambda: "and 2 more  F9 in the empty input edits the last one" in screen_text(app))
        script.may_continue.set()
