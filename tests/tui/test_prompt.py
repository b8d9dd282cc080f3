"""The prompt: history, completion, attachments and pastes."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual import events as textual_events

from edgechat.store import open_ephemeral_store
from tests.tui.app_driver import (
    is_open,
    make_scripted_app,
    option_list,
    save_conversation,
    saved_texts,
    screen_text,
    session,
    shown_texts,
    wait_for_completions,
    wait_until_ready,
)  # fmt: skip
from tests.tui.drawing import wait_until_drawn
from tests.waiting import until_async


async def test_history_is_recalled_with_up_and_by_search() -> None:
    store = open_ephemeral_store()
    save_conversation(store, [("older", "x"), ("newer\nwith lines", "x")])
    app = make_scripted_app(store=store)
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        prompt = app.pane.prompt
        await pilot.press(*"dr")
        await pilot.press("up")
        await until_async(lambda: prompt.text == "newer\nwith lines")
        await pilot.press("up")
        assert prompt.text == "older"
        await pilot.press("up", "down")
        assert prompt.text == "newer\nwith lines"
        await pilot.press("down", "down")
        assert prompt.text == "dr"
        await pilot.press("ctrl+r", *"old")
        await until_async(lambda: is_open(app, "PickerScreen") and option_list(app).option_count == 1)
        await pilot.press("enter")
        await until_async(lambda: prompt.text == "older")
        await pilot.press("enter")
        await until_async(lambda: saved_texts(app) == ["older", "An answer."])


async def test_commands_and_file_names_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notes.txt").write_text("Remember the milk.")
    monkeypatch.chdir(tmp_path)
    app = make_scripted_app()
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        await pilot.press(*"/ren")
        popup = await wait_for_completions(app)
        await pilot.press("tab")
        assert app.pane.prompt.text == "/rename "
        await pilot.press("ctrl+u", *"Read @no")
        await wait_for_completions(app)
        await pilot.press("enter")
        assert app.pane.prompt.text == "Read @notes.txt "
        await pilot.press("enter")
        await until_async(lambda: len(session(app).tree) == 2)
        [attached] = session(app).tree.path[0].attachments
        assert session(app).store.read_attachment(attached.sha256) == b"Remember the milk."
        await until_async(lambda: "[notes.txt, 18 bytes]" in screen_text(app))
        await pilot.press("/")
        await wait_for_completions(app)
        await pilot.press("escape")
        assert not popup.display


async def test_binary_attachment_is_rejected_and_the_text_returns(tmp_path: Path) -> None:
    (tmp_path / "binary.bin").write_bytes(b"\xff\x00\xff")
    app = make_scripted_app()
    async with app.run_test():
        await wait_until_ready(app)
        app.pane.prompt.load(f"Read @{tmp_path}/binary.bin")
        app.pane.prompt.action_send()
        await until_async(lambda: shown_texts(app, "error"))
        assert "is not" in shown_texts(app, "error")[0]
        assert "binary.bin" in app.pane.prompt.text
        assert session(app).tree.path == []


@pytest.mark.parametrize("pasted", ["short\ntext", "line\r\n" * 5000, "x" * 100_000, "a\x1b[201~\x00b\x9b"])
async def test_paste_of_any_size_is_one_message(pasted: str) -> None:
    app = make_scripted_app()
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        await pilot.press(*"See: ")
        app.pane.prompt.post_message(textual_events.Paste(pasted))
        await until_async(lambda: len(app.pane.prompt.full_text) > 5)
        assert len(app.pane.prompt.text) < 10_000
        await pilot.press("enter")
        await until_async(lambda: len(session(app).tree) == 2 and not app.pane.is_busy)
        saved = saved_texts(app)[0]
        assert saved.startswith("See: ")
        assert not {"\x1b", "\x00", "\x9b", "\r"} & set(saved)
        assert len(saved) >= len(pasted.replace("\r\n", "\n").strip())


async def test_paste_larger_than_the_context_returns_to_the_prompt() -> None:
    app = make_scripted_app()
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        app.pane.prompt.post_message(textual_events.Paste("word " * 400_000))
        await until_async(lambda: app.pane.prompt.text)
        await pilot.press("enter")
        await until_async(lambda: shown_texts(app, "error"))
        assert "the context holds 32,768" in shown_texts(app, "error")[0]
        assert app.pane.prompt.full_text.split() == ["word"] * 400_000
        assert session(app).tree.path == []


async def test_pasted_line_separators_become_newlines_and_invisible_letters_stay() -> None:
    app = make_scripted_app()
    async with app.run_test():
        await wait_until_ready(app)
        prompt = app.pane.prompt
        prompt.post_message(textual_events.Paste("a\u2028b\u2029c\x85d \u2066x\u2069 \u0645\u06cc\u200c\u062e\x1b[2J"))
        await until_async(lambda: prompt.text)
        assert prompt.text == "a\nb\nc\nd \u2066x\u2069 \u0645\u06cc\u200c\u062e\N{SYMBOL FOR ESCAPE}[2J"
        prompt.load(prompt.text)
        assert prompt.text == "a\nb\nc\nd \u2066x\u2069 \u0645\u06cc\u200c\u062e\N{SYMBOL FOR ESCAPE}[2J"


async def test_footer_names_the_keys_of_completions_that_reopened_before_a_frame() -> None:
    """A key that arrives before the completions of the previous key closes the list until there are new ones."""
    app = make_scripted_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until_ready(app)
        await pilot.press("/")
        await wait_for_completions(app)
        assert "Tab accept" in screen_text(app)
        prompt = app.pane.prompt
        with app.batch_update():
            prompt._completion_text = ""  # as if the text had changed
            await pilot.press("r")
            await wait_for_completions(app)
        await wait_until_drawn()
        assert "Tab accept" in screen_text(app)
