"""Check of the write-ahead log before SQLite uses it."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from edgechat.store.database import connect
from edgechat.store.log_check import find_log_damage

TRY_LOCK = (
    "import fcntl, sys\n"
    "with open(sys.argv[1], 'r+b') as file:\n"
    "    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 510, 0x40000002)\n"
)
"""Program that fails if another process has opened the database with SQLite."""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX locks")
def test_check_keeps_the_locks_of_this_process(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE messages (x)")
        db.execute("BEGIN")
        db.execute("SELECT * FROM messages").fetchall()
        wal = path.with_name("history.db-wal")
        data = bytearray(wal.read_bytes())
        data[100:200] = bytes(100)  # a damaged frame
        subprocess.run(["cp", path, tmp_path / "copy.db"], check=True)  # reading it here would drop the locks
        (tmp_path / "copy.db-wal").write_bytes(data)
        assert find_log_damage(tmp_path / "copy.db", connect) is not None
        wal.write_bytes(data)
        assert find_log_damage(path, connect) is None
        assert not can_lock(path)
    assert can_lock(path)


def can_lock(path: Path) -> bool:
    child = subprocess.run([sys.executable, "-c", TRY_LOCK, path], stderr=subprocess.DEVNULL, check=False)
    return child.returncode == 0
