"""Models in the chat: switching, search and download from the hub, the first start, and failures."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from textual.events import Key, Paste
from textual.widgets import Input, OptionList, Static

from edgechat import paths
from edgechat.catalogue import hub as hub_module
from edgechat.engine.cancellation import Cancellation
from edgechat.errors import CatalogueError
from edgechat.models import selection
from edgechat.planner.throughput import DeviceRates
from edgechat.store import open_ephemeral_store
from edgechat.tui.screens import first_run
from edgechat.tui.screens.first_run import FirstRunScreen
from edgechat.tui.screens.models import ModelsScreen
from tests.hub import LocalHub
from tests.models import write_parrot
from tests.tui.app_driver import (
    ask,
    make_app,
    make_scripted_app,
    saved_texts,
    screen_text,
    session,
    shown_texts,
    title_text,
    wait_until_ready,
)
from tests.tui.model_lists import REPO, details, notice, option_ids, set_machine
from tests.waiting import until_async


@pytest.fixture(autouse=True)
def no_speed_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the speed measurement, which takes seconds and has its own tests."""
    monkeypatch.setattr(selection, "measure_speeds", lambda *_arguments: None)


async def test_model_is_switched_during_a_conversation(tmp_path: Path) -> None:
    first, second = write_parrot(tmp_path / "first.gguf", "One"), write_parrot(tmp_path / "second.gguf", "Two")
    app = make_app(first)
    async with app.run_test():
        await wait_until_ready(app)
        await ask(app, "Who?")
        app.actions.run("model", str(tmp_path / "missing.gguf"))
        await until_async(lambda: shown_texts(app, "error") and not app.pane.is_busy)
        await ask(app, "And now?")
        app.actions.run("model", str(second))
        await until_async(lambda: "second" in title_text(app) and not app.pane.is_busy)
        await ask(app, "Who?")
        assert saved_texts(app) == ["Who?", "One", "And now?", "One", "Who?", "Two"]
        (tmp_path / "broken.gguf").write_text("no model")
        app.actions.run("model", str(tmp_path / "broken.gguf"))
        await until_async(lambda: len(shown_texts(app, "error")) == 2 and not app.pane.is_busy)
        await ask(app, "Still there?")
        assert saved_texts(app)[-1] == "Two"


async def test_model_found_on_the_hub_is_downloaded_and_used(hub: LocalHub, tmp_path: Path) -> None:
    app = make_app(write_parrot(tmp_path / "first.gguf", "One"))
    async with app.run_test(size=(100, 30)) as pilot:
        await wait_until_ready(app)
        await pilot.press("ctrl+o")
        await until_async(lambda: isinstance(app.screen, ModelsScreen) and "starter" in option_ids(app))
        await until_async(lambda: len(option_ids(app)) > 20)  # the built-in catalogue, which needs no network
        await until_async(lambda: "[" in details(app))
        await pilot.press(*"parrot", "ctrl+s")
        await until_async(lambda: f"hub:{REPO}" in option_ids(app))
        await until_async(lambda: "Enter downloads this model" in details(app))
        await pilot.press("enter")
        await until_async(lambda: "parrot-Q8_0" in option_ids(app))
        app.screen.query_one(OptionList).highlighted = app.screen.query_one(OptionList).get_option_index("parrot-Q8_0")
        await pilot.press("enter")
        await until_async(lambda: "parrot-Q8_0" in title_text(app) and not app.pane.is_busy)
        await ask(app, "Who?")
        assert saved_texts(app)[-1] == "Bird"


@pytest.mark.parametrize("what", ["no such model", "hub in trouble", "wrong hash"])
async def test_failed_download_is_reported(hub: LocalHub, what: str) -> None:
    if what == "hub in trouble":
        hub.faults.api_status = 503
    elif what == "wrong hash":
        hub.repos[REPO].wrong_hash.add("parrot-Q8_0.gguf")
    app = make_scripted_app()
    async with app.run_test():
        await wait_until_ready(app)
        app.downloads.start("someone/nothing" if what == "no such model" else REPO)
        await until_async(lambda: shown_texts(app, "error"))
        await ask(app, "Still there?")
        assert saved_texts(app)[-1] == "An answer."


async def test_unreachable_hub_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    app = make_scripted_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await wait_until_ready(app)
        await pilot.press("ctrl+o")
        await until_async(lambda: isinstance(app.screen, ModelsScreen) and option_ids(app))
        await pilot.press(*"qwen", "ctrl+s")
        await until_async(lambda: "127.0.0.1" in str(app.screen.query_one("#pull", Static).content))


