"""Fixtures for the tests of the store."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of a database that does not exist yet, in a folder that does not exist yet."""
    return tmp_path / "data" / "history.db"
