"""Benchmark of the conversation store: listing, opening, searching, appending and checkpointing."""

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
from edgechat.humanize import format_size
from edgechat.store.database import Database
from edgechat.store.sqlite import SqliteStore

ProgressCallback = Callable[[str], None]

_START_MS: Final = 1_700_000_000_000
_MESSAGE_INTERVAL_MS: Final = 60_000
_WORDS_PER_MESSAGE: Final = 60
_VOCABULARY_SIZE: Final = 30_000
_N_APPENDS: Final = 1000
# Search queries, each with its label in the report: (label, query).
QUERIES: Final = (
    ("a word in every message", "the"),
    ("a common word", "w00010"),
    ("two common words", "w00010 w00020"),
    ("a rare word", "w29990"),
    ("a phrase without a match", '"w00001 w29999 w00002"'),
    ("part of a word", "2999"),
    ("two characters", "w2"),
    ("a Chinese word", "中文搜"),
)


class OperationTiming(msgspec.Struct, frozen=True, kw_only=True):
    """Duration of one kind of operation, in milliseconds."""

    name: str
    median_ms: float
    p99_ms: float
    n_operations: int = msgspec.field(name="n")
    """Number of measured operations."""


class StoreReport(msgspec.Struct, frozen=True, kw_only=True):
    """Results of the store benchmark: size of the database, time to fill it, and durations of operations."""

    n_conversations: int
    n_messages: int
    size_bytes: int
    build_s: float
    timings: list[OperationTiming]
    fsync_p99_ms: float
    """99th percentile of the time to write and sync 32 KiB to a file, about as much as an append writes."""
    append_excess_over_fsync_p99_ms: float = msgspec.field(name="append_over_fsync_p99_ms")
    """99th percentile of the time of an append, minus `fsync_p99_ms`: the time that the store adds to the write."""


