"""Creation of chat sessions from flags and settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgechat.cli.session_factory import prepare_session
from edgechat.errors import StoreError


def test_chat_without_a_usable_history_is_not_saved_and_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The same holds for a database that the user may not read."""
    monkeypatch.setenv("EDGECHAT_HOME", str(tmp_path.joinpath(*["x" * 200] * 3)))  # too long for SQLite
    make_session, _ = prepare_session(model="starter")
    session = make_session()
    assert not session.store.is_persistent
    assert any("This conversation is not saved: " in warning for warning in session.warnings)
    session.close()
    make_session, _ = prepare_session(model="starter", continue_last=True)
    with pytest.raises(StoreError):
        make_session()
