"""Turns whose reply is picked from several, with scripted replies instead of a model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from edgechat.bench.scripted_session import Script, ScriptedSession
from edgechat.chat import events
from edgechat.chat.command_arguments import parse_best
from edgechat.chat.commands import COMMANDS_BY_NAME
from edgechat.chat.reply_picking import _interpolate
from edgechat.config import Settings
from edgechat.engine import protocol
from edgechat.errors import EngineDiedError, StoreError, UsageError
from edgechat.planner.load_plan import make_manual_plan
from edgechat.prompt.agreement.picker import PickMethod
from edgechat.store import open_ephemeral_store

OpenSession = Callable[..., ScriptedSession]


@pytest.fixture
def open_session() -> Iterator[OpenSession]:
    sessions: list[ScriptedSession] = []

    def open_one(replies: list[str], *, n_seqs: int = 8, **settings: Any) -> ScriptedSession:
        session = ScriptedSession(open_ephemeral_store(), Settings(**settings), Script(replies))
        session.open()
        session.model.plan = make_manual_plan("m.gguf", n_threads=1, n_ctx=4096, n_seqs=n_seqs)
        sessions.append(session)
        return session

    yield open_one
    for session in sessions:
        session.close()


def record_requests(session: ScriptedSession, monkeypatch: pytest.MonkeyPatch) -> list[protocol.Generate]:
    requests: list[protocol.Generate] = []
    generate = session._scripted_engine.generate

    def record(request: protocol.Generate) -> Iterator[protocol.AnyEvent]:
        requests.append(request)
        return generate(request)

    monkeypatch.setattr(session._scripted_engine, "generate", record)
    return requests


def answers(*values: int) -> list[str]:
    """Return replies of increasing length."""
    return [f"{'Let me think. ' * i}The answer is {value}." for i, value in enumerate(values)]


def test_vote_ends_as_soon_as_it_is_decided(open_session: OpenSession, monkeypatch: pytest.MonkeyPatch) -> None:
    session = open_session(answers(8, 7, 7, 7, 7, 7, 9), seed=5)
    requests = record_requests(session, monkeypatch)
    *_, picked, finished = session.send("What is 3 + 4?", n_replies=9, pick="agree")
    assert [(r.n_sequences, r.sampling.seed, r.mean_logprob) for r in requests] == [(5, 5, True), (2, 10, True)]
    assert isinstance(picked, events.ReplyPicked)
    assert isinstance(finished, events.TurnFinished)
    assert finished.picked == picked
    assert finished.reply.text.endswith("The answer is 7.")
    assert [m.finish_reason for m in finished.alternatives] == ["stop"] * 5 + ["cancelled"]
    assert picked.pick.describe() == "5 of 6 agree"
    assert sorted(picked.answers.values()) == ["7"] * 5 + ["8"]
    assert session.tree.path[-1] == finished.reply
    assert finished.reply.stats is not None
    assert finished.reply.stats.pick == "5 of 6 agree"
    assert finished.reply.stats.mean_logprob == -1.0
    stored = {m.id: m for m in session.store.messages(session.conversation.id)}
    assert stored[finished.reply.id] == finished.reply
    assert len(stored) == 8
    assert session.store.conversation(session.conversation.id).head_id == finished.reply.id
    notice = events.format_notice(picked)
    assert notice.startswith("5 of 6 agree (7 replies, ")


def test_only_the_text_of_the_first_reply_is_streamed(open_session: OpenSession) -> None:
    session = open_session(answers(8, 7, 7, 7, 9))
    seen = list(session.send("What is 3 + 4?", n_replies=5, pick="agree"))
    assert [type(e) for e in seen[:2]] == [events.TurnStarted, events.PickStarted]
    assert sum(isinstance(e, events.TurnStarted) for e in seen) == 1
    text = "".join(e.text for e in seen if isinstance(e, events.ReplyTextGenerated) and e.reply_index == 0)
    assert text == "The answer is 8."
    progress = [events.format_progress(e) for e in seen if isinstance(e, events.PickProgressed)]
    assert progress[0] == "1 of up to 5 replies finished"
    assert events.format_notice(seen[1]) == (
        "Up to 5 replies share the prompt, and take up to 5 times the tokens of one reply."
    )


def test_rounds_have_no_more_replies_than_the_model_allows(
    open_session: OpenSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = open_session(["x" * n for n in range(1, 8)], n_seqs=4)
    requests = record_requests(session, monkeypatch)
    *_, finished = session.send("Hi", n_replies=7, pick="likely")
    assert [r.n_sequences for r in requests] == [4, 3]
    assert isinstance(finished, events.TurnFinished)
    assert len(finished.alternatives) == 6
    assert finished.picked is not None
    assert finished.picked.pick.describe() == "most likely of 7"


def test_judge_compares_the_replies_in_both_orders(open_session: OpenSession, monkeypatch: pytest.MonkeyPatch) -> None:
    session = open_session(["first", "second", "B", "A", "ignored"])
    requests = record_requests(session, monkeypatch)
    seen = list(session.send("Which?", n_replies=2, pick="judge"))
    finished = seen[-1]
    assert isinstance(finished, events.TurnFinished)
    assert finished.reply.text == "second"
    assert [r.ephemeral for r in requests] == [False, True, True]
    assert requests[1].grammars
    progress = [events.format_progress(e) for e in seen if isinstance(e, events.PickProgressed)]
    assert progress[-2:] == ["Comparing the replies (1 of 2)", "Comparing the replies (2 of 2)"]


def stop_after(session: ScriptedSession, seen: Iterator[events.SessionEvent], n_finished: int) -> events.SessionEvent:
    last: events.SessionEvent | None = None
    for event in seen:
        last = event
        if isinstance(event, events.PickProgressed) and event.n_finished == n_finished:
            session.stop()
    assert last is not None
    return last


def test_stop_picks_from_the_complete_replies(open_session: OpenSession) -> None:
    session = open_session(["The answer is 7.", *(f"Long {'text ' * 50}. The answer is {n}." for n in (1, 2))])
    finished = stop_after(session, session.send("What is 3 + 4?", n_replies=5, pick="agree"), 1)
    assert isinstance(finished, events.TurnFinished)
    assert finished.reply.text == "The answer is 7."
    assert [m.finish_reason for m in finished.alternatives] == ["cancelled", "cancelled"]
    assert all(m.text for m in finished.alternatives)
    *_, finished = session.send("Next?")  # the stop does not apply to the next turn
    assert isinstance(finished, events.TurnFinished)


def test_stop_without_a_complete_reply_keeps_the_text(open_session: OpenSession) -> None:
    session = open_session(["word " * 100])
    final: events.SessionEvent | None = None
    for event in session.send("Hi", n_replies=3, pick="likely"):
        final = event
        if isinstance(event, events.ReplyTextGenerated):
            session.stop()
    assert isinstance(final, events.TurnInterrupted)
    assert final.reply.text.startswith("word")
    assert session.tree.path[-1].finish_reason == "cancelled"


def test_stop_during_a_comparison_picks_the_most_likely_reply(open_session: OpenSession) -> None:
    session = open_session(["first", "second", "B", "A"])
    final: events.SessionEvent | None = None
    for event in session.send("Which?", n_replies=2, pick="judge"):
        final = event
        if isinstance(event, events.PickProgressed) and event.is_judging:
            session.stop()
    assert isinstance(final, events.TurnFinished)
    assert final.reply.text == "first"
    assert final.picked is not None
    assert final.picked.pick.describe() == "most likely of 2"


def test_error_in_a_later_round_leaves_a_complete_reply_as_the_head(
    open_session: OpenSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = open_session(answers(8, 7, 7, 7, 9))
    generate = session._scripted_engine.generate

    def fail_second(request: protocol.Generate) -> Iterator[protocol.AnyEvent]:
        if request.n_sequences == 1:
            raise EngineDiedError("the engine died")
        return generate(request)

    monkeypatch.setattr(session._scripted_engine, "generate", fail_second)
    with pytest.raises(EngineDiedError):
        list(session.send("What is 3 + 4?", n_replies=5, pick="agree"))
    assert session.tree.path[-1].text.endswith("The answer is 7.")
    assert session.tree.path[-1].finish_reason == "stop"


def test_closed_generator_keeps_the_replies(open_session: OpenSession) -> None:
    session = open_session(answers(8, 7, 7, 7, 9))
    turn = session.send("What is 3 + 4?", n_replies=5, pick="agree")
    while not (isinstance(event := next(turn), events.PickProgressed) and event.n_finished == 3):
        pass
    turn.close()  # type: ignore[attr-defined]
    assert len(session.tree.alternatives(session.tree.path[-1].id)) == 3
    *_, finished = session.send("And now?")
    assert isinstance(finished, events.TurnFinished)


def test_picking_needs_several_replies_and_a_temperature(open_session: OpenSession) -> None:
    session = open_session(["x"])
    for n_replies in (1, 65):
        with pytest.raises(UsageError, match="2 to 64"):
            list(session.send("Hi", n_replies=n_replies, pick="agree"))
    session.override_settings(temperature=0.0)
    with pytest.raises(UsageError, match="temperature is 0"):
        list(session.send("Hi", n_replies=5, pick="agree"))
    assert not len(session.tree)


def test_best_command_adds_alternatives_to_the_last_reply(open_session: OpenSession) -> None:
    session = open_session(["The answer is 3.", *answers(7, 7, 8)])
    list(session.send("What is 3 + 4?"))
    command = COMMANDS_BY_NAME["best"]
    assert command.run is not None
    outcome = command.run(session, "3")
    assert outcome.start_reply is not None
    *_, finished = outcome.start_reply()
    assert isinstance(finished, events.TurnFinished)
    assert finished.picked is not None
    assert finished.picked.pick.describe() == "2 of 2 agree"
    assert len(session.tree.alternatives(finished.reply.id)) == 3


@pytest.mark.parametrize(
    ("argument", "expected"),
    [("", (5, "agree")), ("3", (3, "agree")), ("likely", (5, "likely")), ("JUDGE 4", (4, "judge"))],
)
def test_best_arguments(argument: str, expected: tuple[int, str]) -> None:
    assert parse_best(argument) == expected


@pytest.mark.parametrize("argument", ["1", "65", "0", "best", "3 x", "²", "-3", "9" * 30])
def test_invalid_best_arguments(argument: str) -> None:
    with pytest.raises(UsageError, match="Example: /best 5 agree"):
        parse_best(argument)


def test_cost_of_several_replies_is_interpolated() -> None:
    costs = {2: 1.2, 4: 2.0, 8: 4.0}
    assert _interpolate(costs, 1) == 1.0
    assert _interpolate(costs, 3) == pytest.approx(1.6)
    assert _interpolate(costs, 8) == 4.0
    assert _interpolate(costs, 16) == 8.0
    assert _interpolate({2: 1.2}, 6) == pytest.approx(2.0)
    event = events.PickStarted(n_replies=5, costs=(1.6, 2.8))
    assert events.format_notice(event).endswith("of one reply, in about 1.6 to 2.8 times the time of one.")
    event = events.PickStarted(n_replies=5, costs=(2.0, 2.0), compares=True)
    assert events.format_notice(event).endswith("in about 2.0 times the time of one. Then the model compares them.")


@pytest.mark.parametrize(
    ("method", "n_replies", "n_seqs", "costs"),
    [
        ("agree", 5, 8, (1.6, 1.6 + 1 + 1)),  # three replies at once, and then one after the other
        ("agree", 9, 8, (2.5, 2.5 + 1.2 + 1 + 1)),
        ("likely", 5, 8, (2.5, 2.5)),
        ("likely", 9, 4, (2.0 + 2.0 + 1, 2.0 + 2.0 + 1)),  # the model allows four at once
        ("judge", 3, 8, (1.6, 1.6)),
    ],
)
def test_estimated_time_is_that_of_the_steps_of_all_rounds(
    open_session: OpenSession, monkeypatch: pytest.MonkeyPatch, method: PickMethod, n_replies: int, n_seqs: int,
    costs: tuple[float, float],
) -> None:  # fmt: skip
    session = open_session(answers(7, 7), n_seqs=n_seqs)
    stats = protocol.EngineStats(
        id=0, backend="cpu", model="m", n_ctx=1, context_tokens=0, peak_rss_bytes=0, memory={},
        step_costs={2: 1.2, 4: 2.0, 8: 4.0},
    )  # fmt: skip
    monkeypatch.setattr(session.model.engine, "stats", lambda: stats)
    started = next(e for e in session.send("Hi", n_replies=n_replies, pick=method) if isinstance(e, events.PickStarted))
    assert started.costs == pytest.approx(costs)


def test_failed_save_of_the_pick_is_no_error(open_session: OpenSession, monkeypatch: pytest.MonkeyPatch) -> None:
    session = open_session(answers(7, 7, 7))
    saves = threading.Event()

    def fail(*_arguments: object) -> None:
        saves.set()
        raise StoreError("disk full")

    collected = []
    for event in session.send("What is 3 + 4?", n_replies=3, pick="agree"):
        collected.append(event)
        if isinstance(event, events.PickProgressed) and event.n_finished == 2:
            monkeypatch.setattr(session.store, "checkpoint", fail)
            monkeypatch.setattr(session.store, "select_branch", fail)
    assert saves.is_set()
    assert any(isinstance(event, events.ReplySaveFailed) for event in collected)
    assert isinstance(collected[-1], events.TurnFinished)
    assert collected[-1].reply.text.endswith("7.")


def test_answer_now_counts_while_the_prompt_is_built_and_in_later_rounds(
    open_session: OpenSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = open_session(answers(8, 7, 7, 9, 7, 7, 7), seed=5)
    ended: list[int] = []
    monkeypatch.setattr(session._scripted_engine, "end_thinking", ended.append, raising=False)
    requests = record_requests(session, monkeypatch)
    assert not session.end_thinking()
    for event in session.send("What is 3 + 4?", n_replies=5, pick="agree"):
        if isinstance(event, events.TurnStarted):
            assert session.end_thinking()
    assert len(requests) > 1
    assert set(ended) == {request.id for request in requests}
    assert not session.end_thinking()
    ended.clear()
    list(session.send("And 4 + 5?"))
    assert not ended
