"""Files of prefixes, the tree, and the speeds that decide."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from array import array
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat.errors import EngineError
from edgechat.modelfile import content_hash
from edgechat.prefix import segment as pieces
from edgechat.prefix.cache import PrefixCache
from edgechat.prefix.disk_tier import DiskTier, delete_conversation
from edgechat.prefix.segment import InvalidSegmentError, KvSegment
from edgechat.prefix.throughput import Throughput
from edgechat.prefix.tree import PrefixTree
from tests.fake_memory import FakeMemory
from tests.waiting import until

TOKENS = list(range(1, 101))


def a_disk(root: Path, cap_bytes: int = 1 << 20, identity: str = "it") -> DiskTier:
    disk = DiskTier(root, cap_bytes, lambda pause: identity)
    disk.identity = identity
    return disk


def wait(disk: DiskTier) -> None:
    until(lambda: not disk.is_busy, 5, interval_s=0.001)


def a_piece(data: bytes = b"x" * 1000, *, start: int = 0, whose: str = "talk", tokens: list[int] = TOKENS) -> KvSegment:
    piece = KvSegment(PrefixTree().insert(tokens), start, whose, can_resume=True, n_bytes=len(data))
    piece.data = bytearray(data)
    return piece


def written(root: Path, piece: KvSegment | None = None) -> Path:
    disk, piece = a_disk(root), piece or a_piece()
    disk.queue_write(piece, piece.node.path())
    wait(disk)
    disk.finish(1)
    assert piece.file is not None
    return piece.file


def read(disk: DiskTier, path: Path, tokens: list[int] = TOKENS) -> bytes | None:
    [data] = disk.read([(path, tokens)])
    return bytes(data) if data is not None else None


# Files


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = written(tmp_path, a_piece(os.urandom(10_000), start=30))
    disk = a_disk(tmp_path)
    [(found, header)] = disk.new_files("talk")
    assert (found, header.start, header.tokens, header.can_resume) == (path, 30, TOKENS, True)
    assert len(read(disk, path) or b"") == 10_000
    assert list(disk.new_files("talk")) == []  # named once
    assert list(disk.new_files("another")) == []
    assert list(a_disk(tmp_path, identity="other weights").new_files("talk")) == []


@pytest.mark.skipif(sys.platform == "win32", reason="rights are POSIX's")
def test_only_the_owner_can_read_it(tmp_path: Path) -> None:
    path = written(tmp_path / "prefix")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for folder in (path.parent, path.parent.parent, path.parent.parent.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@given(where=st.integers(0, 100_000), bit=st.integers(0, 7), cut=st.booleans())
def test_a_damaged_file_is_a_miss_and_goes(
    tmp_path_factory: pytest.TempPathFactory, where: int, bit: int, *, cut: bool
) -> None:
    root = tmp_path_factory.mktemp("prefix")
    path = written(root)
    data = bytearray(path.read_bytes())
    if cut:
        del data[where % len(data) :]
    else:
        data[where % len(data)] ^= 1 << bit
    path.write_bytes(data)
    disk = a_disk(root)
    listed = list(disk.new_files("talk"))
    assert read(disk, path) is None
    assert not path.exists()
    assert all(header.tokens == TOKENS for _, header in listed)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_piece_or_not(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "file"
    for start in (b"", pieces.MAGIC):
        path.write_bytes(start + data)
        with path.open("rb") as file, pytest.raises(InvalidSegmentError):
            pieces.read_header(file)


def test_a_file_of_other_tokens_or_a_later_version_is_a_miss(tmp_path: Path) -> None:
    path = written(tmp_path)
    assert read(a_disk(tmp_path), path, [*TOKENS[:-1], 7]) is None
    path = written(tmp_path)
    data = path.read_bytes()
    path.write_bytes(data.replace(pieces.MAGIC, pieces.MAGIC[:-1] + b"\x02", 1))
    assert list(a_disk(tmp_path).new_files("talk")) == []


def test_files_stay_under_their_cap_and_the_oldest_go_first(tmp_path: Path) -> None:
    disk = a_disk(tmp_path, cap_bytes=5000)
    kept = []
    for number in range(6):
        piece = a_piece(whose=f"talk{number}")
        disk.queue_write(piece, TOKENS)
        wait(disk)
        assert piece.file is not None
        os.utime(piece.file, (number, number))
        kept.append(piece.file)
        if number == 1:
            read(disk, kept[0])  # of use: not the oldest any more
    assert kept[0].exists()
    assert not kept[1].exists()
    assert sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file()) <= 5000
    huge = a_piece(b"x" * 6000)
    disk.queue_write(huge, TOKENS)
    wait(disk)
    assert huge.file is None


def test_a_deleted_conversation_is_gone_and_stays_gone(tmp_path: Path) -> None:
    disk = a_disk(tmp_path)
    for _ in range(2):
        disk.queue_write(a_piece(), TOKENS)
        disk.queue_write(a_piece(whose="../other"), TOKENS)
        wait(disk)
        delete_conversation(tmp_path, "talk")
        assert len(list(tmp_path.rglob("*.kv"))) == 1  # this process still talks, and writes nothing any more
    assert not (tmp_path.parent / "other").exists()


def test_a_cache_that_is_deleted_under_us_is_made_again(tmp_path: Path) -> None:
    root = tmp_path / "prefix"
    disk = a_disk(root)
    disk.queue_write(a_piece(), TOKENS)
    wait(disk)
    for path in sorted(root.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    root.rmdir()
    piece = a_piece()
    disk.queue_write(piece, TOKENS)
    wait(disk)
    assert piece.file is not None
    assert piece.file.exists()


def test_a_place_that_cannot_be_written_to_costs_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "prefix").write_text("in the way")
    disk = a_disk(tmp_path / "prefix")
    piece = a_piece()
    disk.queue_write(piece, TOKENS)
    wait(disk)
    assert (piece.file, len(caplog.records)) == (None, 1)
    assert list(disk.new_files("talk")) == []


@pytest.mark.skipif(sys.platform == "win32", reason="limits are POSIX's")
def test_a_full_disk_costs_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    code = """
import resource, signal, sys, time
from pathlib import Path
from tests.unit.prefix.test_cache import TOKENS, a_disk, a_piece, wait
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
disk, piece = a_disk(Path(sys.argv[1])), a_piece(b"x" * 50_000)
disk.queue_write(piece, TOKENS)
wait(disk)
assert piece.file is None
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_writing_rests_while_somebody_computes(tmp_path: Path) -> None:
    disk, piece = a_disk(tmp_path), a_piece()
    disk.pause()
    disk.queue_write(piece, TOKENS)
    time.sleep(0.05)
    assert piece.file is None
    disk.resume()
    wait(disk)
    assert piece.file is not None


