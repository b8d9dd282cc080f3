"""Settings, personas, themes and keys, changed from the chat or loaded from files."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.widgets import Static

from edgechat import config, paths
from edgechat.config import load
from edgechat.errors import SettingsError
from edgechat.tui.app import ChatApp
from tests.models import write_parrot
from tests.tui.app_driver import (  # fmt: skip
    ask,
    is_open,
    make_app,
    make_scripted_app,
    option_list,
    option_texts,
    problem_text,
    saved_texts,
    screen_text,
    session,
    shown_messages,
    shown_texts,
    title_text,
    wait_until_ready,
)
from tests.waiting import until_async


async def test_settings_screen_validates_and_saves_changes() -> None:
    paths.config_file().parent.mkdir(parents=True)
    paths.config_file().write_text("# my file\ntop_k = 3\n")
    app = make_scripted_app()
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        await pilot.press("f2")
        await until_async(lambda: is_open(app, "SettingsScreen") and option_list(app).option_count > 20)
        await pilot.press(*"temper")
        await until_async(lambda: option_ids(app)[0] == "temperature")
        await pilot.press("enter", "ctrl+u", *"99", "enter")
        await until_async(lambda: notice(app) == "temperature must be a number between 0 and 10, not 99")
        await pilot.press("ctrl+u", *"hot", "enter")
        await until_async(lambda: notice(app) == "temperature must be a number between 0 and 10, not 'hot'")
        await pilot.press("ctrl+u", *"0.5", "enter")
        await until_async(lambda: load()[0].temperature == 0.5)
        await until_async(lambda: session(app).settings.temperature == 0.5)
        await pilot.pause()  # the message that the row is highlighted again must not replace the confirmation
        assert notice(app).startswith(f"temperature = 0.5, saved to {paths.config_file()}")
        await pilot.press("ctrl+u", *"titles")
        await until_async(lambda: option_ids(app)[0] == "titles")
        assert notice(app) == ""
        await pilot.press("enter")
        await until_async(lambda: load()[0].titles is True and notice(app).startswith("titles = yes"))
        await pilot.press("delete")
        await until_async(lambda: "titles" not in paths.config_file().read_text())
        assert paths.config_file().read_text().startswith("# my file\ntop_k = 3\n")
        await pilot.press("escape")


def option_ids(app: ChatApp) -> list[str]:
    return [option.id or "" for option in option_list(app).options]


def notice(app: ChatApp) -> str:
    return str(app.screen.query_one("#notice", Static).content)


async def test_settings_are_filtered_by_name_and_description() -> None:
    app = make_scripted_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until_ready(app)
        await pilot.press("f2")
        await until_async(lambda: is_open(app, "SettingsScreen") and option_list(app).option_count > 20)
        await until_async(lambda: "top_k" in "".join(option_texts(app)))  # the list knows its width
        rows = dict(zip(option_ids(app), option_texts(app), strict=True))
        assert {text.index(name, 20) for name, text in rows.items() if name} == {26}
        assert rows["top_k"].split() == ["Top-k", "top_k", "40"]
        assert rows["frequency_penalty"].index("0.0") == rows["top_k"].index("40")  # long names do not move values
        assert [text for text in option_texts(app) if len(text.split()) == 1] == ["Model", "Replies", "Screen", "Keys"]
        assert "Defaults of all conversations; /set NAME VALUE changes only the open one." in screen_text(app)
        await pilot.press(*"penalty")
        await until_async(lambda: "theme" not in option_ids(app))
        assert {"repeat_penalty", "presence_penalty", "frequency_penalty"} < set(option_ids(app))
        await pilot.press("ctrl+u", *"random")  # only in descriptions
        await until_async(lambda: set(option_ids(app)) == {"temperature", "seed"})
        await pilot.press("ctrl+u", *"zzz")
        await until_async(lambda: "No setting matches" in screen_text(app))
        await pilot.press("enter", "delete", "escape")
        await until_async(lambda: is_open(app, "ChatScreen"))


async def test_settings_screen_names_the_configured_keys() -> None:
    app = make_scripted_app(keys={"settings.reset": "f8", "listing.leave": "f9", "chat.help": "f10"})
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until_ready(app)
        await pilot.press("f2")
        await until_async(lambda: is_open(app, "SettingsScreen"))
        await until_async(lambda: "Enter: change   F8: default   F9: close" in screen_text(app))
        await pilot.press(*"key bind", "enter")
        await until_async(lambda: "F10 lists the actions" in notice(app))
        await pilot.press("f9")
        await until_async(lambda: is_open(app, "ChatScreen"))


async def test_themes_are_previewed_and_escape_restores_the_previous_one() -> None:
    app = make_scripted_app(theme="gruvbox")
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until_ready(app)
        await pilot.press("f2", *"theme")
        await until_async(lambda: is_open(app, "SettingsScreen") and option_ids(app)[0] == "theme")
        await pilot.press("enter")
        await until_async(lambda: is_open(app, "PickerScreen") and "gruvbox  (current)" in option_texts(app))
        highlighted = option_list(app).highlighted_option
        assert highlighted is not None
        assert highlighted.id == "gruvbox"
        await pilot.press("down")
        await until_async(lambda: app.theme not in {"gruvbox", "textual-dark"})
        await pilot.press(*"nord")
        await until_async(lambda: app.theme == "nord")
        assert app.current_theme.name == "nord"
        await pilot.press("escape")
        await until_async(lambda: app.theme == "gruvbox" and is_open(app, "SettingsScreen"))
        assert not paths.config_file().exists()
        await pilot.press("enter")
        await until_async(lambda: is_open(app, "PickerScreen"))
        await pilot.press(*"nord", "enter")
        await until_async(lambda: load()[0].theme == "nord" and app.theme == "nord")


async def test_flags_without_a_default_and_models_are_chosen_from_lists() -> None:
    paths.models_dir().mkdir(parents=True)
    first = write_parrot(paths.models_dir() / "bird.gguf", "Bird")
    app = make_scripted_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until_ready(app)
        await pilot.press("f2", *"reasoning")
        await until_async(lambda: is_open(app, "SettingsScreen") and option_ids(app)[0] == "reasoning")
        await pilot.press("enter")
        await until_async(lambda: is_open(app, "PickerScreen"))
        assert option_texts(app) == ["default  (current)", "yes", "no"]
        await pilot.press("down", "down", "enter")
        await until_async(lambda: load()[0].reasoning is False)
        await pilot.press("ctrl+u", *"model")
        await until_async(lambda: option_ids(app)[0] == "model")
        await pilot.press("enter")
        await until_async(lambda: is_open(app, "PickerScreen") and "bird" in option_ids(app))
        await pilot.press(*"bird", "enter")
        await until_async(lambda: load()[0].model == "bird")
        assert "used when a model is loaded next" in notice(app)
        await pilot.press("enter")
        await until_async(lambda: is_open(app, "PickerScreen") and "bird  (current)" in option_texts(app))
        await pilot.press(*"type a", "enter")
        await until_async(lambda: is_open(app, "SettingsScreen"))
        await pilot.press("ctrl+u", *str(first), "enter")
        await until_async(lambda: load()[0].model == str(first))
        await pilot.press("ctrl+u", *"draft_model")
        await until_async(lambda: option_ids(app)[0] == "draft_model")
        await pilot.press("enter")
        await until_async(lambda: is_open(app, "PickerScreen") and option_ids(app)[:2] == ["auto", "off"])
        assert "bird" in option_ids(app)
        await pilot.press("down", "enter")
        await until_async(lambda: load()[0].draft_model == "off")


async def test_conversation_settings_override_the_general_ones() -> None:
    app = make_scripted_app()
    async with app.run_test():
        await wait_until_ready(app)
        await ask(app, "Question")
        for command, notice in (
            ("/set temperature 0.1", "temperature = 0.1"),
            ("/system Be brief.", "System prompt changed"),
            ("/reasoning off", "Reasoning: off"),
            ("/set draft_model off", "draft_model is used when a model is loaded. Change it in /settings, then load"),
            ("/set theme nord", "theme is not a conversation setting"),
            ("/set temperature hot", "temperature must be"),
        ):
            app.pane.prompt.load(command)
            app.pane.prompt.action_send()
            await until_async(lambda: notice in app.pane.footer.notice)  # noqa: B023
        overrides = session(app).store.conversation(session(app).conversation.id).settings
        assert overrides == {"temperature": 0.1, "system_prompt": "Be brief.", "reasoning": False}
        assert session(app).settings.temperature == 0.1
        session(app)._flags = {"temperature": 0.3, "n_ctx": 512}  # as if given on the command line
        app.pane.prompt.load("/set n_ctx 5")
        app.pane.prompt.action_send()
        await until_async(lambda: "n_ctx was set on the command line" in app.pane.footer.notice)
        app.actions.run("set", "temperature 0.7")
        await until_async(lambda: session(app).settings.temperature == 0.7)
        app.actions.run("new", "")
        await until_async(lambda: not shown_messages(app))
        assert session(app).settings.temperature == 0.3


async def test_persona_sets_the_system_prompt() -> None:
    paths.personas_dir().mkdir(parents=True)
    (paths.personas_dir() / "pirate.toml").write_text('system_prompt = "Arr."\ntemperature = 0.9\n')
    (paths.personas_dir() / "broken.toml").write_text("temperature = 99\n")
    app = make_scripted_app()
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        await pilot.press("f4")
        await until_async(lambda: is_open(app, "PickerScreen") and option_list(app).option_count == 2)
        await pilot.press("down", "enter")
        await until_async(lambda: session(app).settings.system_prompt == "Arr.")
        app.actions.run("persona", "broken")
        await until_async(lambda: "temperature must be a number between 0 and 10" in problem_text(app))


async def test_invalid_theme_and_keys_are_reported_and_ignored() -> None:
    paths.themes_dir().mkdir(parents=True)
    (paths.themes_dir() / "mine.toml").write_text("primary = 'not a colour'\n")
    app = make_scripted_app(theme="mine", keys={"chat.help": "f9", "chat.nothing": "f1"})
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        notes = " ".join(shown_texts(app, "note"))
        assert "primary: 'not a colour' is not a valid colour" in notes
        assert "unknown name 'chat.nothing'" in notes
        assert app.theme == "textual-dark"
        await pilot.press("f9")
        await until_async(lambda: is_open(app, "HelpScreen"))
        await pilot.press("escape")


async def test_custom_theme_remapped_keys_and_vim_keys() -> None:
    paths.themes_dir().mkdir(parents=True)
    (paths.themes_dir() / "mine.toml").write_text("primary = '#ff0000'\ndark = false\nbackground = 'white'\n")
    app = make_scripted_app(theme="mine", keys={"prompt.send": "ctrl+l", "prompt.newline": "enter"}, vim_keys=True)
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        assert app.current_theme.primary == "#ff0000"
        await pilot.press("a", "enter", "b")
        assert app.pane.prompt.text == "a\nb"
        await pilot.press("ctrl+l")
        await until_async(lambda: saved_texts(app) == ["a\nb", "An answer."])
        await wait_until_ready(app)
        await pilot.press("escape", "k")
        assert app.pane.transcript.current_message is shown_messages(app)[0]
        await pilot.press("j")
        assert app.pane.transcript.current_message is shown_messages(app)[1]
        await pilot.press("i")
        assert app.pane.prompt.has_focus


async def test_persona_loads_its_own_model(tmp_path: Path) -> None:
    first, second = write_parrot(tmp_path / "first.gguf", "One"), write_parrot(tmp_path / "second.gguf", "Two")
    paths.personas_dir().mkdir(parents=True)
    (paths.personas_dir() / "other.toml").write_text(f'model = "{second}"\nsystem_prompt = "Be."\n')
    app = make_app(first)
    async with app.run_test():
        await wait_until_ready(app)
        app.actions.run("new", "other")
        await until_async(lambda: "second" in title_text(app) and not app.pane.is_busy)
        await ask(app, "Who?")
        assert saved_texts(app)[-1] == "Two"
        app.actions.run("set", f"model {first}")
        await until_async(lambda: "/model" in problem_text(app))


async def test_theme_command_saves_a_theme_by_name_or_from_a_list() -> None:
    app = make_scripted_app()
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        app.actions.run("theme", "nord")
        await until_async(lambda: app.theme == "nord" and load()[0].theme == "nord")
        app.actions.run("theme", "nrod")
        await until_async(lambda: "Unknown theme 'nrod'" in problem_text(app))
        app.actions.run("theme")
        await until_async(lambda: is_open(app, "PickerScreen"))
        assert "nord  (current)" in option_texts(app)
        await pilot.press(*"gruvbox", "enter")
        await until_async(lambda: load()[0].theme == "gruvbox")


@pytest.mark.parametrize("opens_settings", [True, False])
async def test_theme_that_cannot_be_saved_does_not_stay(
    monkeypatch: pytest.MonkeyPatch, *, opens_settings: bool
) -> None:
    def fail(*_arguments: object) -> None:
        raise SettingsError("Cannot change the file; nothing was written.")

    app = make_scripted_app(theme="textual-dark")
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        monkeypatch.setattr(config, "save", fail)
        if opens_settings:
            await pilot.press("f2")
            await until_async(lambda: is_open(app, "SettingsScreen"))
            await pilot.press(*"colour", "enter")
        else:
            app.actions.run("theme")
        await until_async(lambda: is_open(app, "PickerScreen"))
        await pilot.press(*"gruvbox")
        await until_async(lambda: app.theme == "gruvbox")
        await pilot.press("enter")
        await until_async(lambda: app.theme == "textual-dark")
