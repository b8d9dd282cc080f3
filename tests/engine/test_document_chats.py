"""Conversations about documents: cached and cold replies are equal, and conversations share prefixes."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edgechat import paths
from edgechat.chat.messages import Message
from edgechat.config import Settings
from edgechat.documents import indexing
from edgechat.documents.library import DocumentLibrary
from edgechat.store import open_ephemeral_store, open_store
from tests.engine.chats import OpenChat
from tests.models import Kind, write_parrot, write_tiny
from tests.waiting import until

# Without drafts, whose batches round differently.
GREEDY = Settings(temperature=0.0, max_tokens=16, n_ctx=4096, docs=("facts",), titles=False, speculation=False)
COLD = msgspec.structs.replace(GREEDY, strict=True)


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    """Make a collection of 12 short documents."""
    folder = tmp_path / "facts"
    folder.mkdir()
    for i in range(12):
        (folder / f"lamp{i}.txt").write_text(
            f"The lamp{i} has a battery of {4000 + 7 * i} mAh.\n\nIt was made in the town of Quimby{i} in {1900 + i}."
        )
    with DocumentLibrary(paths.documents_dir()).create("facts") as collection:
        indexing.update(collection, add=[folder])
    return folder


@pytest.fixture
def parrot(tmp_path: Path) -> Path:
    return write_parrot(tmp_path / "parrot.gguf", "abcdefghijklmnopqrst", n_ctx=8192)


def open_chat(model: Path, **fields: object) -> OpenChat:
    """Open a saved conversation in whose context the documents fit."""
    return OpenChat(model, open_store(), msgspec.structs.replace(GREEDY, n_ctx=8192, **fields))


def ask_all(chat: OpenChat, questions: list[str], *, waits_for_save: bool = False) -> list[Message]:
    """Ask questions and close the chat; with `waits_for_save`, when the last prompt is on disk."""
    try:
        replies = [chat.run(chat.session.send(question)) for question in questions]
        stats = replies[-1].stats
        assert stats is not None
        if waits_for_save:  # the end of the engine waits for less than two seconds
            until(lambda: count_saved_tokens() >= stats.prompt_tokens)
        return replies
    finally:
        chat.session.close()


def count_saved_tokens() -> int:
    """Return the end of the last saved segment, from the names of the files: START-END-DIGEST.kv."""
    return max((int(path.stem.split("-")[1]) for path in paths.prefix_dir().rglob("*.kv")), default=0)


@pytest.mark.parametrize(
    ("kind", "n_ctx"), [("llama", 8192), ("llama", 1024), ("sliding", 8192), ("mamba", 8192), ("hybrid", 8192)]
)
def test_cached_replies_about_documents_equal_cold_ones(tmp_path: Path, facts: Path, kind: Kind, n_ctx: int) -> None:
    """With 8,192 tokens, the documents are read whole; with 1,024, they are searched.

    The models are random, because their 32-bit weights give no near ties. Between two tokens that are nearly as
    probable, of which the starter model has many, the number of tokens in a batch decides.
    """
    model = write_tiny(tmp_path / "model.gguf", kind, n_ctx=n_ctx)

    def ask(settings: Settings) -> list[Message]:
        chat = OpenChat(model, open_ephemeral_store(), msgspec.structs.replace(settings, n_ctx=n_ctx))
        return ask_all(chat, ["What battery has lamp3?", "And lamp7?", "Where was lamp5 made?"])

    cached = ask(GREEDY)
    assert [m.text for m in cached] == [m.text for m in ask(COLD)]
    stats = cached[2].stats
    assert stats is not None
    assert stats.cached_tokens > (stats.prompt_tokens / 2 if n_ctx == 8192 else 0)


def test_other_conversation_starts_from_the_cached_documents(parrot: Path, facts: Path) -> None:
    [first] = ask_all(open_chat(parrot), ["What battery has lamp3?"], waits_for_save=True)
    [second] = ask_all(open_chat(parrot, system_prompt="Be brief."), ["Where was lamp5 made?"])
    assert first.stats is not None
    assert second.stats is not None
    assert first.stats.cached_tokens == 0
    assert second.stats.cached_disk_tokens > 0.8 * second.stats.prompt_tokens


def test_opening_a_conversation_reads_the_documents(parrot: Path, facts: Path) -> None:
    chat = open_chat(parrot)
    chat.session.warm_cache()
    [reply] = ask_all(chat, ["What battery has lamp3?"])
    assert reply.stats is not None
    assert reply.stats.cached_tokens > 0.9 * reply.stats.prompt_tokens
