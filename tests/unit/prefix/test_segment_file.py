"""Format of segment files: round trip, damage, other versions."""

from __future__ import annotations

import os
from array import array
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat.prefix import segment_file
from edgechat.prefix.segment_file import InvalidSegmentError
from tests.unit.prefix.segment_files import TOKENS, make_disk, make_segment, read, write_file


def test_written_file_is_listed_once_and_read_back(tmp_path: Path) -> None:
    data = os.urandom(10_000)
    path = write_file(tmp_path, make_segment(data, start=30))
    disk = make_disk(tmp_path)
    [(listed, header)] = disk.list_new_files("talk")
    assert (listed, header.start, header.tokens, header.can_resume) == (path, 30, TOKENS, True)
    assert read(disk, path) == data
    assert list(disk.list_new_files("talk")) == []
    assert list(disk.list_new_files("another")) == []
    assert list(make_disk(tmp_path, identity="other weights").list_new_files("talk")) == []


@given(offset=st.integers(0, 100_000), bit=st.integers(0, 7), cut=st.booleans())
def test_damaged_file_is_a_miss_and_is_deleted(
    tmp_path_factory: pytest.TempPathFactory, offset: int, bit: int, *, cut: bool
) -> None:
    root = tmp_path_factory.mktemp("prefix")
    path = write_file(root)
    data = bytearray(path.read_bytes())
    if cut:
        del data[offset % len(data) :]
    else:
        data[offset % len(data)] ^= 1 << bit
    path.write_bytes(data)
    disk = make_disk(root)
    listed = list(disk.list_new_files("talk"))
    assert read(disk, path) is None
    assert not path.exists()
    assert all(header.tokens == TOKENS for _, header in listed)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_rejected_as_header(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "file"
    for start in (b"", segment_file.MAGIC):
        path.write_bytes(start + data)
        with path.open("rb") as file, pytest.raises(InvalidSegmentError):
            segment_file.read_header(file)


def test_file_of_other_tokens_or_a_later_version_is_a_miss(tmp_path: Path) -> None:
    path = write_file(tmp_path)
    assert read(make_disk(tmp_path), path, [*TOKENS[:-1], 7]) is None
    path = write_file(tmp_path)
    data = path.read_bytes()
    path.write_bytes(data.replace(segment_file.MAGIC, segment_file.MAGIC[:-1] + b"\x02", 1))
    assert list(make_disk(tmp_path).list_new_files("talk")) == []


def test_tokens_are_stored_as_32_bit_integers(tmp_path: Path) -> None:
    tokens = [0, 1, 2**31 - 1]
    path = write_file(tmp_path, make_segment(tokens=tokens))
    assert array("i", tokens).tobytes() in path.read_bytes()
