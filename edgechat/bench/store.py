"""How the store does with many conversations: lists, opening, search, and what a message waits for."""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from edgechat.chat.messages import Conversation, Message, new_id
from edgechat.store.database import Database
from edgechat.store.sqlite import SqliteStore

Say = Callable[[str], None]

_START_MS: Final = 1_700_000_000_000
_MESSAGE_MS: Final = 60_000
_WORDS_A_MESSAGE: Final = 60
_VOCABULARY: Final = 30_000
_APPENDS: Final = 1000
# What is looked for: (name, query).
QUERIES: Final = (
    ("a word in every message", "the"),
    ("a common word", "w00010"),
    ("two common words", "w00010 w00020"),
    ("a rare word", "w29990"),
    ("a phrase that is nowhere", '"w00001 w29999 w00002"'),
    ("part of a word", "2999"),
    ("two characters", "w2"),
    ("a word of Chinese", "中文搜"),
)


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds of one kind of operation."""

    name: str
    median_ms: float
    p99_ms: float
    n: int


class StoreReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured."""

    n_conversations: int
    n_messages: int
    size_bytes: int
    build_s: float
    timings: list[Timing]
    fsync_p99_ms: float
    """Writing as many bytes as an append does, and waiting for the disk; in turn with the appends."""
    append_over_fsync_p99_ms: float


def run(directory: Path, n_conversations: int, n_messages: int, say: Say) -> StoreReport:
    """Fill a new store in `directory` with `n_messages` in all, and measure it. Raises StoreError."""
    draw = random.Random(0)  # noqa: S311  (the same every time)
    path = directory / "history.db"
    store = SqliteStore(Database(path))
    started = time.monotonic()
    ids = _fill(store, n_conversations, n_messages // n_conversations, draw, say)
    build_s = time.monotonic() - started
    store.close()
    # As a user meets it: a process that just started.
    store = SqliteStore(Database(path))
    say("measuring")
    timings = [
        _timed("list, first page", lambda: store.list(limit=50), 21),
        _timed("open a conversation", lambda: store.messages(draw.choice(ids)), 101),
    ]
    timings += [_timed(f"search: {name}", lambda q=query: store.search(q), 21) for name, query in QUERIES]  # type: ignore[misc]
    timings += [_timed("search by rank: a common word", lambda: store.search("w00010", order="rank"), 21)]
    appends, syncs = _appends(store, directory, draw, ids)
    timings.append(_timing("append a message", appends))
    timings.append(_checkpoints(store, draw, ids))
    store.close()
    fsync_p99 = _timing("", syncs).p99_ms
    return StoreReport(
        n_conversations=n_conversations, n_messages=n_messages, size_bytes=path.stat().st_size, build_s=build_s,
        timings=timings, fsync_p99_ms=fsync_p99,
        append_over_fsync_p99_ms=_timing("", appends).p99_ms - fsync_p99,
    )  # fmt: skip


def _text(draw: random.Random, weights: list[float], words: list[str]) -> str:
    return "the " + " ".join(draw.choices(words, cum_weights=weights, k=_WORDS_A_MESSAGE))


def _messages(draw: random.Random, n: int, at_ms: int) -> Iterator[Message]:
    words = [f"w{i:05}" for i in range(_VOCABULARY)]
    weights, total = [], 0.0
    for i in range(_VOCABULARY):  # as in languages: the n-th word is n times rarer than the first
        total += 1 / (i + 1)
        weights.append(total)
    words[5000] = "中文搜索引擎"
    while True:
        parent: str | None = None
        for i in range(n):
            message = Message(
                id=new_id(), parent_id=parent, role="assistant" if i % 2 else "user",
                text=_text(draw, weights, words), created_at_ms=at_ms, finish_reason="stop" if i % 2 else "",
            )  # fmt: skip
            parent = message.id
            at_ms += _MESSAGE_MS
            yield message


def _fill(store: SqliteStore, n_conversations: int, n_each: int, draw: random.Random, say: Say) -> list[str]:
    ids: list[str] = []
    messages = _messages(draw, n_each, _START_MS)
    for number in range(n_conversations):
        said = [next(messages) for _ in range(n_each)]
        conversation = Conversation(
            id=new_id(), title=f"Conversation {number} about {said[0].text[4:20]}", head_id=said[-1].id,
            created_at_ms=said[0].created_at_ms, updated_at_ms=said[-1].created_at_ms,
        )  # fmt: skip
        store.merge(conversation, said)
        ids.append(conversation.id)
        if number % 100 == 0:
            say(f"filling: {number} of {n_conversations} conversations")
    return ids


def _appends(
    store: SqliteStore, directory: Path, draw: random.Random, ids: list[str]
) -> tuple[list[float], list[float]]:
    """Seconds that appends took, and in turn with each, writing and syncing 32 KiB of a file beside."""
    appends, syncs = [], []
    messages = _messages(draw, 1, _START_MS)
    conversation = store.conversation(ids[-1])
    parent = conversation.head_id
    data = os.urandom(32 << 10)
    with (directory / "fsync").open("wb", buffering=0) as file:
        for _ in range(_APPENDS):
            message = msgspec.structs.replace(next(messages), parent_id=parent)
            started = time.perf_counter()
            store.append(conversation, [message])
            middle = time.perf_counter()
            file.write(data)
            os.fsync(file.fileno())
            syncs.append(time.perf_counter() - middle)
            appends.append(middle - started)
            parent = message.id
    return appends, syncs


def _checkpoints(store: SqliteStore, draw: random.Random, ids: list[str]) -> Timing:
    """What an answer of 4,000 characters costs to be written down once more while it grows."""
    conversation = store.conversation(ids[0])
    text = "word " * 800
    answer = Message(id=new_id(), parent_id=conversation.head_id, role="assistant", finish_reason="streaming")
    store.append(conversation, [answer])
    return _timed(
        "checkpoint an answer",
        lambda: store.checkpoint(msgspec.structs.replace(answer, text=text + str(draw.random()))), 101,
    )  # fmt: skip


def _timed(name: str, operation: Callable[[], object], n: int) -> Timing:
    seconds = []
    for _ in range(n):
        started = time.perf_counter()
        operation()
        seconds.append(time.perf_counter() - started)
    return _timing(name, seconds)


def _timing(name: str, seconds: list[float]) -> Timing:
    ordered = sorted(seconds)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return Timing(name=name, median_ms=statistics.median(ordered) * 1000, p99_ms=p99 * 1000, n=len(ordered))
