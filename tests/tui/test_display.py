"""Statistics, reasoning, copying, and the screens for help and plan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from textual.geometry import Offset
from textual.selection import Selection
from textual.widgets import Input, OptionList, Static

from edgechat import paths
from edgechat.bench.scripted_session import Script
from edgechat.chat.messages import Conversation, Message, new_id
from edgechat.store import open_ephemeral_store, open_store
from edgechat.tui.app import ChatApp
from edgechat.tui.terminal_traits import BackgroundReported
from tests.tui.app_driver import (  # fmt: skip
    ask,
    is_open,
    make_app,
    make_scripted_app,
    problem_text,
    screen_text,
    session,
    shown_texts,
    title_text,
    wait_until_ready,
)
from tests.waiting import until_async

if TYPE_CHECKING:
    import pytest


async def test_statistics_are_toggled_with_ctrl_t() -> None:
    app = make_scripted_app()
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        await ask(app, "Question")
        assert "3 tokens" not in screen_text(app)
        await pilot.press("ctrl+t")
        await until_async(lambda: "3 tokens" in screen_text(app))
        assert "cached" in screen_text(app)
        await pilot.press("ctrl+t")
        await until_async(lambda: "3 tokens" not in screen_text(app))


async def test_answer_now_ends_the_reasoning_of_the_current_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(["<think>Let me think about it.</think>So."], token_interval_s=0.05, pause_after_tokens=7)
    script.may_continue.clear()
    app = make_scripted_app(script=script)
    ended_ids: list[int] = []

    def end_thinking(request_id: int) -> None:
        ended_ids.append(request_id)
        script.may_continue.set()

    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until_ready(app)
        monkeypatch.setattr(session(app).model.engine, "end_thinking", end_thinking)
        app.pane.prompt.load("Why?")
        app.pane.prompt.action_send()
        await until_async(lambda: "F5 answer now" in screen_text(app) and "Reasoning 0 s" in screen_text(app))
        await pilot.press("f5")
        await until_async(lambda: not app.pane.is_busy)
        assert len(ended_ids) == 1
        assert session(app).tree.path[-1].reasoning == "Let me think about it."
        assert session(app).tree.path[-1].text == "So."
        assert "answer now" not in screen_text(app)


async def test_answer_now_after_the_reasoning_is_a_short_notice() -> None:
    text = "So it is. " * 20
    script = Script([f"<think>Hm.</think>{text}"], token_interval_s=0.01, pause_after_tokens=40)
    script.may_continue.clear()
    app = make_scripted_app(script=script)
    async with app.run_test(size=(60, 24)) as pilot:
        await wait_until_ready(app)
        app.pane.prompt.load("Why?")
        app.pane.prompt.action_send()
        await until_async(lambda: "So" in screen_text(app))
        await pilot.press("f5", "f5")
        await until_async(lambda: "The model answers now" in screen_text(app))
        script.may_continue.set()
        await until_async(lambda: not app.pane.is_busy)
        await pilot.press("f5", "f5")
        await until_async(lambda: "No reply is being generated" in screen_text(app))
        assert screen_text(app).count("No reply is being generated") == 1
        assert not shown_texts(app, "error")
        assert not app.pane.prompt.text
        assert session(app).tree.path[-1].text == text


async def test_reasoning_is_collapsed_and_expands() -> None:
    store = open_ephemeral_store()
    conversation = Conversation(id=new_id(), title="Thought", created_at_ms=1)
    question = Message(id=new_id(), role="user", text="Why?")
    answer = Message(
        id=new_id(),
        parent_id=question.id,
        role="assistant",
        text="So.",
        reasoning="Let me think\nabout it.",
        finish_reason="stop",
    )
    store.append(conversation, [question, answer])
    app = make_scripted_app(store=store, conversation=store.conversation(conversation.id))
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        assert "▸ Reasoning (5 words)" in screen_text(app)
        assert "about it." not in screen_text(app)
        await pilot.press("escape", "t")
        await until_async(lambda: "about it." in screen_text(app))
        await pilot.press("t")
        await until_async(lambda: "about it." not in screen_text(app))
        row = next(i for i, line in enumerate(screen_text(app).splitlines()) if "Reasoning (" in line)
        await pilot.click(offset=(5, row))
        await until_async(lambda: "about it." in screen_text(app))


async def test_copy_goes_to_the_clipboard_and_to_a_file() -> None:
    store = open_store()
    app = make_scripted_app("Text.\n```py\ncode()\n```", store=store)
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        await ask(app, "Question")
        await pilot.press("escape", "y")
        assert app.clipboard == "Text.\n```py\ncode()\n```"
        await pilot.press("c")
        assert app.clipboard == "code()"
        assert (paths.cache_dir() / "copied.txt").read_text() == "code()"
        await pilot.press("up", "c")
        assert "no code" in problem_text(app)
        app.actions.run("copy", "")
        await until_async(lambda: app.clipboard.startswith("Text."))


def help_text(app: ChatApp) -> str:
    """Return the rows of the help, each description on one line."""
    options = app.screen.query_one(OptionList)
    rows = [str(options.get_option_at_index(i).prompt) for i in range(options.option_count)]
    return "\n".join(" ".join(row.split()) for row in rows)


async def test_help_lists_every_key_and_command() -> None:
    from edgechat.chat.commands import COMMANDS

    app = make_scripted_app(keys={"chat.search": "f7", "listing.leave": "f9"})
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until_ready(app)
        await pilot.press("f1")
        await until_async(lambda: is_open(app, "HelpScreen") and "Ask" in help_text(app))
        text = help_text(app)
        assert [k.description for k in app.list_key_bindings() if k.description not in text] == []
        assert [c.name for c in COMMANDS if f"/{c.name}" not in text] == []
        assert "F7 Search all conversations" in help_text(app)
        assert "chat.search" not in help_text(app)
        await pilot.press("f1")
        await until_async(lambda: "[chat.search]" in help_text(app))
        assert all(f"[{key.id}]" in help_text(app) for key in app.list_key_bindings())
        assert str(paths.config_file().name) in help_text(app)
        await pilot.press("f9")
        await until_async(lambda: not is_open(app, "HelpScreen"))


async def test_help_is_filtered_by_words_and_types_a_chosen_command() -> None:
    app = make_scripted_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until_ready(app)
        await pilot.press("f1")
        await until_async(lambda: is_open(app, "HelpScreen") and "Ask" in help_text(app))
        await pilot.press(*"copy code")
        await until_async(lambda: "Ask" not in help_text(app))
        assert "c Copy a code block by its number" in help_text(app)
        app.screen.query_one(Input).value = "no such words at all"
        await until_async(lambda: not help_text(app))
        await pilot.press("enter")
        app.screen.query_one(Input).value = "rename"
        await until_async(lambda: "/rename" in help_text(app))
        await pilot.press("enter")
        await until_async(lambda: app.pane.prompt.text == "/rename ")


def plan_text(app: ChatApp) -> str:
    return str(app.screen.query_one("#text", Static).content)


async def test_plan_screen_explains_the_settings(starter: Path) -> None:
    app = make_app(starter)
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        await pilot.press("f3")
        await until_async(lambda: is_open(app, "PlanScreen"))
        await until_async(lambda: "starter is the only installed model." in plan_text(app))
        assert plan_text(app).startswith("Model: starter.\n")
        assert "Ctrl+O shows the other models" in plan_text(app)
        assert "total" in plan_text(app)
        assert "n_ctx = 2048" in plan_text(app)
        assert title_text(app).startswith("New conversation · starter")
        await pilot.press("escape")


async def test_copied_code_has_no_wrap_marks() -> None:
    line = "merge_sort(values[:middle], values[middle:], key=key, reverse=reverse)"
    app = make_scripted_app(f"```\n{line}\nnext\n```")
    async with app.run_test(size=(40, 30)):
        await wait_until_ready(app)
        await ask(app, "Q")
        await until_async(lambda: "↪" in screen_text(app))
        rows = [i for i in range(20) if "merge_sort" in app.pane.transcript._render_row(i).text]
        selection = Selection(Offset(0, rows[0]), Offset(39, rows[0] + 2))
        copied = app.pane.transcript.get_selection(selection)
        assert copied is not None
        assert copied[0].splitlines()[0].strip() == line


async def test_conversation_is_centred_by_a_setting() -> None:
    app = make_scripted_app("word " * 80)
    async with app.run_test(size=(160, 30)):
        await wait_until_ready(app)
        await ask(app, "Q")
        await until_async(lambda: "word word" in screen_text(app))
        assert app.pane.transcript.region.x == 0
        app.apply_settings(msgspec.structs.replace(app.settings, centered=True))
        await until_async(lambda: app.pane.transcript.region.x == 28)
        assert app.pane.transcript.region.width == 104
        assert app.pane.prompt.region.width == 160


async def test_ascii_can_be_switched_while_the_chat_runs() -> None:
    app = make_scripted_app("An answer.")
    async with app.run_test():
        await wait_until_ready(app)
        await ask(app, "Question")
        assert "\u258c" in screen_text(app)
        app.apply_settings(msgspec.structs.replace(app.settings, ascii=True))
        await until_async(lambda: screen_text(app).isascii())
        app.apply_settings(msgspec.structs.replace(app.settings, ascii=None))
        await until_async(lambda: "\u258c" in screen_text(app))


async def test_theme_auto_is_followed_only_after_a_question() -> None:
    app = make_scripted_app()
    async with app.run_test():
        await wait_until_ready(app)
        assert app.theme == "textual-dark"
        app.post_message(BackgroundReported(is_light=True))
        await until_async(lambda: app.theme == "textual-light")
        app.post_message(BackgroundReported(is_light=False))
        app.apply_settings(msgspec.structs.replace(app.settings, theme="nord"))
        await until_async(lambda: app.theme == "nord")
        app.post_message(BackgroundReported(is_light=False))
        app.apply_settings(msgspec.structs.replace(app.settings, theme="auto"))
        await until_async(lambda: app.theme == "textual-light")