# Which weights


def test_weights_are_hashed_once_until_the_file_changes(tmp_path: Path) -> None:
    model, memo = tmp_path / "model.gguf", tmp_path / "cache" / "weights.json"
    model.write_bytes(b"weights")
    paused: list[None] = []
    assert content_hash.known_hash(model, memo) is None
    first = content_hash.file_hash(model, memo, lambda: paused.append(None))
    assert paused
    assert content_hash.known_hash(model, memo) == first
    paused.clear()
    assert content_hash.file_hash(model, memo, lambda: paused.append(None)) == first
    assert not paused
    model.write_bytes(b"weightz")
    os.utime(model, ns=(1, 1))
    assert content_hash.known_hash(model, memo) is None
    assert content_hash.file_hash(model, memo, lambda: None) != first
    memo.write_text("{garbage")
    assert content_hash.known_hash(model, memo) is None


# The tree


@given(st.lists(st.lists(st.integers(0, 2), max_size=12), min_size=1, max_size=12), st.lists(st.integers(0, 2)))
def test_a_tree_knows_what_every_path_shares(paths: list[list[int]], prompt: list[int]) -> None:
    tree = PrefixTree()
    nodes = [tree.insert(path) for path in paths]
    match = tree.match(prompt)
    for path, node in zip(paths, nodes, strict=True):
        assert node.path() == path
        common = next((i for i, (a, b) in enumerate(zip(path, prompt)) if a != b), min(len(path), len(prompt)))  # noqa: B905
        assert match.n_shared(node) == common
    for node in nodes:
        tree.prune(node)
    for node in [n for n in tree.nodes() if n.parent is not None]:
        tree.prune(node)
    assert list(tree.nodes()) == [tree.root]


# What is worth it


def test_what_is_slower_than_computing_is_computed(tmp_path: Path) -> None:
    def cached_tokens(prefill_tps: float) -> int:
        memory = FakeMemory("llama")
        cache = PrefixCache(memory, ram_cap_bytes=0, disk=a_disk(tmp_path))
        cache.throughput.prefill.per_s = prefill_tps
        cached = cache.acquire(TOKENS, "talk")
        memory.decode(cached.seq, TOKENS[len(memory.tokens(cached.seq)) :])
        cache.commit(cached.seq)
        cache.finish(5)
        return cached.disk_tokens

    assert cached_tokens(50) == 0  # nothing is there yet
    assert cached_tokens(50) == 99
    assert cached_tokens(1e9) == 0


