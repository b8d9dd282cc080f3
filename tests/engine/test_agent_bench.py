"""The benchmark of agent sessions: a real server, which is killed in the middle."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgechat.bench import agent
from edgechat.bench.agent_session import SessionSize, make_session
from edgechat.bench.edgechat_server import EdgechatServer
from tests.models import write_parrot
from tests.waiting import until


@pytest.mark.slow
def test_turns_compute_only_new_tokens_before_and_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_parrot(tmp_path / "parrot.gguf", "ab", is_endless=True, n_ctx=8192)
    prompt_lengths: list[int] = []
    send, kill = agent._send, EdgechatServer.kill

    def send_and_record(port: int, body: dict[str, object]) -> tuple[float, int, int, float]:
        result = send(port, body)
        prompt_lengths.append(result[1])
        return result

    def kill_after_save(server: EdgechatServer) -> None:
        """Kill the server when the whole prompt is on disk, however long that takes."""
        home = Path(server._environment["EDGECHAT_HOME"])
        until(lambda: max(map(read_end, home.rglob("*.kv")), default=0) >= prompt_lengths[-1])
        kill(server)

    monkeypatch.setattr(agent, "_TOOL_S", 0.0)
    monkeypatch.setattr(agent, "_send", send_and_record)
    monkeypatch.setattr(EdgechatServer, "kill", kill_after_save)
    requests = make_session(SessionSize(n_turns=5, n_system_lines=20, n_result_lines=3))
    report = agent.run(str(model), requests, None, n_threads=2, n_ctx=8192, kill_after=3, n_peer_turns=0)
    turns = report.turns["edgechat"]
    assert [turn.is_after_kill for turn in turns] == [False, False, True, True]
    for turn in turns:
        assert turn.prompt_tokens > 400
        assert 0 < turn.prompt_tokens - turn.cached_tokens <= turn.new_tokens
        assert turn.ratio > 0
    assert "edgechat, first after kill" in agent.format_table(report)


def read_end(path: Path) -> int:
    """Return the number of tokens up to the end of a saved segment, from its name START-END-DIGEST.kv."""
    return int(path.stem.split("-")[1])
