"""Where words go: a remote receives only conversations for which the user chose it."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgechat.bench.scripted_session import Script, ScriptedSession
from edgechat.chat import events
from edgechat.chat.commands import load_model
from edgechat.chat.model_targets import find_target
from edgechat.chat.second_reply import create_source
from edgechat.chat.session import Session
from edgechat.config import Settings
from edgechat.errors import EdgechatError, UsageError
from edgechat.remote.target import RemoteModel
from edgechat.store import open_ephemeral_store, open_store
from tests.remote_server import RemoteServer, remote_server

REMOTES = ("box", "shop")
_OPERATIONS = st.one_of(
    st.tuples(st.just("send")),
    st.tuples(st.just("model"), st.sampled_from(["local", "box/big", "shop/big", "box"])),
    st.tuples(st.just("open"), st.integers(0, 3)),
    st.tuples(st.just("also"), st.sampled_from(["box/big", "shop/big"])),
    st.tuples(
        st.sampled_from(["send", "new", "retry", "resume", "edit", "title", "warm", "tokens", "delete", "agree"])
    ),
)


class Words:
    """Words of each conversation, and the remotes that the user chose for it."""

    def __init__(self) -> None:
        self.n_words = 0
        self.owners: dict[str, str] = {}
        self.chosen: set[tuple[str, str]] = set()
        self.sent_once: set[tuple[str, str]] = set()
        """Words that `/also` may have sent to a remote: those that the open conversation had then."""

    def make(self, conversation_id: str) -> str:
        self.n_words += 1
        word = f"secret{self.n_words}x"
        self.owners[word] = conversation_id
        return word

    def check(self, name: str, server: RemoteServer) -> None:
        for exchange in server.exchanges:
            for word in re.findall(r"secret\d+x", json.dumps(exchange.body)):
                is_allowed = (self.owners[word], name) in self.chosen or (word, name) in self.sent_once
                assert is_allowed, f"{name} received a word of another conversation"


@pytest.mark.parametrize("is_ephemeral", [False, True])
@given(operations=st.lists(_OPERATIONS, max_size=10))
@settings(max_examples=15, deadline=None)
def test_no_word_goes_to_a_remote_that_was_not_chosen_for_it(
    operations: list[tuple[str, object]], is_ephemeral: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    local = tmp_path_factory.mktemp("model") / "local.gguf"
    local.write_text("")
    with contextlib.ExitStack() as stack:
        servers = {name: stack.enter_context(remote_server()) for name in REMOTES}
        servers["box"].models.append({"id": "small"})
        remotes = {name: server.settings for name, server in servers.items()}
        remotes["box"] = msgspec.structs.replace(remotes["box"], model="big")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("EDGECHAT_HOME", str(tmp_path_factory.mktemp("home")))
            store = open_ephemeral_store() if is_ephemeral else open_store()
            session = ScriptedSession(store, Settings(remotes=remotes), Script(["Reply"]))
            session.second.create_source = create_source
            session.open()
            stack.callback(session.close)
            words = Words()
            user = User(session, local, words)
            for operation, *arguments in operations:
                with contextlib.suppress(EdgechatError):
                    getattr(user, operation)(*arguments)
            for name, server in servers.items():
                words.check(name, server)


class User:
    """Does what a user does, and notes which remotes the user chose for the open conversation."""

    def __init__(self, session: Session, local: Path, words: Words) -> None:
        self.session = session
        self.local = local
        self.words = words

    def model(self, name: str) -> None:
        conversation_id = self.session.conversation.id
        load_model(self.session, str(self.local) if name == "local" else name, lambda event: None)
        if name != "local":
            self.words.chosen.add((conversation_id, name.partition("/")[0]))

    def _choose_for_new(self) -> None:
        """Note that a new conversation belongs to the remote whose name the screen shows."""
        if self.session.source.is_remote:
            self.words.chosen.add((self.session.conversation.id, self.session.reply_model.partition("/")[0]))

    def new(self) -> None:
        self.session.switch_conversation()
        self._choose_for_new()

    def open(self, index: int) -> None:
        summaries = self.session.store.list_conversations()
        if index < len(summaries):
            self.session.switch_conversation(summaries[index].conversation)

    def send(self) -> None:
        if not len(self.session.tree):
            self._choose_for_new()
        list(self.session.send(f"Here is {self.words.make(self.session.conversation.id)}"))

    def edit(self) -> None:
        word = self.words.make(self.session.conversation.id)
        for message in self.session.tree.path[:1]:
            list(self.session.edit(message.id, word))

    def also(self, name: str) -> None:
        """Let a remote answer the last message, too, and nothing later."""
        texts = " ".join(m.text for m in self.session.tree.path)
        self.words.sent_once |= {(word, name.partition("/")[0]) for word in re.findall(r"secret\d+x", texts)}
        list(self.session.second.answer(name, find_target(name, self.session.settings.remotes)))

    def retry(self) -> None:
        list(self.session.regenerate())

    def agree(self) -> None:
        list(self.session.regenerate(n_replies=3, pick="agree"))

    def resume(self) -> None:
        list(self.session.continue_reply())

    def delete(self) -> None:
        for message in self.session.tree.path[2:3]:
            self.session.delete(message.id)

    def title(self) -> None:
        self.session.generate_title()

    def warm(self) -> None:
        self.session.warm_cache()

    def tokens(self) -> None:
        self.session.context_usage("Text")


def test_local_conversation_is_not_sent_after_it_is_opened_beside_a_remote_one(home: Path) -> None:
    with remote_server() as server:
        session = ScriptedSession(open_store(), Settings(remotes={"box": server.settings}), Script(["Reply"]))
        session.open()
        list(session.send("Local secret"))
        local_conversation = session.conversation
        session.switch_conversation()
        load_model(session, "box/big", lambda event: None)
        list(session.send("For the box"))
        session.switch_conversation(local_conversation)
        with pytest.raises(UsageError, match=r"nothing was sent to 127.0.0.1:\d+\. Use /model box/big"):
            list(session.send("More secrets"))
        assert len(session.tree) == 2
        assert len(server.exchanges) == 1
        load_model(session, "box/big", lambda event: None)
        *_, last = session.send("Now I want it")
        assert isinstance(last, events.TurnFinished)
        session.close()


def test_local_names_have_priority(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with remote_server() as server:
        remotes = {"box": server.settings}
        target = find_target("box/big", remotes)
        assert isinstance(target, RemoteModel)
        assert (target.remote, target.model) == ("box", "big")
        target = find_target("box/models/file.gguf", remotes)  # the name of a model in llama-server
        assert isinstance(target, RemoteModel)
        monkeypatch.chdir(tmp_path)
        (tmp_path / "box").mkdir()
        (tmp_path / "box" / "big").write_text("")
        assert find_target("box/big", remotes) == Path("box/big")
        with pytest.raises(EdgechatError, match=r"The remote box has no default model\. Use -m box/MODEL"):
            find_target("box", remotes)
        assert not server.exchanges
