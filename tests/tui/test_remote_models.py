"""Remote models in the chat: where words go is on the screen, and what a remote does not know is not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from textual.widgets import OptionList

from edgechat.models import selection
from edgechat.remote.client import ListedModel
from edgechat.remote.model_lists import save_list
from edgechat.remote_settings import RemoteSettings
from edgechat.tui.completion import complete
from edgechat.tui.screens.models import ModelsScreen
from edgechat.tui.screens.plan import PlanScreen
from tests.remote_server import Exchange, RemoteServer, remote_server, reply
from tests.tui.app_driver import (
    ask,
    make_scripted_app,
    screen_text,
    session,
    shown_texts,
    status_text,
    title_text,
    wait_until_ready,
)
from tests.tui.model_lists import option_ids
from tests.waiting import until_async


@pytest.fixture
def server() -> Iterator[RemoteServer]:
    with remote_server() as server:
        yield server


@pytest.fixture(autouse=True)
def no_speed_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "measure_speeds", lambda *_arguments: None)


async def test_remote_model_is_chosen_and_its_host_is_shown(home: Path, server: RemoteServer) -> None:
    save_list("box", server.settings, [ListedModel(id="small"), ListedModel(id="big")])
    app = make_scripted_app("Local reply", remotes={"box": server.settings})
    async with app.run_test(size=(100, 30)) as pilot:
        await wait_until_ready(app)
        assert "context" in status_text(app)
        await pilot.press("ctrl+o")
        await until_async(lambda: isinstance(app.screen, ModelsScreen) and "remote:box/big" in option_ids(app))
        options = app.screen.query_one(OptionList)
        options.highlighted = options.get_option_index("remote:box/big")
        await pilot.press("enter")
        place = f"box/big (remote, 127.0.0.1:{server.port})"
        await until_async(lambda: place in title_text(app))
        await until_async(lambda: not app.pane.is_busy)
        assert "context" not in status_text(app)
        assert not server.exchanges
        may_answer = threading.Event()

        def answer(exchange: Exchange) -> None:
            may_answer.wait(60)
            reply("Hello", " there.")(exchange)

        server.answers = [answer]
        app.pane.prompt.load("Hi")
        app.pane.prompt.action_send()
        await until_async(lambda: "Waiting for the server" in status_text(app))
        may_answer.set()
        await until_async(lambda: len(session(app).tree) == 2 and not app.pane.is_busy)
        assert "Hello there." in " ".join(shown_texts(app, "assistant"))
        app.actions.run("plan", "")
        await until_async(lambda: isinstance(app.screen, PlanScreen) and place in screen_text(app))
        await pilot.press("escape")
        app.actions.run("tokens", "")
        await until_async(lambda: "The last prompt had 10 tokens" in screen_text(app))
    assert len(server.chats) == 1


async def test_server_that_fails_leaves_the_message_in_the_conversation(home: Path, server: RemoteServer) -> None:
    app = make_scripted_app("Local reply", remotes={"box": server.settings})
    async with app.run_test(size=(100, 30)):
        await wait_until_ready(app)
        app.actions.run("model", "box/gone")
        await until_async(lambda: "box/gone (remote" in title_text(app))
        await until_async(lambda: not app.pane.is_busy)
        app.pane.prompt.load("Hi")
        app.pane.prompt.action_send()
        await until_async(lambda: "does not have this model or this API" in screen_text(app))
        assert [m.text for m in session(app).tree.path] == ["Hi", ""]
        app.actions.run("model", "box/big")
        await until_async(lambda: "box/big (remote" in title_text(app))
        await until_async(lambda: not app.pane.is_busy)
        app.actions.run("retry", "")
        await until_async(lambda: "Hello there." in " ".join(shown_texts(app, "assistant")))


def test_models_of_remotes_complete_the_command(
    home: Path, server: RemoteServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgechat.config import save_remote

    save_remote("box", server.settings)
    save_list("box", server.settings, [ListedModel(id="big")])
    assert "box/big" in [completion.text for completion in complete("/model bo", home)]
    assert not server.exchanges


async def test_error_of_a_reply_goes_when_the_reply_continues(home: Path, server: RemoteServer) -> None:
    server.answers = [lambda exchange: exchange.chunk("Half of the"), reply(" reply.")]
    app = make_scripted_app("Local reply", remotes={"box": server.settings})
    async with app.run_test(size=(100, 30)):
        await wait_until_ready(app)
        app.actions.run("model", "box/big")
        await until_async(lambda: "box/big (remote" in title_text(app) and not app.pane.is_busy)
        app.pane.submit("Hi")
        await until_async(lambda: "closed the connection" in screen_text(app) and not app.pane.is_busy)
        app.actions.run("continue")
        await until_async(lambda: "Half of the reply." in " ".join(shown_texts(app, "assistant")))
        assert shown_texts(app, "error") == []


async def test_statement_that_nothing_was_sent_goes_when_a_message_is_sent(home: Path, server: RemoteServer) -> None:
    may_answer = threading.Event()

    def answer(exchange: Exchange) -> None:
        may_answer.wait(60)
        reply("Hello there.")(exchange)

    server.answers = [answer]
    app = make_scripted_app("Local reply", remotes={"box": server.settings})
    async with app.run_test(size=(100, 30)):
        await wait_until_ready(app)
        app.actions.run("model", "box/big")
        await until_async(lambda: "box/big (remote" in title_text(app) and not app.pane.is_busy)
        app.pane.show_notice("Nothing was sent to HOST.", "error")
        app.pane.submit("Hi")
        assert app.pane.footer.notice == ""
        may_answer.set()
        await until_async(lambda: not app.pane.is_busy)


async def test_lists_of_models_show_the_host_beside_a_long_name(home: Path) -> None:
    remote = RemoteSettings(url="http://192.168.100.50:8080/v1")
    save_list("box", remote, [ListedModel(id="long-model-name" * 5)])
    app = make_scripted_app("Local reply", remotes={"box": remote})
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_until_ready(app)
        await pilot.press("ctrl+o")
        await until_async(lambda: "192.168.100.50:8080" in screen_text(app))
        await pilot.press("escape")
        await ask(app, "Hi")
        await pilot.press("f8")
        await until_async(lambda: "(remote, 192.168.100.50:8080)" in screen_text(app))
