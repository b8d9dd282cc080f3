"""Turns whose reply is picked from several, with the starter model."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from edgechat.chat import events
from edgechat.config import Settings
from edgechat.prompt.agreement.picker import PickMethod
from tests.engine.chats import OpenChat

SETTINGS = Settings(temperature=0.8, max_tokens=24, n_ctx=2048, seed=1)
QUESTION = "Say hello in one short sentence."


@pytest.mark.slow
@pytest.mark.parametrize("method", ["agree", "likely", "judge"])
def test_picked_reply_is_stored_with_its_alternatives(open_chat: Callable[..., OpenChat], method: PickMethod) -> None:
    chat = open_chat(SETTINGS)
    *_, picked, finished = chat.session.send(QUESTION, n_replies=3, pick=method)
    assert isinstance(picked, events.ReplyPicked)
    assert isinstance(finished, (events.TurnFinished, events.TurnInterrupted))
    chat.check()
    replies = [finished.reply, *finished.alternatives]
    assert len(replies) == picked.pick.n_started
    assert chat.session.tree.path[-1].id == finished.reply.id
    assert set(chat.session.tree.alternatives(finished.reply.id)) == {m.id for m in replies}
    complete = [m.stats for m in replies if m.stats is not None and m.finish_reason == "stop"]
    likelihoods = [stats.mean_logprob for stats in complete if isinstance(stats.mean_logprob, float)]
    assert len(likelihoods) == len(complete)
    assert all(value < 0 for value in likelihoods)
    if method == "likely" and likelihoods:
        assert likelihoods[0] == max(likelihoods)
    *_, finished = chat.session.regenerate(n_replies=2, pick=method)
    assert isinstance(finished, (events.TurnFinished, events.TurnInterrupted))
    assert len(chat.session.tree.alternatives(finished.reply.id)) == len(replies) + 1 + len(finished.alternatives)
    chat.check()


@pytest.mark.slow
def test_rounds_read_the_prompt_once(open_chat: Callable[..., OpenChat]) -> None:
    chat = open_chat(Settings(temperature=0.8, max_tokens=4, n_ctx=2048, seed=1))
    question = "List the months. " * 20
    *_, finished = chat.session.send(question, n_replies=10, pick="likely")
    assert isinstance(finished, (events.TurnFinished, events.TurnInterrupted))
    cached = [m.stats.cached_tokens for m in (finished.reply, *finished.alternatives) if m.stats is not None]
    n_prompt = finished.reply.stats.prompt_tokens if finished.reply.stats is not None else 0
    assert n_prompt > 60
    assert cached.count(max(cached)) == 2  # the second round
    assert max(cached) >= n_prompt - 1


@pytest.mark.slow
def test_stop_while_picking_keeps_all_replies(open_chat: Callable[..., OpenChat]) -> None:
    chat = open_chat(Settings(temperature=0.8, max_tokens=900, n_ctx=2048, seed=1))
    final: events.SessionEvent | None = None
    for event in chat.session.send("Write a long story about a lighthouse.", n_replies=4, pick="likely"):
        final = event
        if isinstance(event, events.ReplyTextGenerated):
            chat.session.stop()
    assert isinstance(final, (events.TurnFinished, events.TurnInterrupted))
    assert final.reply.text
    assert len(chat.session.tree.alternatives(final.reply.id)) == 4
    chat.check()
