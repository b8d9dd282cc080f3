"""What people do in the chat, from the first message to a branched, searched, exported conversation."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from textual import events as textual_events
from textual.widgets import Input, OptionList, Static

from edgechat import paths
from edgechat.bench.scripted_session import Script
from edgechat.chat import unsent_messages
from edgechat.chat.messages import Conversation, Message, new_id
from edgechat.cli.history_store import open_history
from edgechat.config import Settings, load
from edgechat.store import ephemeral_store, open_store
from edgechat.tui.app import ChatApp
from edgechat.tui.clipboard import osc52_sequence
from edgechat.tui.widgets.sidebar import Sidebar
from tests.models import write_parrot
from tests.tui.driving import (
    an_app,
    ask,
    keep_conversation,
    live,
    messages,
    ready,
    said,
    screen_text,
    scripted,
    session,
    texts,
)  # fmt: skip
from tests.waiting import until_async


def options(app: ChatApp, selector: str = "OptionList") -> OptionList:
    return app.screen.query(selector).first(OptionList)


def on(app: ChatApp, screen: str) -> bool:
    """True if this screen is in front, and made."""
    return type(app.screen).__name__ == screen and app.screen.is_mounted


def listed(app: ChatApp, selector: str = "OptionList") -> list[str]:
    return [str(o.prompt) for o in options(app, selector).options]


# Branches


async def test_an_edit_is_an_alternative_and_both_are_kept() -> None:
    app = scripted("First.", "Second.", "Third.")
    async with app.run_test() as pilot:
        await ready(app)
        await ask(app, "Question")
        await pilot.press("escape")
        await pilot.press("e")
        assert app.chat.prompt.text == "Question"
        assert "editing" in live(app)
        await pilot.press(*" again", "enter")
        await until_async(lambda: not app.chat.is_busy and len(session(app).tree) == 4)
        assert said(app) == ["Question again", "Second."]
        assert [e.alternative for e in messages(app)] == [(2, 2), (1, 1)]
        assert "‹2/2›" in screen_text(app)  # noqa: RUF001
        await pilot.press("alt+left")
        await until_async(lambda: texts(app, "user") == ["Question"])
        assert said(app) == ["Question", "First."]
        app.actions.run("switch", "2")
        await until_async(lambda: texts(app, "user") == ["Question again"])


async def test_an_edit_can_be_given_up() -> None:
    app = scripted()
    async with app.run_test() as pilot:
        await ready(app)
        await ask(app, "Question")
        app.actions.run("edit", "")
        assert app.chat.composer.editing is not None
        await pilot.press("escape")
        assert app.chat.composer.editing is None
        assert app.chat.prompt.text == ""


async def test_another_answer_and_a_branch() -> None:
    app = scripted("One.", "Two.", "Three.")
    async with app.run_test() as pilot:
        await ready(app)
        await ask(app, "Question")
        await pilot.press("escape", "r")
        await until_async(lambda: not app.chat.is_busy and len(session(app).tree) == 3)
        assert said(app) == ["Question", "Two."]
        await pilot.press("left")
        await until_async(lambda: texts(app, "assistant") == ["One."])
        await ask(app, "More")
        assert said(app) == ["Question", "One.", "More", "Three."]
        await pilot.press("home", "down")
        assert app.chat.transcript.current_message is messages(app)[1]
        await pilot.press("b")
        await until_async(lambda: len(messages(app)) == 2)
        await ask(app, "Instead")
        assert [e.alternative for e in messages(app)][2] == (2, 2)
        assert said(app)[2] == "Instead"


async def test_a_stopped_answer_is_kept_and_goes_on() -> None:
    script = Script(["Word after word after word.", " And more."], token_s=0.01)
    script.may_continue.clear()
    app = scripted(script=script)
    async with app.run_test() as pilot:
        await ready(app)
        app.chat.prompt.load("Go")
        await pilot.press("enter")
        await until_async(lambda: texts(app, "assistant") == ["Word"])
        await pilot.press("escape")
        script.may_continue.set()
        await until_async(lambda: not app.chat.is_busy)
        begun = said(app)[1]
        assert begun.startswith("Word")
        assert "(stopped; /continue resumes the reply)" in screen_text(app)
        app.actions.run("continue", "")
        await until_async(lambda: not app.chat.is_busy and said(app)[1].endswith("more."))
        assert said(app)[1] == f"{begun} And more."
        assert texts(app, "assistant") == [said(app)[1]]


async def test_deleted_and_brought_back() -> None:
    app = scripted()
    async with app.run_test() as pilot:
        await ready(app)
        await ask(app, "One")
        await ask(app, "Two")
        await pilot.press("escape", "up", "d")
        assert len(session(app).tree) == 4  # asked for once: nothing yet
        await pilot.press("d")
        await until_async(lambda: len(messages(app)) == 2)
        assert said(app) == ["One", "An answer."]
        await pilot.press("u")
        await until_async(lambda: len(messages(app)) == 4)
        app.chat.prompt.load("/delete")
        app.chat.prompt.action_send()
        await until_async(lambda: len(messages(app)) == 2)


# Conversations


async def test_a_conversation_goes_on_where_it_was_left(starter: Path) -> None:
    store = ephemeral_store()
    about = keep_conversation(store, [(f"question {i}", f"answer \x1b[31m{i}") for i in range(30)])
    app = scripted(store=store, conversation=about)
    async with app.run_test():
        await ready(app)
        assert texts(app, "user") == [f"question {i}" for i in range(30)]
        assert "answer ␛[31m29" in screen_text(app)
        await until_async(lambda: "context 0/" not in live(app))
        await ask(app, "More")
        assert said(app)[-2:] == ["More", "An answer."]


async def test_the_list_is_narrowed_and_leads_to_conversations() -> None:
    store = ephemeral_store()
    for title in ("Boats", "Trees", "More boats"):
        keep_conversation(store, [(f"about {title}", "yes")], title)
    app = scripted(store=store)
    async with app.run_test() as pilot:
        await ready(app)
        await pilot.press("ctrl+b")
        await until_async(
            lambda: app.screen.query("#conversations") and options(app, "#conversations").option_count == 4
        )
        await pilot.press(*"boats")
        await until_async(lambda: options(app, "#conversations").option_count == 3)
        assert [line.strip("* ") for line in listed(app, "#conversations")[1:]] == ["More boats", "Boats"]
        await pilot.press("enter")
        await until_async(lambda: texts(app, "user") == ["about More boats"])
        assert app.chat.prompt.has_focus
        await pilot.press("ctrl+n")
        await until_async(lambda: messages(app) == [])
        await ask(app, "Something new")
        await until_async(
            lambda: (
                any("Something new" in line for line in listed(app, "#conversations"))
                or app.chat.query_one("#filter", Input).value
            )
        )
        assert len(store.list_conversations()) == 4


async def test_pinned_and_deleted_from_the_list() -> None:
    store = ephemeral_store()
    for title in ("Boats", "Trees"):
        keep_conversation(store, [(f"about {title}", "yes")], title)
    app = scripted(store=store)
    async with app.run_test() as pilot:
        await ready(app)
        await pilot.press("ctrl+b", "down")
        await until_async(lambda: options(app, "#conversations").option_count == 3)
        options(app, "#conversations").highlighted = 2
        await pilot.press("ctrl+s")
        await until_async(lambda: listed(app, "#conversations")[0] == "pinned")
        assert store.list_conversations()[0].conversation.title == "Boats"
        options(app, "#conversations").highlighted = 1
        await pilot.press("ctrl+x")
        assert len(store.list_conversations()) == 2  # asked for once: nothing yet
        await pilot.press("ctrl+x")
        await until_async(lambda: len(store.list_conversations()) == 1)
        await pilot.press("escape")
        assert not app.chat.query_one(Sidebar).display


async def test_search_leads_to_a_message_on_another_branch() -> None:
    store = ephemeral_store()
    about = keep_conversation(store, [("common", "a zebra"), ("more", "end")], "Animals")
    first = store.messages(about.id)[0]
    other = Message(id=new_id(), parent_id=first.id, role="assistant", text="a giraffe", finish_reason="stop")
    store.append(about, [other])
    app = scripted(store=store)
    async with app.run_test() as pilot:
        await ready(app)
        await pilot.press("ctrl+f", *"zebra")
        await until_async(lambda: on(app, "SearchScreen") and options(app).option_count == 1)
        await until_async(lambda: "a zebra" in str(app.screen.query_one("#preview", Static).content))
        await pilot.press("enter")
        await until_async(lambda: texts(app, "assistant") == ["a zebra", "end"])
        assert app.chat.transcript.current_message is messages(app)[1]
        app.actions.run("search", "nowhere to be found")
        await until_async(
            lambda: (
                app.screen.query("#preview")
                and "nothing was found" in str(app.screen.query_one("#preview", Static).content)
            )
        )
        await pilot.press("escape")


async def test_renamed_pinned_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    app = scripted("**bold**")
    async with app.run_test():
        await ready(app)
        app.actions.run("export", "")
        assert "nothing was said" in texts(app, "error")[0]
        await ask(app, "Question")
        for command in (
            "/rename A new name",
            "/pin",
            "/export",
            "/export out.json",
            "/export out.html",
            "/export out.pdf",
        ):
            app.chat.prompt.load(command)
            app.chat.prompt.action_send()
        await until_async(lambda: len(texts(app, "error")) == 2)
        about = session(app).store.conversation(session(app).conversation.id)
        assert (about.title, about.pinned) == ("A new name", True)
        assert "**bold**" in (tmp_path / "A-new-name.md").read_text()
        assert json.loads((tmp_path / "out.json").read_text())
        assert "<strong>bold</strong>" in (tmp_path / "out.html").read_text()
        assert "out.pdf" in texts(app, "error")[1]


# Input


async def test_what_was_said_comes_back_with_up_and_by_search() -> None:
    store = ephemeral_store()
    keep_conversation(store, [("older", "x"), ("newer\nwith lines", "x")])
    app = scripted(store=store)
    async with app.run_test() as pilot:
        await ready(app)
        prompt = app.chat.prompt
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
        await until_async(lambda: on(app, "PickerScreen") and options(app).option_count == 1)
        await pilot.press("enter")
        await until_async(lambda: prompt.text == "older")
        await pilot.press("enter")
        await until_async(lambda: said(app) == ["older", "An answer."])


async def test_commands_and_files_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notes.txt").write_text("Remember the milk.")
    monkeypatch.chdir(tmp_path)
    app = scripted()
    async with app.run_test() as pilot:
        await ready(app)
        await pilot.press(*"/ren")
        await until_async(
            lambda: app.chat.query("CompletionPopup").first().display if app.chat.query("CompletionPopup") else False
        )
        popup = app.chat.query_one("CompletionPopup", OptionList)
        await pilot.press("tab")
        assert app.chat.prompt.text == "/rename "
        await pilot.press("ctrl+u", *"Read @no")
        await until_async(lambda: popup.display)
        await pilot.press("enter")
        assert app.chat.prompt.text == "Read @notes.txt "
        await pilot.press("enter")
        await until_async(lambda: len(session(app).tree) == 2)
        [attached] = session(app).tree.path[0].attachments
        assert session(app).store.read_attachment(attached.sha256) == b"Remember the milk."
        await until_async(lambda: "[notes.txt, 18 bytes]" in screen_text(app))
        await pilot.press("/")
        await until_async(lambda: popup.display)
        await pilot.press("escape")
        assert not popup.display


async def test_a_file_that_cannot_go_along_is_said_and_nothing_is_lost(tmp_path: Path) -> None:
    (tmp_path / "binary.bin").write_bytes(b"\xff\x00\xff")
    app = scripted()
    async with app.run_test():
        await ready(app)
        app.chat.prompt.load(f"Read @{tmp_path}/binary.bin")
        app.chat.prompt.action_send()
        await until_async(lambda: texts(app, "error"))
        assert "neither UTF-8 text nor a picture" in texts(app, "error")[0]
        assert "binary.bin" in app.chat.prompt.text
        assert session(app).tree.path == []


@pytest.mark.parametrize("pasted", ["short\ntext", "line\r\n" * 5000, "x" * 100_000, "a\x1b[201~\x00b\x9b"])
async def test_a_paste_is_one_message(pasted: str) -> None:
    app = scripted()
    async with app.run_test() as pilot:
        await ready(app)
        await pilot.press(*"See: ")
        app.chat.prompt.post_message(textual_events.Paste(pasted))
        await until_async(lambda: len(app.chat.prompt.full_text) > 5)
        assert len(app.chat.prompt.text) < 10_000
        await pilot.press("enter")
        await until_async(lambda: len(session(app).tree) == 2 and not app.chat.is_busy)
        kept = said(app)[0]
        assert kept.startswith("See: ")
        assert not {"\x1b", "\x00", "\x9b", "\r"} & set(kept)
        assert len(kept) >= len(pasted.replace("\r\n", "\n").strip())


async def test_a_paste_beyond_the_context_comes_back_whole() -> None:
    app = scripted()
    async with app.run_test() as pilot:
        await ready(app)
        app.chat.prompt.post_message(textual_events.Paste("word " * 400_000))
        await until_async(lambda: app.chat.prompt.text)
        await pilot.press("enter")
        await until_async(lambda: texts(app, "error"))
        assert "the context holds 32768" in texts(app, "error")[0]
        assert app.chat.prompt.full_text.split() == ["word"] * 400_000
        assert session(app).tree.path == []


async def test_a_draft_survives_a_crash() -> None:
    store = open_store()
    about = keep_conversation(store, [("a", "b")])
    for conversation in (None, about):
        app = scripted(store=store, conversation=conversation)
        async with app.run_test() as pilot:
            await ready(app)
            await pilot.press(*"half a thou")
            await until_async(lambda: unsent_messages.load(about.id if conversation else "") == "half a thou")  # noqa: B023
        # No goodbye: as if it had been killed here.
        again = scripted(store=store, conversation=conversation)
        async with again.run_test() as pilot:
            await until_async(lambda: again.chat.prompt.text == "half a thou")  # noqa: B023
            await ready(again)
            await pilot.press("enter")
            await until_async(lambda: not unsent_messages.load(about.id if conversation else ""))  # noqa: B023
            await ready(again)
    store.close()


async def test_an_ephemeral_draft_is_not_written() -> None:
    app = scripted()
    async with app.run_test() as pilot:
        await ready(app)
        await pilot.press(*"secret")
        await pilot.pause(0.6)
        assert not paths.unsent_messages_dir().exists()


# Settings, keys, looks


async def test_settings_are_changed_checked_and_kept() -> None:
    paths.config_file().parent.mkdir(parents=True)
    paths.config_file().write_text("# my file\ntop_k = 3\n")
    app = scripted()
    async with app.run_test() as pilot:
        await ready(app)
        await pilot.press("f2")
        await until_async(lambda: on(app, "SettingsScreen") and options(app).option_count > 20)
        names = list(Settings.__struct_fields__)
        options(app).highlighted = names.index("temperature")
        await pilot.press("enter", "ctrl+u", *"99", "enter")
        await pilot.pause()
        assert "not between" in str(app.screen.query_one("#words", Static).content)
        await pilot.press("ctrl+u", *"0.5", "enter")
        await until_async(lambda: load()[0].temperature == 0.5)
        await until_async(lambda: session(app).settings.temperature == 0.5)
        options(app).highlighted = names.index("titles")
        await pilot.press("enter")
        await until_async(lambda: load()[0].titles is True)
        await pilot.press("delete")
        assert paths.config_file().read_text().startswith("# my file\ntop_k = 3\n")
        options(app).highlighted = names.index("theme")
        await pilot.press("enter", *"nord")
        await until_async(lambda: on(app, "PickerScreen") and options(app).option_count == 1)
        await pilot.press("enter")
        await until_async(lambda: app.theme == "nord")
        assert load()[0].theme == "nord"
        await pilot.press("escape")


async def test_a_conversation_has_settings_of_its_own() -> None:
    app = scripted()
    async with app.run_test():
        await ready(app)
        await ask(app, "Question")
        for command in (
            "/set temperature 0.1",
            "/system Be brief.",
            "/reasoning off",
            "/set n_ctx 5",
            "/set temperature hot",
        ):
            app.chat.prompt.load(command)
            app.chat.prompt.action_send()
        await until_async(lambda: len(texts(app, "error")) == 2)
        kept = session(app).store.conversation(session(app).conversation.id).settings
        assert kept == {"temperature": 0.1, "system_prompt": "Be brief.", "reasoning": False}
        assert session(app).settings.temperature == 0.1
        session(app)._flags = {"temperature": 0.3}  # as from the command line
        app.actions.run("set", "temperature 0.7")
        await until_async(lambda: session(app).settings.temperature == 0.7)
        app.actions.run("new", "")
        await until_async(lambda: not messages(app))
        assert session(app).settings.temperature == 0.3


async def test_a_persona_answers() -> None:
    paths.personas_dir().mkdir(parents=True)
    (paths.personas_dir() / "pirate.toml").write_text('system_prompt = "Arr."\ntemperature = 0.9\n')
    (paths.personas_dir() / "broken.toml").write_text("temperature = 99\n")
    app = scripted()
    async with app.run_test() as pilot:
        await ready(app)
        await pilot.press("f4")
        await until_async(lambda: on(app, "PickerScreen") and options(app).option_count == 2)
        await pilot.press("down", "enter")
        await until_async(lambda: session(app).settings.system_prompt == "Arr.")
        app.actions.run("persona", "broken")
        assert "not between" in texts(app, "error")[0]


async def test_wrong_themes_and_keys_are_named_and_defaults_used() -> None:
    paths.themes_dir().mkdir(parents=True)
    (paths.themes_dir() / "mine.toml").write_text("primary = 'no colour'\n")
    app = scripted(theme="mine", keys={"chat.help": "f9", "chat.nothing": "f1"})
    async with app.run_test() as pilot:
        await ready(app)
        notes = " ".join(texts(app, "note"))
        assert "primary is 'no colour'" in notes
        assert "unknown name 'chat.nothing'" in notes
        assert app.theme == "textual-dark"
        await pilot.press("f9")
        await until_async(lambda: on(app, "HelpScreen"))
        await pilot.press("escape")


async def test_a_theme_of_ones_own_and_other_keys_to_send() -> None:
    paths.themes_dir().mkdir(parents=True)
    (paths.themes_dir() / "mine.toml").write_text("primary = '#ff0000'\ndark = false\nbackground = 'white'\n")
    app = scripted(theme="mine", keys={"prompt.send": "ctrl+l", "prompt.newline": "enter"}, vim_keys=True)
    async with app.run_test() as pilot:
        await ready(app)
        assert app.current_theme.primary == "#ff0000"
        await pilot.press("a", "enter", "b")
        assert app.chat.prompt.text == "a\nb"
        await pilot.press("ctrl+l")
        await until_async(lambda: said(app) == ["a\nb", "An answer."])
        await ready(app)
        await pilot.press("escape", "k")
        assert app.chat.transcript.current_message is messages(app)[0]
        await pilot.press("j")
        assert app.chat.transcript.current_message is messages(app)[1]
        await pilot.press("i")
        assert app.chat.prompt.has_focus


async def test_figures_are_shown_on_demand() -> None:
    app = scripted()
    async with app.run_test() as pilot:
        await ready(app)
        await ask(app, "Question")
        assert "3 tokens" not in screen_text(app)
        await pilot.press("ctrl+t")
        await until_async(lambda: "3 tokens" in screen_text(app))
        assert "cached" in screen_text(app)
        await pilot.press("ctrl+t")
        await until_async(lambda: "3 tokens" not in screen_text(app))


async def test_reasoning_is_folded_and_unfolds() -> None:
    store = ephemeral_store()
    about = Conversation(id=new_id(), title="Thought", created_at_ms=1)
    question = Message(id=new_id(), role="user", text="Why?")
    answer = Message(
        id=new_id(),
        parent_id=question.id,
        role="assistant",
        text="So.",
        reasoning="Let me think\nabout it.",
        finish_reason="stop",
    )
    store.append(about, [question, answer])
    app = scripted(store=store, conversation=store.conversation(about.id))
    async with app.run_test() as pilot:
        await ready(app)
        assert "▸ reasoning (5 words)" in screen_text(app)
        assert "about it." not in screen_text(app)
        await pilot.press("escape", "t")
        await until_async(lambda: "about it." in screen_text(app))
        await pilot.press("t")
        await until_async(lambda: "about it." not in screen_text(app))
        row = next(i for i, line in enumerate(screen_text(app).splitlines()) if "reasoning (" in line)
        await pilot.click("#transcript", offset=(5, row))
        await until_async(lambda: "about it." in screen_text(app))


# Copying


async def test_copied_to_the_clipboard_and_to_a_file() -> None:
    store = open_store()
    app = scripted("Text.\n```py\ncode()\n```", store=store)
    async with app.run_test() as pilot:
        await ready(app)
        await ask(app, "Question")
        await pilot.press("escape", "y")
        assert app.clipboard == "Text.\n```py\ncode()\n```"
        await pilot.press("c")
        assert app.clipboard == "code()"
        assert (paths.cache_dir() / "copied.txt").read_text() == "code()"
        await pilot.press("up", "c")
        assert "no code" in texts(app, "error")[0]
        app.actions.run("copy", "")
        assert app.clipboard.startswith("Text.")


def test_sequences_for_terminals_and_what_stands_between() -> None:
    plain = "\x1b]52;c;" + base64.b64encode(b"hi").decode() + "\x07"
    assert osc52_sequence("hi", {}) == plain
    assert osc52_sequence("hi", {"TMUX": "x"}) == "\x1bPtmux;\x1b" + plain + "\x1b\\"
    parts = osc52_sequence("x" * 2000, {"STY": "x"}).split("\x1b\\")
    assert all(len(part) <= 768 for part in parts)
    assert "".join(part.removeprefix("\x1bP") for part in parts) == osc52_sequence("x" * 2000, {})


# Everything


async def test_help_shows_every_key_and_command() -> None:
    from edgechat.chat.commands import COMMANDS

    app = scripted(keys={"chat.search": "f7", "text.leave": "f9"})
    async with app.run_test() as pilot:
        await ready(app)
        await pilot.press("f1")
        await until_async(lambda: on(app, "HelpScreen"))
        words = str(app.screen.query_one("#text", Static).content)
        assert all(key.id in words and key.description in words for key in app.all_keys())
        assert all(f"/{c.name}" in words for c in COMMANDS)
        assert "F7" in words
        await pilot.press("f9")
        await until_async(lambda: not on(app, "HelpScreen"))


async def test_the_plan_says_why(starter: Path) -> None:
    app = an_app(starter)
    async with app.run_test() as pilot:
        await ready(app)
        await pilot.press("f3")
        await until_async(lambda: on(app, "PlanScreen"))
        words = str(app.screen.query_one("#text", Static).content)
        assert "together" in words
        assert "n_ctx = 2048: as set" in words or "n_ctx = 2048" in words
        await pilot.press("escape")


# What must not get lost


async def test_what_cannot_be_sent_for_want_of_a_model_comes_back(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_text("no model")
    app = an_app(broken)
    async with app.run_test() as pilot:
        await until_async(lambda: texts(app, "error") and not app.chat.is_busy)
        app.chat.prompt.load("Precious words")
        await pilot.press("enter")
        await until_async(lambda: len(texts(app, "error")) == 2)
        assert app.chat.prompt.text == "Precious words"


async def test_what_waits_comes_back_when_the_first_load_fails(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_text("no model")
    app = an_app(broken)
    async with app.run_test() as pilot:
        app.chat.prompt.load("Precious words")
        await pilot.press("enter")
        await until_async(lambda: texts(app, "error") and not app.chat.is_busy)
        await pilot.press("escape")
        assert app.chat.prompt.text == "Precious words"


async def test_a_command_that_fails_does_not_end_an_answer() -> None:
    script = Script(["A very long answer indeed."], token_s=0.01)
    script.may_continue.clear()
    app = scripted(script=script)
    async with app.run_test() as pilot:
        await ready(app)
        app.chat.prompt.load("Go")
        await pilot.press("enter")
        await until_async(lambda: texts(app, "assistant") == ["A ve"])
        app.actions.run("export", "bad.xyz")
        app.chat.prompt.load("Next")
        await pilot.press("enter")
        script.may_continue.set()
        await until_async(lambda: texts(app, "error") and len(texts(app, "user")) == 2)
        assert app.chat.is_busy or len(session(app).tree) == 4
        await ready(app)
        await until_async(lambda: len(said(app)) == 4)


async def test_leaving_keeps_what_was_typed_and_what_waits() -> None:
    store = open_store()
    script = Script(["Word after word."], token_s=0.01)
    script.may_continue.clear()
    app = scripted(store=store, script=script)
    async with app.run_test() as pilot:
        await ready(app)
        app.chat.prompt.load("First")
        await pilot.press("enter")
        await until_async(lambda: texts(app, "assistant") == ["Word"])
        app.chat.prompt.load("Waits")
        await pilot.press("enter", *"typed", "ctrl+q")
        await until_async(lambda: app.return_code == 0)
    about = open_store().list_conversations()[0].conversation
    assert unsent_messages.load(about.id) == "Waits\n\ntyped"
    assert unsent_messages.load("") == ""


async def test_what_is_typed_stays_with_its_conversation() -> None:
    store = open_history()
    one, two = keep_conversation(store, [("a", "b")], "One"), keep_conversation(store, [("c", "d")], "Two")
    app = scripted(store=store, conversation=one)
    async with app.run_test() as pilot:
        await ready(app)
        await pilot.press(*"about one")
        app.actions.go_to(two.id)
        await until_async(lambda: texts(app, "user") == ["c"])
        assert app.chat.prompt.text == ""
        app.actions.go_to(one.id)
        await until_async(lambda: app.chat.prompt.text == "about one")
        app.actions.edit_message(app.chat.last_message)
        await pilot.press("escape")
        assert app.chat.prompt.text == "about one"
        store.delete_conversation(two.id)
        assert not (paths.unsent_messages_dir() / f"{two.id}.txt").exists()


async def test_an_edit_that_does_not_fit_is_an_edit_again(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    app = scripted()
    async with app.run_test() as pilot:
        await ready(app)
        await ask(app, "Question")
        app.actions.edit_message(app.chat.last_message)
        editing = app.chat.composer.editing
        app.chat.prompt.load("word " * 40_000)
        await pilot.press("enter")
        await until_async(lambda: texts(app, "error"))
        assert app.chat.composer.editing == editing
        app.actions.run("attach", "~nosuchuser/x")
        assert "names no file" in texts(app, "error")[1] or "Cannot read" in texts(app, "error")[1]


async def test_nothing_from_outside_acts_on_the_terminal() -> None:
    store = ephemeral_store()
    about = keep_conversation(store, [("\x1b]52;c;eA==\x07 evil", "x")], "evil \x1b[2J title")
    app = scripted(store=store, conversation=about)
    async with app.run_test() as pilot:
        await ready(app)
        await pilot.press("up")
        await until_async(lambda: "evil" in app.chat.prompt.text)
        assert "\x1b" not in app.chat.prompt.text
        app.notify("evil \x1b[2J [bold]title")
        await until_async(lambda: list(app._notifications))
        [toast] = app._notifications
        assert toast.message == "evil ␛[2J [bold]title"


async def test_a_persona_with_a_model_of_its_own(tmp_path: Path) -> None:
    first, second = write_parrot(tmp_path / "first.gguf", "One"), write_parrot(tmp_path / "second.gguf", "Two")
    paths.personas_dir().mkdir(parents=True)
    (paths.personas_dir() / "other.toml").write_text(f'model = "{second}"\nsystem_prompt = "Be."\n')
    app = an_app(first)
    async with app.run_test():
        await ready(app)
        app.actions.run("new", "other")
        await until_async(lambda: "second" in live(app) and not app.chat.is_busy)
        await ask(app, "Who?")
        assert said(app)[-1] == "Two"
        app.actions.run("set", f"model {first}")
        await until_async(lambda: texts(app, "error"))
        assert "/model" in texts(app, "error")[0]
