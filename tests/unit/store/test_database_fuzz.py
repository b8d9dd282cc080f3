"""Thousands of damaged databases: every command ends with a result or one sentence, and readable messages survive."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import re
import shutil
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgechat import paths
from edgechat.chat.messages import Conversation, Message, new_id, now_ms
from edgechat.cli.history import history
from edgechat.cli.session_factory import open_conversation
from edgechat.errors import EdgechatError
from edgechat.store import open_store, recovery
from tests.fuzzing import scale

PAGE_BYTES = 4096
N_MESSAGES = 1000
MESSAGES_PER_CONVERSATION = 50
N_MUTATIONS = scale(2000)
# Processor time of a hang; the slowest case takes two seconds.
MAX_SECONDS = 60.0
TOKEN = re.compile(rb"t[0-9]{4}x[0-9]{2}z")
SUFFIXES = ("", "-wal")

Files = dict[str, bytes]
"""Contents of the database and its log, by the suffix of the file name."""


def build(path: Path, prefix: int, n_messages: int) -> tuple[Files, Files, Files]:
    """Save messages; return the files before the last fifth of them, at the end (with a log), and after closing."""
    draw = random.Random(prefix)
    store = open_store(path)
    early: Files = {}
    for number in range(0, n_messages, MESSAGES_PER_CONVERSATION):
        if number == n_messages * 4 // 5:
            store.database.truncate_wal()
            early = read(path)
        conversation = Conversation(id=f"{draw.getrandbits(64):016x}", title=f"Talk {number}", created_at_ms=now_ms())
        messages: list[Message] = []
        for index in range(number, number + MESSAGES_PER_CONVERSATION):
            n_tokens = draw.choice([1, 1, 1, 1, 2, 2, 4, 30])
            parts = [f"t{prefix}{index:03d}x{part:02d}z " + "word " * draw.randrange(8) for part in range(n_tokens)]
            parent_id = messages[-1].id if messages else None
            messages.append(Message(
                id=f"{draw.getrandbits(64):016x}", parent_id=parent_id, role="assistant" if index % 2 else "user",
                text=" ".join(parts),
                created_at_ms=now_ms(),
                model="m.gguf" if index % 2 else "", finish_reason="stop" if index % 2 else "",
            ))  # fmt: skip
        store.append(conversation, messages)
    with_log = read(path)
    store.close()
    return early, with_log, read(path)


def read(path: Path) -> Files:
    files = {suffix: path.with_name(path.name + suffix) for suffix in SUFFIXES}
    return {suffix: file.read_bytes() for suffix, file in files.items() if file.exists()}


def write(path: Path, files: Files) -> None:
    path.parent.mkdir(parents=True)
    for suffix, content in files.items():
        path.with_name(path.name + suffix).write_bytes(content)


def flip_bits(content: bytes, draw: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(draw.choice([1, 1, 3, 20])):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(data)


def overwrite(content: bytes, draw: random.Random) -> bytes:
    data = bytearray(content)
    size = draw.choice([1, 3, 16, 200])
    start = draw.randrange(max(1, len(data) - size))
    data[start : start + size] = draw.randbytes(size)
    return bytes(data)


def cut(content: bytes, draw: random.Random) -> bytes:
    return content[: int(len(content) * draw.choice([0.99, 0.95, 0.8, 0.5, draw.random()]))]


def cut_out(content: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(content))
    return content[:start] + content[start + draw.choice([1, 100, PAGE_BYTES, 10 * PAGE_BYTES]) :]


def zero_pages(content: bytes, draw: random.Random) -> bytes:
    return _replace_pages(content, draw, bytes)


def randomise_pages(content: bytes, draw: random.Random) -> bytes:
    return _replace_pages(content, draw, draw.randbytes)


def _replace_pages(content: bytes, draw: random.Random, make: Callable[[int], bytes]) -> bytes:
    data = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 5])):
        start = draw.randrange(-(-len(data) // PAGE_BYTES)) * PAGE_BYTES
        size = min(PAGE_BYTES, len(data) - start)
        data[start : start + size] = make(size)
    return bytes(data)


def swap_pages(content: bytes, draw: random.Random) -> bytes:
    pages = [content[i : i + PAGE_BYTES] for i in range(0, len(content), PAGE_BYTES)]
    first, second = draw.randrange(len(pages)), draw.randrange(len(pages))
    pages[first], pages[second] = pages[second], pages[first]
    return b"".join(pages)


MUTATIONS = (flip_bits, flip_bits, overwrite, cut, cut_out, zero_pages, randomise_pages, swap_pages)


def drop_object(path: Path, draw: random.Random) -> None:
    """Drop an index, a trigger, a view or a search table."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        names = db.execute(
            "SELECT type, name FROM sqlite_schema WHERE (type <> 'table' OR sql LIKE 'CREATE VIRTUAL%') AND sql <> ''"
        ).fetchall()
        kind, name = draw.choice(names)
        db.execute(f"DROP {kind} {name}")
        db.commit()


