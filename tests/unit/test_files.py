"""State files, bounded reads and atomic replacement."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from edgechat import config, files, paths
from edgechat.catalogue.download.partial_file import FileVersion, PartialFile
from edgechat.errors import EdgechatError, InvalidFileError
from edgechat.files import FileLock, JsonFile
from edgechat.hardware.cpu import read_cpu
from edgechat.hardware.disk_speed import measure_disk_speed
from edgechat.modelfile import content_hash
from edgechat.modelfile.gguf import read_gguf_header
from edgechat.models import observed_memory
from edgechat.planner.throughput import KernelSpeeds
from edgechat.runtime import logs
from edgechat.runtime.backends import kernel_benchmark, verdicts
from edgechat.runtime.backends.bundle import BackendModule, Bundle
from tests.time_limit import ends_within
from tests.unit.prefix import segment_files

Numbers = dict[str, int]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGECHAT_HOME", str(tmp_path))
    return tmp_path


def numbers(path: Path) -> JsonFile[Numbers]:
    return JsonFile(path, Numbers, max_bytes=1000, is_valid=lambda value: "newer" not in value)


def test_json_file_returns_what_was_written(tmp_path: Path) -> None:
    file = numbers(tmp_path / "deep" / "numbers.json")
    assert file.read() is file.load() is None
    file.write({"a": 1}, indent=1)
    assert file.read() == file.load() == {"a": 1}
    assert file.path.read_text() == '{\n "a": 1\n}'
    assert [path.name for path in file.path.parent.iterdir()] == ["numbers.json"]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff", b'{"\xff": 1}', b'{"a": "b"}', b"[" * 900, b" " * 1000 + b"{}", b'{"newer": 1}'],
)
def test_unusable_json_file_counts_as_absent(tmp_path: Path, content: bytes) -> None:
    file = numbers(tmp_path / "numbers.json")
    file.path.write_bytes(content)
    assert file.read() is None
    with pytest.raises(InvalidFileError, match=r"numbers\.json "):
        file.load()
    file.save({"a": 2})
    assert file.read() == {"a": 2}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_named_pipe_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert numbers(tmp_path / "pipe").read() is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
@pytest.mark.parametrize(
    "open_file", [files.open_regular, files.open_private, lambda path: files.open_private(path, os.O_APPEND)]
)
@pytest.mark.parametrize("has_reader", [False, True])
def test_only_regular_files_are_opened(
    tmp_path: Path, open_file: Callable[[Path], object], *, has_reader: bool
) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK) if has_reader else None
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with ends_within(), pytest.raises(OSError, match=r"not a regular file|No such device|Is a directory"):
            open_file(path)
    if reader is not None:
        os.close(reader)
    with files.open_private(tmp_path / "file") as file:
        file.write(b"text")
    with files.open_regular(tmp_path / "file") as file:
        assert file.read() == b"text"


WAYS_TO_READ: dict[str, Callable[[Path], object]] = {
    "end of the engine log": lambda path: logs.read_last_lines(path, 0),
    "hash of a model": content_hash.hash_file,
    "header of a model": read_gguf_header,
    "setting": lambda path: config.save("top_k", 7, path),
    "disk speed": measure_disk_speed,
    "cached segment": lambda path: segment_files.read(segment_files.make_disk(path.parent), path),
    "list of cached segments": lambda path: list(segment_files.make_disk(path.parent).list_new_files("talk")),
    "log of a download": lambda path: PartialFile(path.with_name("model"), FileVersion(3, "x")).close(),
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
@pytest.mark.parametrize("name", WAYS_TO_READ)
def test_named_pipe_in_place_of_a_file_is_an_error_and_never_waits(tmp_path: Path, name: str) -> None:
    for folder in (tmp_path, segment_files.write_file(tmp_path).parent):
        for file in ("file", "pipe.kv", "model.part.log", "model.part.log.new"):
            os.mkfifo(folder / file)
    with ends_within(), contextlib.suppress(OSError, EdgechatError):
        WAYS_TO_READ[name](tmp_path / "file")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_engine_runs_without_a_log_if_a_named_pipe_is_in_its_place() -> None:
    paths.log_file().parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(paths.log_file())
    with ends_within():
        assert logs.open_log() is None


def test_save_ignores_a_directory_that_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    file = numbers(tmp_path / "file" / "numbers.json")
    file.save({"a": 1})
    assert file.read() is None
    with pytest.raises(OSError, match="file"):
        file.write({"a": 1})


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
def test_replaced_file_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    files.replace_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_failed_replacement_leaves_no_partial_file(tmp_path: Path) -> None:
    target = tmp_path / "directory"
    (target / "child").mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        files.replace_file(target, b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["directory"]


@pytest.mark.parametrize(
    ("content", "where", "reason"),
    [
        (b"a = 1\nb = = 2", r"x\.toml:2", "is not valid TOML"),
        (b"a = '\xff'", r"x\.toml", "is not valid UTF-8 at byte 5"),
        (b"#" * (files.MAX_TOML_BYTES + 1), r"x\.toml", "cannot be read: larger than"),
    ],
)
def test_invalid_toml_file_is_named_with_its_line(tmp_path: Path, content: bytes, where: str, reason: str) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(content)
    with pytest.raises(InvalidFileError, match=f"{where} {reason}"):
        files.read_toml(path)


def saved_verdict(name: str) -> bool:
    return verdicts.load_verdict(name) is not None


BUNDLE = Bundle(directory="", build_id="", llama_cpp_python="", llama_cpp_commit="", compiler="", modules=())
MODULE = BackendModule(name="cpu-x64", path="/none")


def saved_speeds(name: str) -> bool:
    return kernel_benchmark.load_speeds(BUNDLE, MODULE) is not None


@pytest.mark.parametrize(
    ("path", "value", "is_saved"),
    [
        (
            paths.verdicts_file,
            {"verdicts": {"k": verdicts.Verdict(module="m", status="passed", reason="")}},
            saved_verdict,
        ),
        (
            paths.kernel_speeds_file,
            {
                verdicts.compute_verdict_key(BUNDLE, MODULE, read_cpu()):
                KernelSpeeds(backend="", n_threads=1, product_rates={})
            },
            saved_speeds,
        ),
        (paths.observed_memory_file, {"k": [5]}, lambda name: observed_memory.extra_bytes(name) > 0),
    ],
)  # fmt: skip
def test_oversized_state_file_counts_as_absent(
    home: Path, path: Callable[[], Path], value: object, is_saved: Callable[[str], bool]
) -> None:
    path().parent.mkdir(parents=True)
    path().write_bytes(msgspec.json.encode(value))
    assert is_saved("k")
    path().write_bytes(b" " * (64 << 20) + msgspec.json.encode(value))
    assert not is_saved("k")
    path().write_bytes(b'{"\xff": 1}')
    assert not is_saved("k")


@pytest.mark.parametrize("size", [0, 1, 99, 100])
def test_file_of_at_most_the_limit_is_read(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * size)
    assert files.read_bytes(path, 100) == b"x" * size


def test_larger_and_growing_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 101)
    with pytest.raises(OSError, match="larger than 100 bytes"):
        files.read_bytes(path, 100)
    fstat = os.fstat
    monkeypatch.setattr(os, "fstat", lambda fd: os.stat_result([*fstat(fd)[:6], 40, *fstat(fd)[7:10]]))
    with pytest.raises(OSError, match="larger than 100 bytes"):  # it had 40 bytes before it grew
        files.read_bytes(path, 100)
    assert files.read_bytes(path, 101) == b"x" * 101


def test_only_one_holder_has_a_file_lock(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    first, second = FileLock(path), FileLock(path)
    assert first.acquire(timeout_s=0)
    assert not second.acquire(timeout_s=0)
    first.close()
    assert second.acquire(timeout_s=60)
    second.close()


def test_closed_lock_is_free_while_a_new_process_has_a_copy_of_its_descriptor(tmp_path: Path) -> None:
    first, second = FileLock(tmp_path / "x.lock"), FileLock(tmp_path / "x.lock")
    assert first.try_acquire()
    copy = os.dup(first._descriptor)
    first.close()
    assert second.try_acquire()
    second.close()
    os.close(copy)
