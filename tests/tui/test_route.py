"""A route in the chat: both models are in the title line, and a line below the reply says why it was escalated."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from textual.widgets import OptionList

from edgechat import paths
from edgechat.cli.options import complete_model
from edgechat.models import selection
from edgechat.remote_settings import RemoteSettings
from edgechat.tui.completion import complete
from edgechat.tui.palette_sources import list_models
from edgechat.tui.screens.models import ModelsScreen
from tests.tui.app_driver import ask, make_scripted_app, screen_text, session, shown_texts, title_text, wait_until_ready
from tests.tui.model_lists import option_ids
from tests.waiting import until_async

if TYPE_CHECKING:
    import pytest


async def test_escalated_reply_has_a_line_with_the_reason(home: Path, tmp_path: Path) -> None:
    files = {name: tmp_path / f"{name}.gguf" for name in ("small", "large")}
    for file in files.values():
        file.write_text("")
    route = {**{name: str(file) for name, file in files.items()}, "min_logprob": -0.5}
    app = make_scripted_app("Small reply.", route=route)
    async with app.run_test(size=(100, 30)):
        await wait_until_ready(app)
        app.actions.run("model", "route")
        await until_async(lambda: "route: small, or large" in title_text(app))
        await until_async(lambda: not app.pane.is_busy)
        await ask(app, "Hi")
        await until_async(lambda: "Escalated from small to large: mean log probability" in screen_text(app))
        assert "Another answer." in " ".join(shown_texts(app, "assistant"))
        assert "Small reply." not in " ".join(shown_texts(app, "assistant"))
        assert "2/2" in screen_text(app)
        assert [m.model for m in session(app).tree.path] == ["", "large.gguf"]
        app.actions.run("switch", "1")
        await until_async(lambda: "Small reply." in " ".join(shown_texts(app, "assistant")))


ROUTE = {"small": "box/tiny", "large": "box/big"}


def save_route() -> None:
    paths.config_file().parent.mkdir(parents=True, exist_ok=True)
    lines = ["[route]", *(f'{side} = "{name}"' for side, name in ROUTE.items())]
    lines += ["[remotes.box]", 'url = "http://127.0.0.1:9/v1"']
    paths.config_file().write_text("\n".join(lines), encoding="utf-8")


def test_route_completes_where_it_can_be_chosen(home: Path) -> None:
    assert complete_model(None, None, "rou") == []  # type: ignore[arg-type]
    assert "route" not in [entry.id for entry in list_models()]
    save_route()
    assert complete_model(None, None, "rou") == ["route"]  # type: ignore[arg-type]
    assert [completion.text for completion in complete("/model rou", home)] == ["route"]
    assert complete("/also rou", home) == [], "/also needs one model"
    [entry] = [entry for entry in list_models() if entry.id == "route"]
    assert entry.description == "box/tiny, or box/big"


async def test_route_is_chosen_from_the_list_of_models(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "measure_speeds", lambda *_arguments: None)
    save_route()
    remotes = {"box": RemoteSettings(url="http://127.0.0.1:9/v1")}
    app = make_scripted_app("Reply", remotes=remotes, route=ROUTE)
    async with app.run_test(size=(100, 30)) as pilot:
        await wait_until_ready(app)
        await pilot.press("ctrl+o")
        await until_async(lambda: isinstance(app.screen, ModelsScreen) and "route:" in option_ids(app))
        options = app.screen.query_one(OptionList)
        options.highlighted = options.get_option_index("route:")
        await until_async(lambda: "Chooses a model for each message" in screen_text(app))
        assert "route  box/tiny, or box/big" in screen_text(app)
        await pilot.press("enter")
        await until_async(lambda: "route: box/tiny (remote, 127.0.0.1:9), or box/big" in title_text(app))
