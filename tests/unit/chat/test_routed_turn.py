"""Turns of a route with scripted replies: choice, escalation, failures, and where words go."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from edgechat.bench.scripted_session import Script, ScriptedSession
from edgechat.chat import events
from edgechat.chat.commands import COMMANDS_BY_NAME, load_model
from edgechat.chat.store import Store
from edgechat.config import Settings
from edgechat.errors import EdgechatError, ModelFileError, RemoteError, SettingsError, UsageError
from edgechat.store import open_ephemeral_store, open_store
from tests.remote_server import RemoteServer, remote_server


@pytest.fixture
def models(tmp_path: Path) -> tuple[str, str]:
    for name in ("small", "large"):
        (tmp_path / f"{name}.gguf").write_text("")
    return str(tmp_path / "small.gguf"), str(tmp_path / "large.gguf")


@contextlib.contextmanager
def open_route(
    store: Store, route: dict[str, Any], *, small: str = "Small reply.", large: str = "Large reply.",
    remotes: dict[str, Any] | None = None,
) -> Iterator[ScriptedSession]:  # fmt: skip
    settings = Settings(titles=False, route=route, remotes=remotes or {})
    session = ScriptedSession(store, settings, Script([small]))
    session.second_script = Script([large])
    try:
        session.open()
        load_model(session, "route", lambda event: None)
        yield session
    finally:
        session.close()


def finish(turn: Iterator[events.SessionEvent]) -> events.TurnFinished:
    *_, last = turn
    assert isinstance(last, events.TurnFinished)
    return last


def test_confident_reply_of_the_small_model_stays(home: Path, models: tuple[str, str]) -> None:
    route = {"small": models[0], "large": models[1], "min_logprob": -1.5}
    with open_route(open_store(), route) as session:
        end = finish(session.send("Hi"))
    assert (end.reply.text, end.reply.model, end.alternatives) == ("Small reply.", "small.gguf", ())
    assert end.routed is not None
    assert (end.routed.mean_logprob, end.routed.min_logprob, end.routed.is_escalated) == (-1.0, -1.5, False)
    assert end.routed.notice == ""


def test_doubtful_reply_is_escalated_and_stays_as_an_alternative(home: Path, models: tuple[str, str]) -> None:
    route = {"small": models[0], "large": models[1], "min_logprob": -0.5}
    with open_route(open_store(), route) as session:
        seen = list(session.send("Hi"))
        end = seen[-1]
        assert isinstance(end, events.TurnFinished)
        assert (end.reply.text, end.reply.model) == ("Large reply.", "large.gguf")
        assert [(m.text, m.model) for m in end.alternatives] == [("Small reply.", "small.gguf")]
        assert session.tree.head_id == end.reply.id
        assert len(session.tree.alternatives(end.reply.id)) == 2
        reason = "mean log probability -1.00 below -0.50"
        assert end.routed is not None
        assert end.routed.notice == f"Escalated from small to large: {reason}."
        saved = {m.id: m for m in session.store.messages(session.conversation.id)}[end.reply.id]
        assert saved.stats is not None
        assert saved.stats.route == f"escalated: {reason}"
        started = [e for e in seen if isinstance(e, events.TurnStarted)]
        assert [e.reply.model for e in started] == ["small.gguf", "large.gguf"]
        assert len({e.message.id for e in started}) == 1
        end = finish(session.send("More"))  # the next message continues with the escalated reply
        assert [m.text for m in session.tree.path[:2]] == ["Hi", "Large reply."]


def test_unknown_answer_is_escalated_without_a_threshold(home: Path, models: tuple[str, str]) -> None:
    route = {"small": models[0], "large": models[1]}
    with open_route(open_store(), route, small="I'm sorry, but I don't know.") as session:
        end = finish(session.send("Hi"))
    assert end.reply.text == "Large reply."
    assert end.routed is not None
    assert end.routed.doubt == "dont_know"


def test_rules_and_hard_choose_the_large_model(home: Path, models: tuple[str, str]) -> None:
    route = {"small": models[0], "large": models[1], "rules": [{"use": "large", "min_chars": 10}]}
    with open_route(open_store(), route) as session:
        end = finish(session.send("A long message"))
        assert (end.reply.text, end.alternatives) == ("Large reply.", ())
        assert end.routed is not None
        assert end.routed.notice == "large replied: rule 1."
        assert finish(session.send("Hi")).reply.model == "small.gguf"
        hard = COMMANDS_BY_NAME["hard"].run
        assert hard is not None
        assert hard(session, "").text == "large replies to the next message"
        assert finish(session.send("Hi")).reply.model == "large.gguf"
        assert finish(session.send("Hi")).reply.model == "small.gguf", "/hard counts for one message"
        assert finish(session.regenerate()).reply.model == "small.gguf"


def test_hard_without_a_route_is_refused(home: Path) -> None:
    session = ScriptedSession(open_store(), Settings(), Script(["Reply"]))
    with pytest.raises(UsageError, match=r"/hard needs a route\. Add the table"):
        session.mark_next_hard()
    session.set_base_settings(Settings(route={"small": "a", "large": "b"}))
    with pytest.raises(UsageError, match=r"/hard needs a route\. Use /model route\."):
        session.mark_next_hard()
    also = COMMANDS_BY_NAME["also"].run
    assert also is not None
    with pytest.raises(UsageError, match="Name one of them"):
        also(session, "route")
    session.close()


def test_failure_of_the_large_model_keeps_the_small_reply(home: Path, models: tuple[str, str]) -> None:
    with remote_server() as server:
        server.required_key = "secret"
        route = {"small": models[0], "large": "box/big", "min_logprob": -0.5}
        with open_route(open_store(), route, remotes={"box": server.settings}) as session:
            end = finish(session.send("Hi"))
            assert end.reply.text == "Small reply."
            assert session.tree.head_id == end.reply.id
            assert len(session.tree) == 2, "the empty reply of the remote is removed"
            assert end.routed is not None
            assert "box/big failed: " in end.routed.notice


@pytest.mark.parametrize("dont_know", [True, False])
def test_large_model_replies_in_place_of_a_remote_small_one_that_fails(
    home: Path, models: tuple[str, str], *, dont_know: bool
) -> None:
    """Whether the replies of the small model are checked does not matter."""
    with remote_server() as server:
        server.required_key = "secret"
        rules = [{"use": "small", "min_chars": 10}]
        route = {"small": "box/small", "large": models[1], "rules": rules, "dont_know": dont_know}
        with open_route(open_store(), route, remotes={"box": server.settings}) as session:
            end = finish(session.send("Hi"))
            assert (end.reply.model, end.alternatives) == ("large.gguf", ())
            assert [m.id for m in session.tree.path][1:] == [end.reply.id]
            assert len(session.tree) == 2, "the empty reply of the remote is removed"
            assert session.conversation.title == "Hi"
            assert end.routed is not None
            assert end.routed.notice.startswith(f"Escalated from box/small to large: box (127.0.0.1:{server.port})")
            with pytest.raises(RemoteError, match="needs an API key"):
                list(session.send("A long message"))  # the choice of a rule is final


def test_remote_receives_an_escalated_message_and_the_screen_says_so(home: Path, models: tuple[str, str]) -> None:
    with remote_server() as server:
        route = {"small": models[0], "large": "box/big", "min_logprob": -0.5}
        with open_route(open_store(), route, remotes={"box": server.settings}) as session:
            assert session.source.description == f"route: small, or box/big (remote, 127.0.0.1:{server.port})"
            assert not server.exchanges
            end = finish(session.send("Hi"))
            assert (end.reply.text, end.reply.model) == ("Hello there.", "box/big")
            assert len(server.exchanges) == 1


def test_remote_small_model_frees_the_engine_until_the_local_one_is_needed(home: Path, models: tuple[str, str]) -> None:
    with remote_server() as server:
        route = {"small": "box/small", "large": models[1], "rules": [{"use": "large", "min_chars": 10}]}
        with open_route(open_store(), route, remotes={"box": server.settings}) as session:
            assert not session.model.is_open, "nobody replies with the model that was loaded before"
            assert session.is_open
            assert finish(session.send("Hi")).reply.text == "Hello there."
            assert not session.model.is_open
            assert finish(session.send("A long message")).reply.model == "large.gguf"
            assert session.model.is_open


def test_local_conversation_is_not_escalated_to_a_remote(home: Path, models: tuple[str, str]) -> None:
    with remote_server() as server:
        route = {"small": models[0], "large": "box/big", "min_logprob": -0.5}
        store = open_store()
        with open_route(store, route, remotes={"box": server.settings}) as session:
            list(session.send("Hi"))
            n_exchanges = len(server.exchanges)
            load_model(session, models[0], lambda event: None)
            session.switch_conversation()
            list(session.send("Local secret"))
            local = session.conversation
            session.switch_conversation()
            load_model(session, "route", lambda event: None)
            session.switch_conversation(local)
            end = finish(session.send("Another secret"))
            assert end.reply.text == "Small reply."
            assert end.routed is not None
            assert "this conversation stays on this machine" in end.routed.notice
            with pytest.raises(UsageError, match="stays on this machine"):
                session.mark_next_hard()
            assert len(server.exchanges) == n_exchanges


@pytest.mark.parametrize(
    ("route", "words"),
    [
        ({}, r"There is no route in the settings\. Add a table \[route\]"),
        ({"small": "route", "large": "x"}, "not the route itself"),
        ({"small": "no-such-model", "large": "other"}, "no-such-model"),
    ],
)
def test_route_that_cannot_be_used_is_refused(home: Path, route: dict[str, Any], words: str) -> None:
    session = ScriptedSession(open_store(), Settings(route=route), Script(["Reply"]))
    with pytest.raises((SettingsError, ModelFileError), match=words):
        load_model(session, "route", lambda event: None)
    session.close()


def test_rule_with_an_unknown_persona_is_refused(home: Path, models: tuple[str, str]) -> None:
    rules = [{"use": "large", "persona": "nobody"}]
    with (
        pytest.raises(SettingsError, match="names the persona 'nobody'"),
        open_route(open_store(), {"small": models[0], "large": models[1], "rules": rules}),
    ):
        pass


_OPERATIONS = st.lists(
    st.one_of(
        st.sampled_from(["send", "new", "retry", "resume", "edit", "hard", "best", "title", "warm", "route", "local"]),
        st.integers(0, 2),
    ),
    max_size=10,
)


@pytest.mark.parametrize("is_ephemeral", [False, True])
@pytest.mark.parametrize("sides", [("local", "box/big"), ("box/big", "local"), ("box/big", "box/small")])
@given(operations=_OPERATIONS)
@hypothesis_settings(max_examples=6, deadline=None)
def test_no_rule_sends_words_of_a_private_conversation(
    operations: list[str | int], sides: tuple[str, str], is_ephemeral: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    local = tmp_path_factory.mktemp("model") / "local.gguf"
    local.write_text("")
    small, large = (str(local) if side == "local" else side for side in sides)
    rules = [{"use": "large", "min_chars": 30}]
    route = {"small": small, "large": large, "min_logprob": -0.5, "rules": rules}
    owners: dict[str, str] = {}
    routed_ids: set[str] = set()

    def make_word(session: ScriptedSession) -> str:
        word = f"secret{len(owners)}x"
        owners[word] = session.conversation.id
        return f"{word} and some more" + " words" * (len(owners) % 3 * 2)

    with remote_server() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGECHAT_HOME", str(tmp_path_factory.mktemp("home")))
        store = open_ephemeral_store() if is_ephemeral else open_store()
        settings = Settings(route=route, remotes={"box": server.settings})
        session = ScriptedSession(store, settings, Script(["Reply"]))
        session.open()
        is_routed = False

        def choose_route() -> None:
            nonlocal is_routed
            load_model(session, "route", lambda event: None)
            is_routed = True
            routed_ids.add(session.conversation.id)

        def choose_local() -> None:
            nonlocal is_routed
            load_model(session, str(local), lambda event: None)
            is_routed = False

        def start_new() -> None:
            session.switch_conversation()
            if is_routed:
                routed_ids.add(session.conversation.id)

        def edit() -> None:
            for message in session.tree.path[:1]:
                list(session.edit(message.id, make_word(session)))

        actions = {
            "send": lambda: list(session.send(make_word(session))), "new": start_new, "edit": edit,
            "retry": lambda: list(session.regenerate()), "resume": lambda: list(session.continue_reply()),
            "hard": session.mark_next_hard, "title": session.generate_title, "warm": session.warm_cache,
            "best": lambda: list(session.regenerate(n_replies=3, pick="agree")),
            "route": choose_route, "local": choose_local,
        }  # fmt: skip
        for operation in operations:
            with contextlib.suppress(EdgechatError):
                _open(session, operation) if isinstance(operation, int) else actions[operation]()
        session.close()
        _check_words(server, owners, set() if is_ephemeral else routed_ids)


def _open(session: ScriptedSession, index: int) -> None:
    summaries = session.store.list_conversations()
    if index < len(summaries):
        session.switch_conversation(summaries[index].conversation)


def _check_words(server: RemoteServer, owners: dict[str, str], allowed: set[str]) -> None:
    for exchange in server.exchanges:
        for word in re.findall(r"secret\d+x", json.dumps(exchange.body)):
            assert owners[word] in allowed, f"the remote received {word} of a private conversation"