def test_speeds_are_measured() -> None:
    speed = Throughput(10.0)
    speed.record(100, 0.0)  # says nothing
    assert speed.duration_s(100) == 10.0
    speed.record(200, 1.0)
    assert speed.per_s == 200.0
    for _ in range(30):
        speed.record(100, 1.0)
    assert 99 < speed.per_s < 101


def test_tokens_are_stored_as_they_are(tmp_path: Path) -> None:
    tokens = [0, 1, 2**31 - 1]
    path = written(tmp_path, a_piece(tokens=tokens))
    assert array("i", tokens).tobytes() in path.read_bytes()


def test_many_files_are_read_ahead_of_each_other(tmp_path: Path) -> None:
    disk = a_disk(tmp_path)
    made = []
    for number in range(6):
        piece = a_piece(bytes([number]) * (1000 * (number + 1)), whose=f"talk{number}")
        disk.queue_write(piece, TOKENS)
        wait(disk)
        assert piece.file is not None
        made.append((piece.file, TOKENS))
    made[3][0].write_bytes(b"damaged")
    found = [bytes(data[:1]) + bytes([len(data) // 1000]) if data is not None else None for data in disk.read(made)]
    assert found == [b"\x00\x01", b"\x01\x02", b"\x02\x03", None, b"\x04\x05", b"\x05\x06"]
    reading = disk.read(made[:3])
    next(reading)
    reading.close()  # whoever has enough can leave
    assert [data is not None for data in disk.read(made[:3])] == [True] * 3


@pytest.mark.parametrize("how", ["in the way", "too large", "deleted"])
def test_what_cannot_be_written_is_not_tried_for_ever(tmp_path: Path, how: str) -> None:
    root = tmp_path / "prefix"
    if how == "in the way":
        root.write_text("a file")
    disk = a_disk(root, cap_bytes=100 if how == "too large" else 1 << 20)
    memory = FakeMemory("llama")
    cache = PrefixCache(memory, ram_cap_bytes=0, disk=disk)

    def steps(tokens: list[int]) -> int:
        seq = cache.acquire(tokens, "talk").seq
        memory.decode(seq, tokens[len(memory.tokens(seq)) :])
        cache.commit(seq)
        n_steps = 0
        while cache.idle_step():
            wait(disk)
            n_steps += 1
            assert n_steps < 10
        return n_steps

    assert steps(TOKENS) >= 1
    if how == "deleted":
        delete_conversation(root, "talk")
        steps(TOKENS + TOKENS)
    assert steps(TOKENS + TOKENS + TOKENS) == 0


def test_a_sequence_that_was_given_up_is_empty_again() -> None:
    memory = FakeMemory("llama")
    cache = PrefixCache(memory)
    memory.decode(0, [9, 9, 9])  # nobody's
    seq = cache.acquire(TOKENS).seq
    assert list(memory.tokens(seq)) == []
    memory.decode(seq, [9])
    for _ in range(10):
        cache.drop(seq)
        seq = cache.acquire(TOKENS).seq
        assert list(memory.tokens(seq)) == []


def test_what_has_no_place_in_ram_is_not_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = FakeMemory("llama")
    saved: list[int] = []
    save = memory.save

    def noted(seq: int, start: int, end: int) -> bytearray:
        saved.append(end - start)
        return save(seq, start, end)

    monkeypatch.setattr(memory, "save", noted)
    tokens = list(range(1, 400))
    room = len(save_of(memory, tokens[:100]))
    cache = PrefixCache(memory, ram_cap_bytes=room)
    cache._token_bytes = room / 100
    seq = cache.acquire(tokens, "talk").seq
    memory.decode(seq, tokens)
    cache.commit(seq)
    saved.clear()
    assert cache.evict_lru()
    assert max(saved) == 100
    (piece,) = cache.segments
    assert (piece.start, piece.end, piece.can_resume) == (0, 100, False)
    assert piece.data is not None


def save_of(memory: FakeMemory, tokens: list[int]) -> bytearray:
    memory.decode(0, tokens)
    data = memory.save(0, 0, len(tokens))
    memory.drop(0)
    return data


def test_several_sequences_are_in_work_and_none_of_them_makes_room() -> None:
    memory = FakeMemory("llama")
    cache = PrefixCache(memory)
    seqs = [cache.acquire([*TOKENS, n]).seq for n in range(memory.n_seqs)]
    assert sorted(seqs) == list(range(memory.n_seqs))
    assert not cache.evict_lru()
    with pytest.raises(EngineError, match="in work"):
        cache.acquire(TOKENS)
    memory.decode(seqs[1], [*TOKENS, 1])
    cache.commit(seqs[1])
    assert cache.acquire([*TOKENS, 1, 2]).seq == seqs[1]  # gone on with, and nobody else's is
