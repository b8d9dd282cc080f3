"""The command palette finds everything by words, and does what is chosen."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from rich.cells import cell_len

from edgechat import paths
from edgechat.bench.scripted_session import Script
from edgechat.store import open_ephemeral_store
from edgechat.tui import palette_sources
from edgechat.tui.app import ChatApp
from edgechat.tui.palette_entries import PaletteEntry
from edgechat.tui.recent_choices import RecentChoices
from edgechat.tui.screens.command_palette import format_entry
from tests.tui.app_driver import (
    is_open,
    make_scripted_app,
    option_list,
    option_texts,
    save_conversation,
    session,
    shown_texts,
    wait_until_ready,
)  # fmt: skip
from tests.tui.test_search import marked_texts
from tests.waiting import until_async

if TYPE_CHECKING:
    from collections.abc import Iterator

    from textual.pilot import Pilot

    from edgechat.chat.store import Store


def make_store() -> Store:
    store = open_ephemeral_store()
    save_conversation(store, [("How do trees grow?", "From seeds, slowly.")], "Trees and forests")
    save_conversation(store, [("Who builds boats?", "A shipwright builds a wooden boat.")], "Boats")
    return store


async def open_palette(app: ChatApp, pilot: Pilot[int], query: str = "", first: str = "") -> None:
    """Open the palette, type the query, and wait until the first row contains the words of `first`."""
    await wait_until_ready(app)
    await pilot.press("ctrl+p", *query)
    await until_async(lambda: is_open(app, "CommandPaletteScreen") and option_list(app).option_count > 0)
    await until_async(
        lambda: set(first.split()) <= set((option_texts(app) or [""])[0].split()),
        description=lambda: f"{first!r} comes first: {option_texts(app)[:5]}",
    )


async def test_palette_lists_useful_commands_with_their_keys_first() -> None:
    app = make_scripted_app(store=make_store(), keys={"chat.search": "f7"})
    async with app.run_test(size=(100, 30)) as pilot:
        await open_palette(app, pilot, "", "New")
        rows = [row.split() for row in option_texts(app)]
        assert rows[0][:2] == ["command", "New"]
        assert rows[0][-1] == "Ctrl+N"
        assert next(row for row in rows if row[1] == "Search")[-1] == "F7"
        await until_async(lambda: any("Trees and forests" in row for row in option_texts(app)))
        widths = {cell_len(row) for row in option_texts(app) if row.split()[-1].startswith(("Ctrl", "F"))}
        assert len(widths) == 1  # keys are aligned at the right


async def test_chosen_conversation_opens() -> None:
    app = make_scripted_app(store=make_store())
    async with app.run_test(size=(100, 30)) as pilot:
        await open_palette(app, pilot, "forests tre", "conversation Trees")
        await pilot.press("enter")
        await until_async(lambda: shown_texts(app, "user") == ["How do trees grow?"])
        assert app.pane.prompt.has_focus


async def test_chosen_message_is_shown_with_its_words_marked() -> None:
    app = make_scripted_app(store=make_store())
    async with app.run_test(size=(100, 30)) as pilot:
        await open_palette(app, pilot, "shipwright wooden", "message shipwright")
        await pilot.press("enter")
        await until_async(lambda: marked_texts(app) == ["shipwright", "wooden"])


async def test_chosen_theme_is_set_and_then_comes_first() -> None:
    app = make_scripted_app(store=make_store())
    async with app.run_test(size=(100, 30)) as pilot:
        await open_palette(app, pilot, "theme mocha", "theme catppuccin-mocha")
        await pilot.press("enter")
        await until_async(lambda: app.theme == "catppuccin-mocha")
        await open_palette(app, pilot, "", "theme catppuccin-mocha")
        assert "current" in option_texts(app)[0]


async def test_chosen_setting_is_highlighted_in_the_settings() -> None:
    app = make_scripted_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await open_palette(app, pilot, "setting top_p", "setting top_p")
        await pilot.press("enter")
        await until_async(lambda: is_open(app, "SettingsScreen"))
        await until_async(lambda: (o := option_list(app).highlighted_option) is not None and o.id == "top_p")


async def test_chosen_persona_is_set() -> None:
    paths.personas_dir().mkdir(parents=True)
    (paths.personas_dir() / "cook.toml").write_text('system_prompt = "You are a cook."\n')
    app = make_scripted_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await open_palette(app, pilot, "cook", "persona cook")
        await pilot.press("enter")
        await until_async(lambda: session(app).settings.system_prompt == "You are a cook.")


async def test_chosen_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    app = make_scripted_app()
    model_names: list[str] = []
    async with app.run_test(size=(100, 30)) as pilot:
        await wait_until_ready(app)
        monkeypatch.setattr(app.worker, "load_model", lambda name, *_: model_names.append(name))
        await open_palette(app, pilot, "model starter", "model starter")
        await pilot.press("enter")
        await until_async(lambda: model_names == ["starter"])


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("title change", "rename"), ("sampling temperature", "temperature"), ("set system prompt", "system"),
        ("reasoning turn", "reasoning"), ("export conversation", "export"), ("attach file", "attach"),
    ],
)  # fmt: skip
async def test_command_that_needs_an_argument_is_typed_into_the_input(query: str, name: str) -> None:
    app = make_scripted_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await open_palette(app, pilot, query, f"command {name.capitalize()}")
        await pilot.press("enter")
        await until_async(lambda: app.pane.prompt.text == f"/{name} " and app.pane.prompt.has_focus)
        assert shown_texts(app, "note") == shown_texts(app, "error") == []


async def test_palette_says_that_nothing_matches() -> None:
    app = make_scripted_app(store=make_store())
    async with app.run_test(size=(100, 30)) as pilot:
        await open_palette(app, pilot, "qqxxqq")
        await until_async(lambda: option_texts(app) == ["Nothing matches"])
        await pilot.press("enter")
        assert is_open(app, "CommandPaletteScreen")


@pytest.mark.parametrize("query", ["regenerate", "alternative reply"])
async def test_command_runs(query: str) -> None:
    app = make_scripted_app("One.", "Two.", store=(store := make_store()))
    async with app.run_test(size=(100, 30)) as pilot:
        await open_palette(app, pilot, "boats", "conversation Boats")
        await pilot.press("enter")
        await until_async(lambda: shown_texts(app, "user") == ["Who builds boats?"])
        await open_palette(app, pilot, query, "command Retry")
        await pilot.press("enter")
        await until_async(lambda: shown_texts(app, "assistant") == ["One."] and not app.pane.is_busy)
        assert len(store.messages(session(app).conversation.id)) == 3


async def test_recent_choices_of_an_ephemeral_chat_are_not_saved() -> None:
    app = make_scripted_app(store=make_store())
    async with app.run_test(size=(100, 30)) as pilot:
        await open_palette(app, pilot, "boats", "conversation Boats")
        await pilot.press("enter")
        await until_async(lambda: shown_texts(app, "user") == ["Who builds boats?"])
        assert list(RecentChoices().read()) == []


async def test_palette_closes_with_its_own_key_and_opens_only_over_the_chat() -> None:
    app = make_scripted_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await open_palette(app, pilot)
        await pilot.press("ctrl+p")
        await until_async(lambda: is_open(app, "ChatScreen"))
        await pilot.press("f1")
        await until_async(lambda: is_open(app, "HelpScreen"))
        await pilot.press("ctrl+p")
        await pilot.pause()
        assert is_open(app, "HelpScreen")


async def test_palette_opens_before_ten_thousand_conversations_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    may_read = threading.Event()
    list_conversations = palette_sources.list_conversations

    def wait_and_list(store: Store) -> Iterator[PaletteEntry]:
        may_read.wait(60)
        return list_conversations(store)

    monkeypatch.setattr(palette_sources, "list_conversations", wait_and_list)
    store = open_ephemeral_store()
    with store.database.write_transaction() as db:
        db.executemany(
            "INSERT INTO conversations VALUES (?, ?, ?, '', '{}', 0, 0, '[]', '', 1, 1, NULL)",
            [(n, f"{n:016x}", f"Talk {n} about topic {n % 97}") for n in range(1, 10_001)],
        )
    app = make_scripted_app(store=store, script=Script(["A reply."]))
    async with app.run_test(size=(100, 30)) as pilot:
        await wait_until_ready(app)
        app.action_command_palette()
        await until_async(lambda: is_open(app, "CommandPaletteScreen") and option_list(app).option_count > 0)
        assert not any("Talk" in row for row in option_texts(app))
        may_read.set()
        await pilot.press(*"9876 talk")
        await until_async(lambda: option_texts(app)[0].split()[:3] == ["conversation", "Talk", "9876"])


@pytest.mark.parametrize("width", [20, 40, 80, 200])
@pytest.mark.parametrize("title", ["Short", "料理" * 90, "A long title " * 20, ""])
def test_rows_fit_into_every_width(width: int, title: str) -> None:
    row = str(format_entry(PaletteEntry("conversation", "1", title, "A description " * 9, "Ctrl+B"), width))
    assert cell_len(row) <= width
    assert row.endswith("Ctrl+B") or width == 20
