"""The benchmark of agent sessions: a real server, which is killed in the middle."""

from __future__ import annotations

from pathlib import Path

from edgechat.bench.agent import format_table, run
from edgechat.bench.agent_session import SessionSize, make_session


def test_turns_compute_only_new_tokens_before_and_after_a_kill(starter: Path) -> None:
    requests = make_session(SessionSize(n_turns=5, n_system_lines=20, n_result_lines=3))
    report = run(str(starter), requests, None, n_threads=2, n_ctx=2048, kill_after=3, n_peer_turns=0)
    turns = report.turns["edgechat"]
    assert [turn.is_after_kill for turn in turns] == [False, False, True, True]
    for turn in turns:
        assert turn.prompt_tokens > 400
        assert 0 < turn.prompt_tokens - turn.cached_tokens <= turn.new_tokens
        assert turn.ratio > 0
    assert "edgechat, first after kill" in format_table(report)
