"""Routes between two tiny models in engines: escalation, and a model that leaves memory for the other one."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edgechat.chat import events
from edgechat.chat.commands import load_model
from edgechat.chat.engine_source import EngineSource
from edgechat.chat.model_targets import find_model_target
from edgechat.chat.session import Session
from edgechat.config import Settings
from edgechat.engine.resident_files import list_records
from edgechat.errors import PlanError
from edgechat.store import open_ephemeral_store, open_store
from tests.models import write_parrot
from tests.remote_server import remote_server, reply
from tests.resident_engines import end_engines


def finish(session: Session, text: str) -> tuple[events.TurnFinished, list[str]]:
    seen = list(session.send(text))
    end = seen[-1]
    assert isinstance(end, events.TurnFinished)
    return end, [event.notice for event in seen if isinstance(event, events.EngineReplaced)]


def test_local_large_model_replaces_the_model_of_the_chat(
    tmp_path: Path, warm_verdicts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGECHAT_HOME", str(warm_verdicts.parent.parent))
    first, large = (write_parrot(tmp_path / f"{name}.gguf", text) for name, text in (("first", "1A"), ("large", "2B")))
    with remote_server(reply("I don't know.")) as server:
        route = {"small": "box/small", "large": str(large)}
        settings = Settings(route=route, remotes={"box": server.settings}, titles=False, max_tokens=8)
        session = Session(open_store(), settings, first)
        try:
            session.open()
            assert finish(session, "Hi")[0].reply.text == "1A"
            load_model(session, "route", lambda event: None)
            assert session.model.engine.pid is None
            assert session.model._renderer._child is None
            end, _ = finish(session, "Hi")
            assert (end.reply.text, end.reply.model) == ("2B", "large.gguf")
        finally:
            session.close()


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


@pytest.mark.slow
def test_budget_for_one_model_lets_them_take_turns(
    tmp_path: Path, warm_verdicts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGECHAT_HOME", str(warm_verdicts.parent.parent))
    monkeypatch.delenv("EDGECHAT_ENGINE")  # an engine without clients would otherwise stay in memory
    small, large = (write_parrot(tmp_path / f"{name}.gguf", text) for name, text in (("small", "1A"), ("large", "2B")))
    rules = [{"use": "large", "min_chars": 10}]
    route = {"small": str(small), "large": str(large), "dont_know": False, "rules": rules}
    settings = Settings(model="route", route=route, titles=False, max_tokens=8)
    session = Session(open_ephemeral_store(), settings, find_model_target(settings))
    try:
        session.open()
        assert session.model.plan is not None
        budget_bytes = session.model.plan.estimate.total
        session.set_base_settings(msgspec.structs.replace(settings, budget=str(budget_bytes)))
        seen = [finish(session, text) for text in ("Hi", "A long message", "And now?", "More", "Another long message")]
        assert [end.reply.text for end, _ in seen] == ["1A", "2B", "1A", "1A", "2B"]
        large_comes = "large and small do not fit in memory together, so large was loaded in its place."
        small_comes = "small and large do not fit in memory together, so small was loaded in its place."
        assert [notices for _, notices in seen] == [[], [large_comes], [small_comes], [], [large_comes]]
        loaded = [Path(record.model_path).name for record in list_records() if record.total_bytes]
        assert loaded == ["large.gguf"], "only one of both is in memory"
    finally:
        session.close()
        end_engines()
