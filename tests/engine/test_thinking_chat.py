"""Limits of reasoning and "answer now" in a conversation: the saved reply keeps reasoning and text apart."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from edgechat.chat import events
from edgechat.chat.commands import COMMANDS_BY_NAME
from edgechat.chat.messages import Message
from edgechat.chat.session import Session
from edgechat.config import Settings
from edgechat.store import open_store
from edgechat.store.sqlite import SqliteStore
from tests.engine.chats import OpenChat
from tests.models import OPEN_THOUGHT_TEMPLATE, TEMPLATE, THINKING_TEMPLATE, write_parrot, write_tiny_llama


def open_thinking_chat(tmp_path: Path, template: str = THINKING_TEMPLATE, **options: object) -> OpenChat:
    """Open a chat with a model that thinks for ever: its random text never ends and has no tags."""
    model = write_tiny_llama(tmp_path / "thinker.gguf", template=template, seed=3)
    values = {"temperature": 0.0, "max_tokens": 90, "n_ctx": 256, "titles": False, "seed": 1} | options
    return OpenChat(model, open_store(), Settings(**values))  # type: ignore[arg-type]


def check_parts(reply: Message) -> None:
    assert "think>" not in reply.reasoning + reply.text
    assert reply.reasoning.strip()
    assert reply.text.strip()


@pytest.mark.parametrize("limit", ["20", "off", "low"])
@pytest.mark.parametrize("template", [THINKING_TEMPLATE, OPEN_THOUGHT_TEMPLATE])
def test_limit_ends_the_reasoning_and_the_reply_begins(tmp_path: Path, limit: str, template: str) -> None:
    chat = open_thinking_chat(tmp_path, template, thinking=limit)
    reply = chat.run(chat.session.send("Hi"))
    assert reply.stats is not None
    if limit == "off":
        assert not reply.reasoning.strip()
        assert reply.text.strip()
        assert (reply.stats.reasoning_tokens or 0) <= len("\n</think>")
    else:
        check_parts(reply)
        n_budget = 20 if limit == "20" else 256 // 16
        assert n_budget <= (reply.stats.reasoning_tokens or 0) <= n_budget + len("\n</think>")
        limited = next(e for e in chat.events if isinstance(e, events.ThinkingLimited))
        assert limited.max_tokens == n_budget
    chat.session.close()


def test_without_a_limit_reasoning_takes_the_whole_reply(tmp_path: Path) -> None:
    chat = open_thinking_chat(tmp_path, thinking="on")
    reply = chat.run(chat.session.send("Hi"))
    assert reply.reasoning
    assert not reply.text
    assert not any(isinstance(e, events.ThinkingLimited) for e in chat.events)
    chat.session.close()


def test_reasoning_that_repeats_itself_ends_and_the_reply_begins(tmp_path: Path) -> None:
    passage = "abcdefghijklmnopqrst"
    model = write_parrot(tmp_path / "parrot.gguf", passage, is_endless=True, template=OPEN_THOUGHT_TEMPLATE)
    settings = Settings(temperature=0.0, max_tokens=900, n_ctx=2048, thinking="on", titles=False)
    chat = OpenChat(model, open_store(), settings)
    reply = chat.run(chat.session.send("Hi"))
    assert reply.reasoning == passage * 10
    assert reply.text == passage * 10
    assert reply.repeats_itself
    chat.session.close()


def test_answer_now_ends_the_reasoning_at_any_moment(tmp_path: Path) -> None:
    chat = open_thinking_chat(tmp_path, thinking="on", max_tokens=60)
    session, rng = chat.session, random.Random(5)
    assert not session.end_thinking()
    for number in range(8):
        # Before the first reply begins, so that there is only text; without the request, there would be none.
        turn, n_before = session.send(f"Hi {number}"), rng.randrange(12) if number else 0
        collected = []
        for n_events, event in enumerate(turn):
            collected.append(event)
            if n_events == n_before:
                session.end_thinking()
        reply = session.tree.path[-1]
        assert isinstance(collected[-1], events.TurnFinished)
        generated = [e for e in collected if isinstance(e, events.ReplyTextGenerated)]
        assert reply.text == "".join(e.text for e in generated)
        assert reply.reasoning == "".join(e.reasoning for e in generated).rstrip("\n")
        assert reply.finish_reason in {"stop", "length"}
        assert "think>" not in reply.reasoning + reply.text
        if not number:
            assert reply.text.strip()
            assert not reply.reasoning.strip()
        chat.check()
        session.delete(session.tree.path[0].id)
    session.close()


@pytest.mark.parametrize(
    ("template", "limit", "problem"),
    [
        (TEMPLATE, "low", "The limit has no effect, because plain is not a reasoning model."), (TEMPLATE, "off", ""),
        (THINKING_TEMPLATE, "low", ""),
    ],
)  # fmt: skip
def test_limit_without_effect_is_reported(tmp_path: Path, template: str, limit: str, problem: str) -> None:
    model = write_tiny_llama(tmp_path / "plain.gguf", template=template)
    session = Session(open_store(), Settings(n_ctx=256, titles=False), model, flags={"thinking": limit})
    session.open()
    assert session.warnings == ([problem] if problem else [])
    change_limit = COMMANDS_BY_NAME["thinking"].run
    assert change_limit is not None
    assert change_limit(session, limit).text == ". ".join(filter(None, (f"Limit of reasoning: {limit}", problem)))
    session.close()


def test_stop_after_the_end_of_the_reasoning_keeps_both_parts(tmp_path: Path) -> None:
    chat = open_thinking_chat(tmp_path, thinking="20", max_tokens=150)
    for event in chat.session.send("Hi"):
        if isinstance(event, events.ReplyTextGenerated) and event.text.strip():
            chat.session.stop()
    reply = chat.session.tree.path[-1]
    check_parts(reply)
    assert reply.finish_reason in {"cancelled", "length"}  # the last tokens can be generated before the stop
    chat.check()
    chat.session.close()


@pytest.mark.parametrize("store", ["thinking", "reasoning"])
def test_last_command_decides_about_reasoning(tmp_path: Path, store: str) -> None:
    chat = open_thinking_chat(tmp_path)
    chat.session.override_settings(reasoning=False)
    chat.session.override_settings(thinking="20")
    assert (chat.session.settings.reasoning, chat.session.settings.thinking) == (None, "20")
    check_parts(chat.run(chat.session.send("Hi")))
    if store == "reasoning":
        chat.session.override_settings(reasoning=False)
        assert not chat.run(chat.session.send("Hi")).reasoning
    reopened: SqliteStore = open_store()
    assert reopened.conversation(chat.session.conversation.id).settings["thinking"] == "20"
    reopened.close()
    chat.session.close()
