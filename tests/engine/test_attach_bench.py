"""The benchmark of programs that share an engine, with one round."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from edgechat.bench import attach
from edgechat.engine.resident_files import list_records
from tests.models import write_parrot


@pytest.mark.slow
def test_benchmark_measures_shared_and_private_engines(
    warm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGECHAT_ENGINE", "private")  # as `edgechat bench` does
    progress: list[str] = []
    report = attach.run(write_parrot(tmp_path / "parrot.gguf", "Hi"), 1, progress.append)
    lists = (
        report.running_first_byte_s, report.shared_first_byte_s, report.private_first_byte_s,
        report.chat_first_token_s, report.ask_first_token_s, report.ask_process_first_token_s,
    )  # fmt: skip
    assert all(len(values) == 1 and values[0] > 0 for values in lists)
    if sys.platform == "linux":
        assert 0 < report.chat_pss_bytes < report.shared_pss_bytes < report.private_pss_bytes
    assert os.environ["EDGECHAT_ENGINE"] == "private"
    assert not list(list_records())
    assert progress[-1] == "measuring memory"
    table = attach.format_table(report)
    assert "shared / private" in table
    assert "limit: 1.20" in table
