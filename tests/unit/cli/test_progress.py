"""Status of commands that can take long, on standard error that is not a terminal."""

from __future__ import annotations

import pytest

from edgechat.cli import progress


@pytest.mark.parametrize(("prints_lines", "expected"), [(True, ["b", "d"]), (False, [])])
def test_status_outside_a_terminal_is_a_line_every_ten_seconds(
    prints_lines: bool, expected: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    status = progress.StderrStatus(prints_lines=prints_lines)
    for seconds, text in ((9, "a"), (10, "b"), (19, "c"), (20, "d"), (40, "")):
        now = 100.0 + seconds
        status.show(text)
    status.clear()
    assert capsys.readouterr().err.splitlines() == expected
