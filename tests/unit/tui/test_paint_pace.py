"""Tests of `tui.paint_pace`: repaints that cost much CPU time become rarer, and cheap ones frequent again."""

from __future__ import annotations

import time

import pytest

from edgechat.tui.paint_pace import MAX_INTERVAL_S, MIN_INTERVAL_S, PaintPace


def paint(pace: PaintPace, monkeypatch: pytest.MonkeyPatch, cost_s: float, count: int = 100) -> float:
    cpu_s = time.thread_time()
    for _ in range(count):
        cpu_s += cost_s
        monkeypatch.setattr(time, "thread_time", lambda now=cpu_s: now)
        pace.is_painted.clear()
        pace.note_text()
        assert pace.is_painted.is_set()
    return pace.interval_s


def test_interval_follows_the_cost_of_a_repaint(monkeypatch: pytest.MonkeyPatch) -> None:
    pace = PaintPace()
    assert paint(pace, monkeypatch, 0.001) == pytest.approx(MIN_INTERVAL_S)
    assert paint(pace, monkeypatch, 0.006) == pytest.approx(0.2)  # 3 % of a core
    assert paint(pace, monkeypatch, 0.050) == pytest.approx(MAX_INTERVAL_S)
    assert paint(pace, monkeypatch, 0.001) == pytest.approx(MIN_INTERVAL_S)


def test_work_between_replies_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    pace = PaintPace()
    paint(pace, monkeypatch, 0.001)
    before = time.thread_time()
    monkeypatch.setattr(time, "thread_time", lambda: before + 100.0)
    pace.start_reply()
    pace.note_text()
    assert pace.interval_s == pytest.approx(MIN_INTERVAL_S)
