"""Fixtures for all unit tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edgechat.prompt import renderer


@pytest.fixture(scope="session", autouse=True)
def patient_renderer() -> Iterator[None]:
    """Give render processes more time; on a busy machine, their start alone can take the usual five seconds."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(renderer, "TIMEOUT_S", 120.0)
        yield
