"""Disk tier: file permissions, size cap, deleted conversations, failing disks, read-ahead."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgechat.prefix.disk_tier import delete_conversation
from tests.unit.prefix.segment_files import TOKENS, make_disk, make_segment, read, wait_for_writes, write, write_file


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX permissions")
def test_files_and_folders_are_readable_only_by_the_owner(tmp_path: Path) -> None:
    path = write_file(tmp_path / "prefix")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for folder in (path.parent, path.parent.parent, path.parent.parent.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_size_cap_deletes_the_least_recently_used_files(tmp_path: Path) -> None:
    disk = make_disk(tmp_path, cap_bytes=5000)
    files = []
    for number in range(6):
        segment = write(disk, make_segment(conversation=f"talk{number}"))
        assert segment.file is not None
        os.utime(segment.file, (number, number))
        files.append(segment.file)
        if number == 1:
            read(disk, files[0])  # makes it the most recently used file
    assert files[0].exists()
    assert not files[1].exists()
    assert sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file()) <= 5000
    assert write(disk, make_segment(b"x" * 6000)).file is None


def test_deleted_conversation_is_not_written_again(tmp_path: Path) -> None:
    disk = make_disk(tmp_path)
    for _ in range(2):
        disk.queue_write(make_segment(), TOKENS)
        disk.queue_write(make_segment(conversation="../other"), TOKENS)
        wait_for_writes(disk)
        delete_conversation(tmp_path, "talk")
        assert len(list(tmp_path.rglob("*.kv"))) == 1
    assert not (tmp_path.parent / "other").exists()


def test_deleted_cache_directory_is_created_again(tmp_path: Path) -> None:
    root = tmp_path / "prefix"
    disk = make_disk(root)
    write(disk)
    for path in sorted(root.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    root.rmdir()
    segment = write(disk)
    assert segment.file is not None
    assert segment.file.exists()


def test_unwritable_directory_is_logged_once_and_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "prefix").write_text("a file in the place of the directory")
    disk = make_disk(tmp_path / "prefix")
    segment = write(disk)
    assert (segment.file, len(caplog.records)) == (None, 1)
    assert list(disk.list_new_files("talk")) == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX resource limits")
def test_full_disk_leaves_no_partial_file(tmp_path: Path) -> None:
    code = """
import resource, signal, sys
from pathlib import Path
from tests.unit.prefix.segment_files import make_disk, make_segment, write
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
assert write(make_disk(Path(sys.argv[1])), make_segment(b"x" * 50_000)).file is None
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_paused_tier_writes_after_resume(tmp_path: Path) -> None:
    disk, segment = make_disk(tmp_path), make_segment()
    disk.pause()
    disk.queue_write(segment, TOKENS)
    time.sleep(0.05)
    assert segment.file is None
    disk.resume()
    wait_for_writes(disk)
    assert segment.file is not None


def test_read_ahead_returns_files_in_order_and_can_be_closed_early(tmp_path: Path) -> None:
    disk = make_disk(tmp_path)
    files = []
    for number in range(6):
        segment = write(disk, make_segment(bytes([number]) * (1000 * (number + 1)), conversation=f"talk{number}"))
        assert segment.file is not None
        files.append((segment.file, TOKENS))
    files[3][0].write_bytes(b"damaged")
    contents = [
        bytes(data[:1]) + bytes([len(data) // 1000]) if data is not None else None for data in disk.read(files)
    ]  # fmt: skip
    assert contents == [b"\x00\x01", b"\x01\x02", b"\x02\x03", None, b"\x04\x05", b"\x05\x06"]
    reader = disk.read(files[:3])
    next(reader)
    reader.close()
    assert [data is not None for data in disk.read(files[:3])] == [True] * 3
