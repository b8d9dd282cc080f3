"""Routes between two tiny models in engines: escalation, and a model that leaves memory for the other one."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgechat.chat import events
from edgechat.chat.engine_source import EngineSource
from edgechat.chat.model_targets import find_model_target
from edgechat.chat.session import Session
from edgechat.config import Settings
from edgechat.errors import PlanError
from edgechat.store import open_ephemeral_store
from tests.models import write_parrot


def finish(session: Session, text: str) -> tuple[events.TurnFinished, list[str]]:
    seen = list(session.send(text))
    end = seen[-1]
    assert isinstance(end, events.TurnFinished)
    return end, [event.notice for event in seen if isinstance(event, events.EngineReplaced)]


@pytest.mark.slow
def test_two_models_in_engines(tmp_path: Path, warm_verdicts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGECHAT_HOME", str(warm_verdicts.parent.parent))
    small, large = (write_parrot(tmp_path / f"{name}.gguf", text) for name, text in (("small", "1A"), ("large", "2B")))
    route = {"small": str(small), "large": str(large), "min_logprob": -1e-6, "dont_know": False}
    settings = Settings(model="route", route=route, titles=False, max_tokens=8)
    session = Session(open_ephemeral_store(), settings, find_model_target(settings))
    try:
        session.open()
        end, _ = finish(session, "Hi")
        assert end.reply.model == "large.gguf"
        assert [m.model for m in end.alternatives] == ["small.gguf"]
        assert end.reply.text != end.alternatives[0].text
        assert end.routed is not None
        assert end.routed.mean_logprob is not None
        assert end.routed.mean_logprob < -1e-6

        original_open, refused = EngineSource.open, []

        def open_alone(source: EngineSource, *arguments: object) -> None:
            if source is not session._engine_source and session.model.is_open:
                refused.append(source.path.name)
                raise PlanError("no room")
            original_open(source, *arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(EngineSource, "open", open_alone)
        session.change_model("route", find_model_target(settings))  # the large model is loaded again
        end, notices = finish(session, "More")
        assert end.reply.model == "large.gguf"
        assert refused == ["large.gguf"]
        assert notices == ["large and small do not fit in memory together, so large was loaded in its place."]
        assert not session.model.is_open
    finally:
        session.close()
