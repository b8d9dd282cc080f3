"""The memo of file hashes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from edgechat.modelfile import content_hash
from edgechat.modelfile.content_hash import HashMemo, hash_file


def test_file_is_hashed_once_until_it_changes(tmp_path: Path) -> None:
    model, directory = tmp_path / "model.gguf", tmp_path / "cache"
    model.write_bytes(b"weights")
    progress: list[int] = []
    assert HashMemo(directory).get(model) is None
    first = HashMemo(directory).get_or_compute(model, progress.append)
    assert first == hashlib.sha256(b"weights").hexdigest()
    assert progress == [7]
    assert HashMemo(directory).get(model) == first
    assert HashMemo(directory).get_or_compute(model, progress.append) == first
    assert progress == [7]
    model.write_bytes(b"weightz")
    os.utime(model, ns=(1, 1))
    assert HashMemo(directory).get(model) is None
    assert HashMemo(directory).get_or_compute(model, progress.append) != first
    assert progress == [7, 7]


def test_damaged_memo_is_replaced(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"weights")
    HashMemo(tmp_path).put({model: "0" * 64})
    (tmp_path / "weights.json").write_text("{garbage")
    memo = HashMemo(tmp_path)
    assert memo.get(model) is None
    assert memo.get_or_compute(model, lambda done_bytes: None) == hash_file(model)
    assert HashMemo(tmp_path).get(model) == hash_file(model)


def test_stored_hash_is_found_under_every_path_of_a_file(tmp_path: Path) -> None:
    model, link = tmp_path / "model.gguf", tmp_path / "link.gguf"
    model.write_bytes(b"weights")
    link.symlink_to(model)
    memo = HashMemo(tmp_path)
    memo.put({link: "a" * 64})
    assert (memo.get(model), memo.get(link)) == ("a" * 64, "a" * 64)
    assert memo.get(tmp_path / "missing.gguf") is None


def test_memo_written_by_the_first_release_is_read(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"weights")
    stat = model.stat()
    (tmp_path / "weights.json").write_text(
        f'{{"{model}":{{"size_bytes":7,"mtime_ns":{stat.st_mtime_ns},"inode":{stat.st_ino},"sha256":"{"b" * 64}"}}}}'
    )
    assert HashMemo(tmp_path).get(model) == "b" * 64


def test_memo_keeps_the_newest_entries(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.gguf" for number in range(content_hash._MAX_ENTRIES + 1)]
    for file in files:
        file.touch()
    memo = HashMemo(tmp_path)
    memo.put(dict.fromkeys(files, "c" * 64))
    assert memo.get(files[0]) is None
    assert memo.get(files[1]) == memo.get(files[-1]) == "c" * 64
