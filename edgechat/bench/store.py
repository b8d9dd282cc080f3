"""Benchmark of the conversation store: lists, opening, search, appends and checkpoints."""

from __future__ import annotations

import functools
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from edgechat.chat.messages import Conversation, Message, new_id
from edgechat.humanize import size
from edgechat.store.database import Database
from edgechat.store.sqlite import SqliteStore

ProgressCallback = Callable[[str], None]

_START_MS: Final = 1_700_000_000_000
_MESSAGE_MS: Final = 60_000
_WORDS_A_MESSAGE: Final = 60
_VOCABULARY: Final = 30_000
_APPENDS: Final = 1000
# Search queries: (name, query).
QUERIES: Final = (
    ("a word in every message", "the"),
    ("a common word", "w00010"),
    ("two common words", "w00010 w00020"),
    ("a rare word", "w29990"),
    ("a phrase without a match", '"w00001 w29999 w00002"'),
    ("part of a word", "2999"),
    ("two characters", "w2"),
    ("a word of Chinese", "中文搜"),
)


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """Duration of one kind of operation, in milliseconds."""

    name: str
    median_ms: float
    p99_ms: float
    n: int


class StoreReport(msgspec.Struct, frozen=True, kw_only=True):
    """Results of the store benchmark."""

    n_conversations: int
    n_messages: int
    size_bytes: int
    build_s: float
    timings: list[Timing]
    fsync_p99_ms: float
    """Write and fsync of as many bytes as an append writes, alternating with the appends."""
    append_over_fsync_p99_ms: float


def run(directory: Path, n_conversations: int, n_messages: int, on_progress: ProgressCallback) -> StoreReport:
    """Fill a new store in `directory` with `n_messages` messages and measure it. Raises StoreError."""
    generator = random.Random(0)  # noqa: S311  (reproducible)
    path = directory / "history.db"
    store = SqliteStore(Database(path))
    started = time.monotonic()
    ids = _fill(store, n_conversations, n_messages // n_conversations, generator, on_progress)
    build_s = time.monotonic() - started
    store.close()
    # Reopen the store, as a new process would.
    store = SqliteStore(Database(path))
    on_progress("measuring")
    timings = [
        _timed("list, first page", lambda: store.list_conversations(limit=50), 21),
        _timed("open a conversation", lambda: store.messages(generator.choice(ids)), 101),
    ]
    timings += [_timed(f"search: {name}", functools.partial(store.search, query), 21) for name, query in QUERIES]
    timings += [_timed("search by rank: a common word", lambda: store.search("w00010", order="rank"), 21)]
    appends, syncs = _measure_appends(store, directory, generator, ids)
    timings.append(_timing("append a message", appends))
    timings.append(_measure_checkpoints(store, generator, ids))
    store.close()
    fsync_p99 = _timing("", syncs).p99_ms
    return StoreReport(
        n_conversations=n_conversations, n_messages=n_messages, size_bytes=path.stat().st_size, build_s=build_s,
        timings=timings, fsync_p99_ms=fsync_p99,
        append_over_fsync_p99_ms=_timing("", appends).p99_ms - fsync_p99,
    )  # fmt: skip


def _text(generator: random.Random, weights: list[float], words: list[str]) -> str:
    return "the " + " ".join(generator.choices(words, cum_weights=weights, k=_WORDS_A_MESSAGE))


def _messages(generator: random.Random, n: int, created_at_ms: int) -> Iterator[Message]:
    words = [f"w{i:05}" for i in range(_VOCABULARY)]
    weights, total = [], 0.0
    for i in range(_VOCABULARY):  # Zipf's law: the n-th word is n times rarer than the first
        total += 1 / (i + 1)
        weights.append(total)
    words[5000] = "中文搜索引擎"
    while True:
        parent: str | None = None
        for i in range(n):
            message = Message(
                id=new_id(), parent_id=parent, role="assistant" if i % 2 else "user",
                text=_text(generator, weights, words), created_at_ms=created_at_ms,
                finish_reason="stop" if i % 2 else "",
            )  # fmt: skip
            parent = message.id
            created_at_ms += _MESSAGE_MS
            yield message


def _fill(
    store: SqliteStore, n_conversations: int, n_each: int, generator: random.Random, on_progress: ProgressCallback
) -> list[str]:
    ids: list[str] = []
    messages = _messages(generator, n_each, _START_MS)
    for number in range(n_conversations):
        messages_of_one = [next(messages) for _ in range(n_each)]
        conversation = Conversation(
            id=new_id(), title=f"Conversation {number} about {messages_of_one[0].text[4:20]}",
            head_id=messages_of_one[-1].id,
            created_at_ms=messages_of_one[0].created_at_ms, updated_at_ms=messages_of_one[-1].created_at_ms,
        )  # fmt: skip
        store.merge(conversation, messages_of_one)
        ids.append(conversation.id)
        if number % 100 == 0:
            on_progress(f"filling: {number} of {n_conversations} conversations")
    return ids


def _measure_appends(
    store: SqliteStore, directory: Path, generator: random.Random, ids: list[str]
) -> tuple[list[float], list[float]]:
    """Return the seconds of appends and of alternating 32 KiB writes with fsync to another file."""
    appends, syncs = [], []
    messages = _messages(generator, 1, _START_MS)
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


def _measure_checkpoints(store: SqliteStore, generator: random.Random, ids: list[str]) -> Timing:
    """Time checkpoints of a growing reply of 4,000 characters."""
    conversation = store.conversation(ids[0])
    text = "word " * 800
    reply = Message(id=new_id(), parent_id=conversation.head_id, role="assistant", finish_reason="streaming")
    store.append(conversation, [reply])
    return _timed(
        "checkpoint a reply",
        lambda: store.checkpoint(msgspec.structs.replace(reply, text=text + str(generator.random()))), 101,
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


def table(report: StoreReport) -> str:
    """Format the report as a table."""
    lines = [
        (
            f"{report.n_conversations} conversations, {report.n_messages} messages, {size(report.size_bytes)}, "
            f"filled in {report.build_s:.0f} s"
        ),
        f"{'':<36}{'median':>10}{'p99':>10}  ms",
    ]
    lines += [f"{timing.name:<36}{timing.median_ms:10.2f}{timing.p99_ms:10.2f}" for timing in report.timings]
    lines.append(f"{'write and fsync 32 KiB':<36}{'':10}{report.fsync_p99_ms:10.2f}")
    lines.append(f"{'append minus write and fsync':<36}{'':10}{report.append_over_fsync_p99_ms:10.2f}")
    return "\n".join(lines)
