"""Removal of mapped pages from this process."""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgechat.planner.mapped_file import FileRange
from edgechat.runtime.mapped_pages import MappedPages
from tests.resident_pages import count_resident_bytes

PAGE = mmap.PAGESIZE
N_PAGES = 64
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    """Map a file as llama.cpp does, with all its pages in memory."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ) as view:
        assert sum(view[::PAGE]) >= 0
        yield view


def count_resident_pages(path: Path) -> int:
    return count_resident_bytes(path) // PAGE


def write_file(path: Path) -> Path:
    path.write_bytes(os.urandom(N_PAGES * PAGE))
    return path


@linux_only
def test_pages_of_unused_ranges_leave_the_process_and_return_unchanged(tmp_path: Path) -> None:
    path = write_file(tmp_path / "m.gguf")
    # The pages at both ends also belong to tensors that are used.
    pages = MappedPages([path], [FileRange(0, PAGE // 2, 10 * PAGE + 1), FileRange(0, 20 * PAGE, 30 * PAGE)])
    with mapped(path) as view:
        assert count_resident_pages(path) == N_PAGES
        pages.remove()
        assert count_resident_pages(path) == N_PAGES - 9 - 10
        assert view[:] == path.read_bytes()


@linux_only
def test_pages_of_other_files_and_private_memory_stay(tmp_path: Path) -> None:
    path, other = write_file(tmp_path / "m.gguf"), write_file(tmp_path / "other.gguf")
    pages = MappedPages([path], [FileRange(0, 0, N_PAGES * PAGE)])
    with mapped(other), path.open("rb") as file:
        private = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        private[:PAGE] = b"x" * PAGE
        pages.remove()
        assert count_resident_pages(other) == N_PAGES
        assert private[:PAGE] == b"x" * PAGE
        private.close()


@linux_only
def test_pages_are_removed_at_the_start_of_a_load_and_after_each_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgechat.runtime.mapped_pages._MIN_STEP_BYTES", 16 * PAGE)
    path = write_file(tmp_path / "m.gguf")
    pages = MappedPages([path], [FileRange(0, 0, N_PAGES * PAGE)])
    n_resident = []
    with mapped(path) as view:
        for percent in (0, 10, 20, 30, 60, 100):
            assert sum(view[::PAGE]) >= 0
            pages.remove_loaded(percent / 100)
            n_resident.append(count_resident_pages(path))
    assert n_resident == [0, N_PAGES, N_PAGES, 0, 0, 0]


@linux_only
def test_parts_of_a_split_model_have_their_own_ranges(tmp_path: Path) -> None:
    first, second = write_file(tmp_path / "m-00001-of-00002.gguf"), write_file(tmp_path / "m-00002-of-00002.gguf")
    pages = MappedPages([first, second], [FileRange(1, 0, 5 * PAGE)])
    with mapped(first), mapped(second):
        pages.remove()
        assert (count_resident_pages(first), count_resident_pages(second)) == (N_PAGES, N_PAGES - 5)


def test_missing_files_and_other_systems_are_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    MappedPages([tmp_path / "none.gguf"], [FileRange(0, 0, PAGE)]).remove()
    monkeypatch.setattr("sys.platform", "darwin")
    pages = MappedPages([write_file(tmp_path / "m.gguf")], [FileRange(0, 0, PAGE)])
    pages.remove_loaded(0.0)
    pages.remove()
