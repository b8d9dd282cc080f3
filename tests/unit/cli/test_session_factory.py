"""Creation of chat sessions from flags and settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from edgechat import paths
from edgechat.cli.session_factory import create_session, prepare_session
from edgechat.config import save_remote
from edgechat.errors import EngineDiedError, ModelFileError
from edgechat.prompt.renderer import Renderer
from edgechat.remote_settings import RemoteSettings

if TYPE_CHECKING:
    from pathlib import Path


def test_chat_without_a_usable_history_is_not_saved_and_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EDGECHAT_HOME", str(tmp_path.joinpath(*["x" * 200] * 3)))  # too long for SQLite
    make_session, _ = prepare_session(model="starter")
    session = make_session()
    assert not session.store.is_persistent
    assert any("This conversation is not saved: " in warning for warning in session.warnings)
    session.close()


def test_render_process_that_was_started_early_ends_if_the_session_cannot_be_created(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[Renderer] = []
    start = Renderer.start

    def record_start(renderer: Renderer) -> None:
        started.append(renderer)
        start(renderer)

    monkeypatch.setattr(Renderer, "start", record_start)
    with pytest.raises(ModelFileError):
        create_session(model="missing-model")
    [renderer] = started
    assert renderer._child is None
    with pytest.raises(EngineDiedError, match="was closed"):
        renderer.start()


@pytest.mark.parametrize("model", ["box/big", "route"])
def test_render_process_that_was_started_early_ends_if_a_remote_model_replies(model: str, home: Path) -> None:
    save_remote("box", RemoteSettings(url="http://127.0.0.1:9/v1"))
    with paths.config_file().open("a", encoding="utf-8") as file:
        file.write('[route]\nsmall = "box/big"\nlarge = "starter"\n')
    session = create_session(model=model)
    try:
        assert session.model._renderer._child is not None
        session.open()
        assert session.model._renderer._child is None
        session.model._renderer.start()  # a local model of a route can follow
    finally:
        session.close()