async def test_unusable_proxy_is_reported_by_search_and_download(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1080")
    app = make_scripted_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await wait_until_ready(app)
        await pilot.press("ctrl+o")
        await until_async(lambda: isinstance(app.screen, ModelsScreen) and option_ids(app))
        assert isinstance(app.screen, ModelsScreen)
        pull_text = app.screen.query_one("#pull", Static)
        for action in ("download", "search"):
            app.screen.query_one(Input).value = "parrot"
            pull_text.update("")
            if action == "download":
                app.downloads.start(REPO)
            else:
                app.screen.action_hub()
            await until_async(lambda: "ALL_PROXY is a SOCKS proxy" in str(pull_text.content))


async def test_unexpected_error_in_a_worker_is_shown(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise ImportError("no module named x")

    monkeypatch.setattr(selection, "list_installed_candidates", fail)
    monkeypatch.setattr(hub_module.Hub, "search", fail)
    app = make_scripted_app(store=open_ephemeral_store())
    app.is_first_run = True
    async with app.run_test(size=(100, 30)) as pilot:
        await until_async(lambda: "Unexpected ImportError: no module named x" in screen_text(app))
        await pilot.press("escape")
        await wait_until_ready(app)
        await pilot.press("ctrl+o")
        await until_async(lambda: isinstance(app.screen, ModelsScreen) and "ImportError" in notice(app))
        await pilot.press(*"parrot", "ctrl+s")
        await until_async(lambda: "ImportError" in str(app.screen.query_one("#pull", Static).content))


@pytest.mark.parametrize("choice", ["get", "local", "escape"])
async def test_first_start_offers_download_and_local_model(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch, choice: str
) -> None:
    set_machine(monkeypatch)
    app = make_scripted_app(store=open_ephemeral_store())
    app.is_first_run = True
    async with app.run_test() as pilot:
        ids = ["get Fast", "get Best quality", "local", "all"]  # the fast one is also the balanced one
        await until_async(lambda: isinstance(app.screen, FirstRunScreen) and option_ids(app) == ids)
        assert isinstance(app.screen, FirstRunScreen)
        assert app.worker.session is None  # no model is loaded yet
        shown_text = " ".join(screen_text(app).replace("│", " ").split())  # a long name of the processor wraps the line
        assert "8.00 GB of memory free" in shown_text
        if choice == "get":
            app.screen._download_names["get Fast"] = REPO  # the test hub has none of the models in the catalogue
            app.screen.query_one(OptionList).highlighted = 0
            await pilot.press("enter")
        elif choice == "local":
            app.screen.query_one(OptionList).highlighted = 2
            await pilot.press("enter")
        else:
            await pilot.press("escape")
        await wait_until_ready(app)
        (tour,) = shown_texts(app, "note")
        assert "Enter sends a message" in tour
        assert ("starter model" in tour) == (choice != "get")
        assert max(map(len, tour.splitlines())) <= 76
        await ask(app, "Hello")
        assert saved_texts(app) == ["Hello", "An answer."]
        assert bool(list(paths.models_dir().rglob("*.gguf"))) == (choice == "get")


async def test_tour_names_the_configured_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    set_machine(monkeypatch)
    key_map = {"prompt.send": "ctrl+s", "chat.help": "f12", "chat.stop": "f10", "chat.models": "f7"}
    key_map["message.copy"] = "z"
    app = make_scripted_app(store=open_ephemeral_store(), keys=key_map)
    app.is_first_run = True
    async with app.run_test() as pilot:
        await until_async(lambda: isinstance(app.screen, FirstRunScreen) and option_ids(app))
        await pilot.press("escape")
        await wait_until_ready(app)
        (tour,) = shown_texts(app, "note")
        for text in (
            "Ctrl+S sends a message, F10 stops",
            "conversation (F10): z copies",
            "F12 shows all",
            "F7 offers better",
        ):
            assert text in tour


async def test_typing_on_the_first_start_writes_a_message(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    set_machine(monkeypatch)
    app = make_scripted_app(store=open_ephemeral_store())
    app.is_first_run = True
    async with app.run_test() as pilot:
        await until_async(lambda: isinstance(app.screen, FirstRunScreen))
        for letter in "Hello":  # all keys arrive before the screen closes
            app.post_message(Key(letter, letter))
        app.post_message(Paste(" you"))
        await wait_until_ready(app)
        await until_async(lambda: app.pane.prompt.text == "Hello you")
        await pilot.press("enter")
        await until_async(lambda: saved_texts(app) == ["Hello you", "An answer."])


async def test_escape_twice_closes_one_screen(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    set_machine(monkeypatch)
    app = make_scripted_app(store=open_ephemeral_store())
    app.is_first_run = True
    async with app.run_test():
        await until_async(lambda: isinstance(app.screen, FirstRunScreen))
        for _ in range(3):
            app.post_message(Key("escape", None))
        await wait_until_ready(app)
        await ask(app, "Hello")


async def test_failed_first_download_returns_to_the_choice(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.faults.api_status = 404
    set_machine(monkeypatch)
    app = make_scripted_app()
    app.is_first_run = True
    async with app.run_test(size=(100, 30)) as pilot:
        await until_async(lambda: isinstance(app.screen, FirstRunScreen) and "get Fast" in option_ids(app))
        assert isinstance(app.screen, FirstRunScreen)
        app.screen._download_names["get Fast"] = REPO
        options = app.screen.query_one(OptionList)
        options.highlighted = 0
        await pilot.press("enter")
        await until_async(lambda: str(app.screen.query_one("#pull", Static).content))
        await until_async(lambda: not options.disabled)
        await pilot.press("escape")
        await wait_until_ready(app)
        assert session(app).model_properties is not None


async def test_first_start_shows_the_progress_of_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    is_measured = threading.Event()
    report: list[Callable[[str], object]] = []

    def measure(_cancellation: Cancellation, on_progress: Callable[[str], object]) -> None:
        report.append(on_progress)
        is_measured.wait()

    monkeypatch.setattr(selection, "measure_speeds", measure)
    monkeypatch.setattr(first_run, "_TICK_S", 0.01)
    set_machine(monkeypatch)
    app = make_scripted_app(store=open_ephemeral_store())
    app.is_first_run = True
    async with app.run_test(size=(80, 24)) as pilot:
        try:
            await until_async(lambda: bool(report))
            report[0]("Measuring the speed of cpu-sapphirerapids: 42 %")
            await until_async(lambda: "Measuring the speed of cpu-sapphirerapids: 42 % (" in screen_text(app))
            assert isinstance(app.screen, FirstRunScreen)
            await pilot.press("down")
            app.screen._started_at = time.monotonic() - 600.0
            await until_async(lambda: "cpu-sapphirerapids: 42 % (6" in screen_text(app))
            highlighted = app.screen.query_one(OptionList).highlighted_option
            assert highlighted is not None
            assert highlighted.id == "all"  # the progress does not move the choice of the user
        finally:
            is_measured.set()
        await until_async(lambda: "get Fast" in option_ids(app))
        await until_async(lambda: "Measuring" not in screen_text(app))


@pytest.mark.parametrize(("keys", "option_id"), [((), "local"), (("down",), "all")])
async def test_first_start_recommends_nothing_before_the_measurement(
    monkeypatch: pytest.MonkeyPatch, keys: tuple[str, ...], option_id: str
) -> None:
    is_measured = threading.Event()
    monkeypatch.setattr(selection, "measure_speeds", lambda *_arguments: is_measured.wait())
    set_machine(monkeypatch)
    app = make_scripted_app(store=open_ephemeral_store())
    app.is_first_run = True
    async with app.run_test(size=(80, 24)) as pilot:
        try:
            await until_async(lambda: isinstance(app.screen, FirstRunScreen) and option_ids(app) == ["local", "all"])
            texts = ("This machine", "Installed: starter", "Measuring the speed of this machine")
            await until_async(lambda: all(text in screen_text(app) for text in texts))
            await pilot.press(*keys)
        finally:
            is_measured.set()
        await until_async(lambda: "get Fast" in option_ids(app))
        highlighted = app.screen.query_one(OptionList).highlighted_option
        assert highlighted is not None
        assert highlighted.id == option_id  # so that Enter never starts a download that was not highlighted before
        picks = ("Fast, Balanced: ", "Best quality: ", " file, ", " in memory", "a typical reply takes about")
        await until_async(lambda: all(text in screen_text(app) for text in picks))


@pytest.mark.parametrize("is_first_run", [True, False])
async def test_closed_screen_stops_the_measurement(monkeypatch: pytest.MonkeyPatch, *, is_first_run: bool) -> None:
    is_measuring, is_stopped = threading.Event(), threading.Event()

    def measure(cancellation: Cancellation, *_on_progress: object) -> None:
        with cancellation.call_on_cancel(is_stopped.set):
            is_measuring.set()
            is_stopped.wait(60)

    monkeypatch.setattr(selection, "measure_speeds", measure)
    set_machine(monkeypatch)
    app = make_scripted_app(store=open_ephemeral_store())
    app.is_first_run = is_first_run
    async with app.run_test() as pilot:
        try:
            if not is_first_run:
                await wait_until_ready(app)
                await pilot.press("ctrl+o")
            await until_async(is_measuring.is_set)
            await pilot.press("escape")
            await until_async(is_stopped.is_set)
        finally:
            is_stopped.set()
        await wait_until_ready(app)


async def test_failed_recommendation_leaves_the_offer_of_the_installed_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise CatalogueError("The catalogue is damaged.")

    monkeypatch.setattr(selection, "list_catalogue_candidates", fail)
    set_machine(monkeypatch)
    app = make_scripted_app(store=open_ephemeral_store())
    app.is_first_run = True
    async with app.run_test(size=(80, 24)):
        await until_async(lambda: "The catalogue is damaged." in screen_text(app))
        assert option_ids(app) == ["local", "all"]
        assert "Installed: starter" in screen_text(app)
        assert "Measuring" not in screen_text(app)


async def test_first_start_recommends_nothing_if_the_measurement_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    set_machine(monkeypatch, DeviceRates())
    app = make_scripted_app(store=open_ephemeral_store())
    app.is_first_run = True
    async with app.run_test(size=(80, 24)):
        await until_async(lambda: "the speed of this machine is not known" in screen_text(app).replace("\n", " "))
        assert option_ids(app) == ["local", "all"]