def find_tokens(files: Files) -> set[bytes]:
    """Return the tokens of all messages that can be seen in the bytes of the files."""
    return {token for content in files.values() for token in TOKEN.findall(content)}


class Samples:
    def __init__(self, folder: Path) -> None:
        self.early, self.with_log, self.closed = build(folder / "own" / "history.db", 0, N_MESSAGES)
        _, self.other_with_log, _ = build(folder / "other" / "history.db", 9, 200)

    def draw(self, path: Path, draw: random.Random) -> str:
        """Write a damaged database; return the description of the damage."""
        kind = draw.choice(["database"] * 5 + ["database and log", "log", "log", "foreign log", "old log", "dropped"])
        mutation = draw.choice(MUTATIONS)
        files = dict(self.with_log if "log" in kind else self.closed)
        if kind == "foreign log":
            files = {"": draw.choice([self.closed, self.early])[""], "-wal": self.other_with_log["-wal"]}
        elif kind == "old log":
            files = {"": self.closed[""], "-wal": self.with_log["-wal"][: draw.randrange(len(self.with_log["-wal"]))]}
        elif kind != "dropped":
            for suffix in {"database": [""], "log": ["-wal"], "database and log": ["", "-wal"]}[kind]:
                files[suffix] = mutation(files[suffix], draw)
        write(path, files)
        if kind == "dropped":
            drop_object(path, draw)
        return f"{kind}: {mutation.__name__}"


def run(*arguments: str) -> str:
    result = CliRunner().invoke(history, arguments)
    if result.exception is not None and not isinstance(result.exception, (EdgechatError, SystemExit)):
        raise result.exception
    sentence = str(result.exception) if isinstance(result.exception, EdgechatError) else ""
    assert "Traceback" not in result.output
    assert sentence.count("\n") == 0
    return result.output


def use(arguments: list[str]) -> None:
    """Run a command, show every conversation that is left, and open one as `ask` does."""
    run(*arguments)
    with contextlib.suppress(EdgechatError):
        store, conversation = open_conversation("", continue_last=True, ephemeral=False)
        assert conversation is not None
        store.messages(conversation.id)
        store.close()
        run("show", conversation.id)


def check(home: Path, samples: Samples, seed: int) -> tuple[int, int, str]:
    """Use and recover a damaged database; return the numbers of findable and of recovered tokens, and the damage."""
    draw = random.Random(seed)
    path = paths.history_file()
    shutil.rmtree(home, ignore_errors=True)
    damage = samples.draw(path, draw)
    expected = find_tokens(read(path))
    started = time.process_time()
    try:
        if draw.random() < 0.5:
            use(draw.choice([["list"], ["search", "word"], ["export", "--all"]]))
        run("recover")
        if not recovery.is_intact(path):  # the log and the database are recovered one after the other
            run("recover")
        store = open_store(path)
        ids = list(store.conversation_ids())
        exported = "".join(m.text for i in ids for m in store.messages(i)).encode()
        store.append(Conversation(id=new_id()), [Message(id=new_id(), role="user", text="still writable")])
        assert store.search("writable")
        store.close()
        assert recovery.is_intact(path)
        use(["show", ids[0]] if ids else ["list"])
    except Exception as error:
        error.args = (f"seed {seed}, {damage}: {error!r}",)
        raise
    assert time.process_time() - started < MAX_SECONDS, f"seed {seed}, {damage}"
    return len(expected), len(expected & set(TOKEN.findall(exported))), damage


def check_range(folder: Path, seeds: range) -> list[tuple[int, int, str]]:
    """Check the seeds in a process of its own."""
    home = folder / f"home{seeds.start}"
    os.environ["EDGECHAT_HOME"] = str(home)
    samples = Samples(folder / f"samples{seeds.start}")
    return [check(home, samples, seed) for seed in seeds]


@pytest.mark.long
def test_damaged_databases_are_used_and_recovered(tmp_path: Path) -> None:
    n_processes = os.cpu_count() or 1
    with ProcessPoolExecutor(n_processes, multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(check_range, tmp_path, range(i, N_MUTATIONS, n_processes)) for i in range(n_processes)]
        results = [result for job in jobs for result in job.result()]
    n_expected, n_recovered = sum(r[0] for r in results), sum(r[1] for r in results)
    assert len(results) == N_MUTATIONS
    assert n_recovered >= 0.99 * n_expected, sorted(results, key=lambda r: r[1] - r[0])[:10]
