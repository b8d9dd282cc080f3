"""Creation of chat sessions from flags and settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgechat.cli.session_factory import prepare_session

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_chat_without_a_usable_history_is_not_saved_and_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EDGECHAT_HOME", str(tmp_path.joinpath(*["x" * 200] * 3)))  # too long for SQLite
    make_session, _ = prepare_session(model="starter")
    session = make_session()
    assert not session.store.is_persistent
    assert any("This conversation is not saved: " in warning for warning in session.warnings)
    session.close()
