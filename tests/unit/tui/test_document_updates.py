"""Progress of updates of collections: not too often, but every phase."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from edgechat.documents.indexing import IndexProgress
from edgechat.tui.document_updates import ThrottledProgress

if TYPE_CHECKING:
    import pytest


def test_progress_is_reported_at_intervals_and_at_the_ends_of_phases(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    reports: list[IndexProgress] = []
    throttle = ThrottledProgress(reports.append)
    for number in range(1001):
        throttle.show(IndexProgress(phase="reading", n_files=1000, n_files_done=number))
        now[0] += 0.001
    for number in range(0, 1001, 10):
        throttle.show(IndexProgress(phase="embedding", n_chunks=1000, n_chunks_done=number))
        now[0] += 0.01
    n_read_files = [r.n_files_done for r in reports if r.phase == "reading"]
    assert (n_read_files[0], n_read_files[-1]) == (0, 1000)
    assert 10 <= sum(r.phase == "reading" for r in reports) <= 14
    n_embedded = [r.n_chunks_done for r in reports if r.phase == "embedding"]
    assert (n_embedded[0], n_embedded[-1]) == (0, 1000)
    assert 10 <= len(n_embedded) <= 14
