"""Shared prefixes: other conversations and processes restore them, their files are pinned and found by name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat.prefix.cache import PrefixCache
from edgechat.prefix.disk_tier import delete_conversation
from edgechat.prefix.shared_prefix import (
    SharedPrefix,
    clear_pinned,
    delete_pinned,
    is_pinned_file,
    is_pinned_owner,
    make_folder_name,
    make_pinned_owner,
)
from tests.fake_memory import FakeMemory
from tests.models import Kind
from tests.unit.prefix.segment_files import TOKENS, make_disk, make_segment, write

OWNER = make_pinned_owner(["reports"])
N_SHARED = 60
TEXTS = st.text(max_size=20)


def read_prompt(root: Path, conversation: str, owner: str = OWNER, kind: Kind = "llama", last: int = 0) -> int:
    """Compute a prompt in a new process; return the number of tokens that were restored from disk."""
    memory = FakeMemory(kind)
    cache = PrefixCache(memory, ram_cap_bytes=1_000_000, disk=make_disk(root))
    tokens = [*TOKENS[:N_SHARED], *(token + last for token in TOKENS[N_SHARED:])]
    cached = cache.acquire(tokens, conversation, shared_prefix=SharedPrefix(owner, N_SHARED))
    n_restored = len(memory.tokens(cached.seq))
    memory.check(cached.seq)
    for part in (tokens[n_restored:N_SHARED], tokens[max(n_restored, N_SHARED) :]):
        if part:
            memory.decode(cached.seq, part)
            cache.checkpoint(cached.seq)
    cache.commit(cached.seq)
    cache.finish(5)
    return n_restored


@pytest.mark.parametrize("kind", ["llama", "mamba", "hybrid"])
def test_other_conversations_and_processes_restore_the_shared_tokens(tmp_path: Path, kind: Kind) -> None:
    assert read_prompt(tmp_path, "one", kind=kind) == 0
    assert read_prompt(tmp_path, "two", kind=kind, last=1) == N_SHARED
    assert read_prompt(tmp_path, "one", kind=kind) == len(TOKENS) - 1 if kind == "llama" else N_SHARED
    delete_conversation(tmp_path, "one")
    assert read_prompt(tmp_path, "three", kind=kind, last=2) == N_SHARED
    delete_pinned(tmp_path, "other")
    assert read_prompt(tmp_path, "four", kind=kind, last=3) == N_SHARED
    delete_pinned(tmp_path, "reports")
    assert read_prompt(tmp_path, "five", kind=kind, last=4) == 0


def test_the_shared_tokens_are_saved_once(tmp_path: Path) -> None:
    for number in range(4):
        read_prompt(tmp_path, f"talk{number}", last=number)
    n_saved_tokens = 0
    for path in tmp_path.rglob("*.kv"):
        start, end, _ = path.stem.split("-")
        assert int(end) <= N_SHARED if is_pinned_file(path) else int(start) >= N_SHARED
        n_saved_tokens += int(end) - int(start)
    assert n_saved_tokens == N_SHARED + 4 * (len(TOKENS) - N_SHARED)


def test_a_short_rest_of_the_shared_tokens_is_saved_for_the_conversation(tmp_path: Path) -> None:
    memory = FakeMemory("llama")
    cache = PrefixCache(memory, disk=make_disk(tmp_path))
    seq = cache.acquire(TOKENS, "talk", shared_prefix=SharedPrefix(OWNER, 5)).seq
    memory.decode(seq, TOKENS)
    cache.commit(seq)
    cache.finish(5)
    [path] = tmp_path.rglob("*.kv")
    assert (path.stem.split("-")[:2], is_pinned_file(path)) == (["0", "100"], False)


def test_deleted_documents_do_not_keep_the_conversation_from_being_saved(tmp_path: Path) -> None:
    memory = FakeMemory("llama")
    cache = PrefixCache(memory, disk=make_disk(tmp_path))
    for n_tokens in (80, 100):
        seq = cache.acquire(TOKENS[:n_tokens], "talk", shared_prefix=SharedPrefix(OWNER, 80)).seq
        memory.decode(seq, TOKENS[len(memory.tokens(seq)) : n_tokens])
        cache.commit(seq)
        while cache.idle_step() or (cache.store.disk and cache.store.disk.is_busy):
            pass
        delete_pinned(tmp_path, "reports")
    # The segment of the first 80 tokens is still known here, so the next one belongs to the conversation.
    assert [is_pinned_file(path) for path in tmp_path.rglob("*.kv")] == [False]


def test_pinned_files_are_deleted_last(tmp_path: Path) -> None:
    disk = make_disk(tmp_path, cap_bytes=7500)
    files = []
    for number, owner in enumerate([OWNER, "talk0", "talk1", "talk2", "talk3", "talk4"]):
        segment = write(disk, make_segment(conversation=owner))
        assert segment.file is not None
        os.utime(segment.file, (number, number))
        files.append(segment.file)
    assert [path.exists() for path in files] == [True, False, True, True, True, True]
    assert sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file()) <= 7500


def test_pinned_files_beyond_half_of_the_cap_are_like_others(tmp_path: Path) -> None:
    disk = make_disk(tmp_path, cap_bytes=7500)
    owners = [make_pinned_owner([name]) for name in "abcd"]
    for number, owner in enumerate([*owners, "talk"]):
        segment = write(disk, make_segment(conversation=owner))
        assert segment.file is not None
        os.utime(segment.file, (number, number))
    write(disk, make_segment(conversation="other"))
    assert {path.parent.name for path in tmp_path.rglob("*.kv")} == {
        make_folder_name(owner) for owner in [*owners[1:], "talk", "other"]
    }


def test_segments_are_written_again_after_the_documents_changed(tmp_path: Path) -> None:
    memory = FakeMemory("llama")
    cache = PrefixCache(memory, disk=make_disk(tmp_path))
    for number in range(2):
        tokens = [token + number for token in TOKENS]
        seq = cache.acquire(tokens, "talk", shared_prefix=SharedPrefix(OWNER, len(tokens))).seq
        memory.decode(seq, tokens)
        cache.commit(seq)
        while cache.idle_step() or (cache.store.disk and cache.store.disk.is_busy):
            pass
        [path] = tmp_path.rglob("*.kv")
        assert is_pinned_file(path)
        clear_pinned(tmp_path, "other")
        assert path.exists()
        clear_pinned(tmp_path, "reports")
        assert not path.exists()


@given(st.lists(TEXTS, min_size=1, max_size=30), TEXTS)
def test_folder_names(names: list[str], conversation: str) -> None:
    owner = make_pinned_owner(names)
    assert is_pinned_owner(owner)
    folder = make_folder_name(owner)
    assert len(folder) <= 255
    assert is_pinned_file(Path("root") / folder / "0-1-a.kv")
    assert folder.isascii()
    assert not {"/", "\\", "."} & set(folder)
    assert folder != make_folder_name(conversation)
    assert folder == make_folder_name(make_pinned_owner(names))