def run(directory: Path, n_conversations: int, n_messages: int, on_progress: ProgressCallback) -> StoreReport:
    """Fill a new store in `directory` with `n_messages` messages and measure it. Raises StoreError."""
    generator = random.Random(0)  # noqa: S311  (reproducible)
    path = directory / "history.db"
    store = SqliteStore(Database(path))
    started_at = time.monotonic()
    ids = _fill_store(store, n_conversations, n_messages // n_conversations, generator, on_progress)
    build_s = time.monotonic() - started_at
    store.close()
    # Reopen the store, so that its caches are empty, as in a new process.
    store = SqliteStore(Database(path))
    on_progress("measuring")
    timings = [
        _measure("list, first page", lambda: store.list_conversations(limit=50), 21),
        _measure("open a conversation", lambda: store.messages(generator.choice(ids)), 101),
    ]
    timings += [_measure(f"search: {name}", functools.partial(store.search, query), 21) for name, query in QUERIES]
    timings += [_measure("search by rank: a common word", lambda: store.search("w00010", order="rank"), 21)]
    append_durations_s, fsync_durations_s = _measure_appends(store, directory, generator, ids)
    timings.append(_summarize("append a message", append_durations_s))
    timings.append(_measure_checkpoints(store, generator, ids))
    store.close()
    fsync_p99_ms = _summarize("", fsync_durations_s).p99_ms
    return StoreReport(
        n_conversations=n_conversations, n_messages=n_messages, size_bytes=path.stat().st_size, build_s=build_s,
        timings=timings, fsync_p99_ms=fsync_p99_ms,
        append_excess_over_fsync_p99_ms=_summarize("", append_durations_s).p99_ms - fsync_p99_ms,
    )  # fmt: skip


def _generate_text(generator: random.Random, cumulative_weights: list[float], words: list[str]) -> str:
    return "the " + " ".join(generator.choices(words, cum_weights=cumulative_weights, k=_WORDS_PER_MESSAGE))


def _generate_messages(generator: random.Random, conversation_length: int, created_at_ms: int) -> Iterator[Message]:
    """Yield the messages of an endless series of conversations with `conversation_length` messages each."""
    words = [f"w{i:05}" for i in range(_VOCABULARY_SIZE)]
    cumulative_weights, total = [], 0.0
    for i in range(_VOCABULARY_SIZE):  # Zipf's law: the n-th word is n times rarer than the first
        total += 1 / (i + 1)
        cumulative_weights.append(total)
    words[5000] = "中文搜索引擎"
    while True:
        parent_id: str | None = None
        for i in range(conversation_length):
            message = Message(
                id=new_id(), parent_id=parent_id, role="assistant" if i % 2 else "user",
                text=_generate_text(generator, cumulative_weights, words), created_at_ms=created_at_ms,
                finish_reason="stop" if i % 2 else "",
            )  # fmt: skip
            parent_id = message.id
            created_at_ms += _MESSAGE_INTERVAL_MS
            yield message


def _fill_store(
    store: SqliteStore,
    n_conversations: int,
    conversation_length: int,
    generator: random.Random,
    on_progress: ProgressCallback,
) -> list[str]:
    ids: list[str] = []
    messages = _generate_messages(generator, conversation_length, _START_MS)
    for number in range(n_conversations):
        conversation_messages = [next(messages) for _ in range(conversation_length)]
        conversation = Conversation(
            id=new_id(), title=f"Conversation {number} about {conversation_messages[0].text[4:20]}",
            head_id=conversation_messages[-1].id,
            created_at_ms=conversation_messages[0].created_at_ms, updated_at_ms=conversation_messages[-1].created_at_ms,
        )  # fmt: skip
        store.merge([(conversation, conversation_messages)])
        ids.append(conversation.id)
        if number % 100 == 0:
            on_progress(f"filling the database: {number} of {n_conversations} conversations")
    return ids


def _measure_appends(
    store: SqliteStore, directory: Path, generator: random.Random, ids: list[str]
) -> tuple[list[float], list[float]]:
    """Alternate appends with writes and fsyncs of 32 KiB to another file; return the durations of both in seconds."""
    append_durations_s, fsync_durations_s = [], []
    messages = _generate_messages(generator, 1, _START_MS)
    conversation = store.conversation(ids[-1])
    parent_id = conversation.head_id
    data = os.urandom(32 << 10)
    with (directory / "fsync").open("wb", buffering=0) as file:
        for _ in range(_N_APPENDS):
            message = msgspec.structs.replace(next(messages), parent_id=parent_id)
            started_at = time.perf_counter()
            store.append(conversation, [message])
            appended_at = time.perf_counter()
            file.write(data)
            os.fsync(file.fileno())
            fsync_durations_s.append(time.perf_counter() - appended_at)
            append_durations_s.append(appended_at - started_at)
            parent_id = message.id
    return append_durations_s, fsync_durations_s


def _measure_checkpoints(store: SqliteStore, generator: random.Random, ids: list[str]) -> OperationTiming:
    """Measure checkpoints of a streaming reply of 4,000 characters."""
    conversation = store.conversation(ids[0])
    text = "word " * 800
    reply = Message(id=new_id(), parent_id=conversation.head_id, role="assistant", finish_reason="streaming")
    store.append(conversation, [reply])
    return _measure(
        "checkpoint a reply",
        lambda: store.checkpoint(msgspec.structs.replace(reply, text=text + str(generator.random()))), 101,
    )  # fmt: skip


def _measure(name: str, operation: Callable[[], object], n_repeats: int) -> OperationTiming:
    durations_s = []
    for _ in range(n_repeats):
        started_at = time.perf_counter()
        operation()
        durations_s.append(time.perf_counter() - started_at)
    return _summarize(name, durations_s)


def _summarize(name: str, durations_s: list[float]) -> OperationTiming:
    sorted_durations_s = sorted(durations_s)
    p99_s = sorted_durations_s[min(len(sorted_durations_s) - 1, int(len(sorted_durations_s) * 0.99))]
    median_s = statistics.median(sorted_durations_s)
    return OperationTiming(name=name, median_ms=median_s * 1000, p99_ms=p99_s * 1000, n_operations=len(durations_s))


def format_table(report: StoreReport) -> str:
    """Format the report as a table of durations in milliseconds."""
    lines = [
        (
            f"{report.n_conversations} conversations, {report.n_messages} messages, {format_size(report.size_bytes)}, "
            f"filled in {report.build_s:.0f} s"
        ),
        f"{'':<36}{'median':>10}{'p99':>10}  ms",
    ]
    lines += [f"{timing.name:<36}{timing.median_ms:10.2f}{timing.p99_ms:10.2f}" for timing in report.timings]
    lines.append(f"{'write and fsync 32 KiB':<36}{'':10}{report.fsync_p99_ms:10.2f}")
    lines.append(f"{'append minus write and fsync':<36}{'':10}{report.append_excess_over_fsync_p99_ms:10.2f}")
    return "\n".join(lines)
