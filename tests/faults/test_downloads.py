"""Downloads from a server that fails: broken connections, changed files, full disks, killed processes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgechat import paths
from edgechat.catalogue.download import transfer
from edgechat.catalogue.download.file_download import download_file
from edgechat.catalogue.download.partial_file import FileVersion, PartialFile
from edgechat.catalogue.download.request import DownloadCancelled, DownloadProgress, DownloadRequest, RetryPolicy
from edgechat.errors import DownloadError, HubError
from tests.conftest import Cli, edgechat_command
from tests.faults.hub_file import BODY, NAME, QUICK, SHA, check, interrupt, request_for
from tests.hub import FakeRepo, Faults, LocalHub
from tests.models import split_tiny, write_tiny_llama
from tests.waiting import until


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses in seconds between the attempts of a download, which does not wait for them."""
    durations: list[float] = []
    real = transfer.Transfer._pause_or_raise

    def record_pause(self: transfer.Transfer, error: HubError, n_failures: int, _stop_event: object) -> None:
        recorder: Any = SimpleNamespace(wait=durations.append)
        real(self, error, n_failures, recorder)

    monkeypatch.setattr(transfer.Transfer, "_pause_or_raise", record_pause)
    return durations


def test_complete_file_is_not_downloaded_again(store: LocalHub, tmp_path: Path) -> None:
    progress: list[DownloadProgress] = []
    check(download_file(request_for(store, tmp_path / "m.gguf"), progress.append))
    assert progress[-1].state == "verifying"
    assert progress[-1].done_bytes == len(BODY)
    before = len(store.requests)
    check(download_file(request_for(store, tmp_path / "m.gguf")))
    assert len(store.requests) == before


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drops=st.lists(st.integers(0, len(BODY)), max_size=6), data=st.data())
def test_connections_dropped_at_any_byte_lose_no_data(
    store: LocalHub, tmp_path: Path, drops: list[int], data: st.DataObject
) -> None:
    store.faults.no_ranges = data.draw(st.booleans())
    store.faults.drop_after = list(drops)
    store.sent_bytes = 0
    path = tmp_path / "m.gguf"
    path.unlink(missing_ok=True)
    check(download_file(request_for(store, path), retry_policy=RetryPolicy(max_tries=9, first_pause_s=0.0)))
    if not store.faults.no_ranges:  # nothing is sent again, except for data in transit
        assert store.sent_bytes <= len(BODY) + 9 * (1 << 20)


def test_interrupted_download_resumes_at_the_last_byte(store: LocalHub, tmp_path: Path) -> None:
    interrupt(store, request_for(store, tmp_path / "m.gguf"), 1_000_000)
    progress: list[DownloadProgress] = []
    check(download_file(request_for(store, tmp_path / "m.gguf"), progress.append))
    assert progress[-1].resumed_bytes == 1_000_000
    assert store.file_requests()[0][1] == "bytes=1000000-"


def test_download_resumes_from_a_server_without_ranges(store: LocalHub, tmp_path: Path) -> None:
    store.faults = Faults(no_ranges=True, drop_after=[1_500_000])
    check(download_file(request_for(store, tmp_path / "m.gguf"), retry_policy=QUICK))
    store.faults = Faults(no_ranges=True, no_length=True)
    check(download_file(request_for(store, tmp_path / "again.gguf", size=None), retry_policy=QUICK))


def test_versions_of_a_file_are_never_mixed(store: LocalHub, tmp_path: Path) -> None:
    other = random.Random(2).randbytes(len(BODY))
    model = write_tiny_llama(tmp_path / "tiny.gguf").read_bytes()
    # Identified by hash: bytes of the old version are discarded.
    interrupt(store, request_for(store, tmp_path / "m.gguf"), 1_000_000)
    store.repos[NAME] = FakeRepo({"m.gguf": other})
    path = download_file(request_for(store, tmp_path / "m.gguf", hashlib.sha256(other).hexdigest()))
    assert path.read_bytes() == other
    # Identified by ETag, without a hash.
    store.repos[NAME] = FakeRepo({"m.gguf": model})
    address = DownloadRequest(url=f"{store.store_url}/{NAME}/m.gguf", path=tmp_path / "n.gguf")
    interrupt(store, address, 2000)
    changed = bytearray(model)
    changed[-1] ^= 1
    store.repos[NAME] = FakeRepo({"m.gguf": bytes(changed)})
    assert download_file(address, retry_policy=QUICK).read_bytes() == changed


def test_change_of_the_file_during_the_download_is_an_error(
    store: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.faults.drop_after = [1_000_000]
    contents = iter([BODY, BODY + b"more"])  # of the first and of the second request
    monkeypatch.setattr(store, "content", lambda _repo, _path: next(contents))
    with pytest.raises(DownloadError, match="changed"):
        download_file(request_for(store, tmp_path / "m.gguf"), retry_policy=QUICK)
    assert not (tmp_path / "m.gguf").exists()


def test_file_with_a_wrong_hash_is_deleted(store: LocalHub, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="was deleted"):
        download_file(request_for(store, tmp_path / "m.gguf", "0" * 64))
    assert [p for p in tmp_path.iterdir() if p.suffix == ".gguf" or p.name.endswith((".part", ".log"))] == []


def test_damage_of_a_partial_file_is_repaired(store: LocalHub, tmp_path: Path) -> None:
    interrupt(store, request_for(store, tmp_path / "m.gguf"), 1_000_000)
    part = tmp_path / "m.gguf.part"
    damaged = bytearray(part.read_bytes())
    damaged[500_000] ^= 0xFF
    part.write_bytes(damaged)
    check(download_file(request_for(store, tmp_path / "m.gguf")))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(log=st.binary(max_size=200), length=st.integers(0, 4000), tail=st.binary(max_size=40))
def test_damaged_log_of_a_partial_file_is_ignored(
    store: LocalHub, tmp_path: Path, log: bytes, length: int, tail: bytes
) -> None:
    identity = FileVersion(len(BODY), SHA)
    path = tmp_path / "m.gguf"
    path.unlink(missing_ok=True)
    part = PartialFile(path, identity)
    part.write(0, BODY[:4000])
    part.close()
    with part.data_path.open("r+b") as file:
        file.truncate(length)
    log_path = tmp_path / "m.gguf.part.log"
    log_path.write_bytes(log if len(tail) % 2 else log_path.read_bytes() + tail)
    check(download_file(request_for(store, path)))


@pytest.mark.parametrize(
    ("statuses", "arrives"),
    [([500, 502, 503], True), ([429, 429], True), ([408], True), ([500] * 9, False), ([404], False), ([416], False)],
)
def test_transient_statuses_are_retried(store: LocalHub, tmp_path: Path, statuses: list[int], arrives: bool) -> None:
    store.faults = Faults(statuses=statuses)
    retry_policy = RetryPolicy(max_tries=4, first_pause_s=0.01)
    if arrives:
        check(download_file(request_for(store, tmp_path / "m.gguf"), retry_policy=retry_policy))
    else:
        with pytest.raises(HubError):
            download_file(request_for(store, tmp_path / "m.gguf"), retry_policy=retry_policy)


def test_retry_after_is_respected_up_to_a_limit(store: LocalHub, tmp_path: Path, pauses: list[float]) -> None:
    store.faults = Faults(statuses=[429], retry_after="1")
    check(download_file(request_for(store, tmp_path / "m.gguf"), retry_policy=QUICK))
    assert pauses == [1]
    store.faults = Faults(statuses=[429], retry_after="3600")
    with pytest.raises(HubError, match="3600 s"):
        download_file(request_for(store, tmp_path / "n.gguf"), retry_policy=QUICK)


def test_very_slow_connection_is_given_up(store: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The download measures its speed for a minute of a clock that is a hundred times faster."""
    monkeypatch.setattr(transfer, "time", SimpleNamespace(monotonic=lambda: 100 * time.monotonic()))
    store.faults = Faults(bytes_per_s=400)
    with pytest.raises(HubError, match="less than 1 kB/s"):
        download_file(
            request_for(store, tmp_path / "m.gguf"),
            retry_policy=RetryPolicy(max_tries=1, read_timeout_s=60, max_connections=1),
        )


def test_silent_connection_times_out(store: LocalHub, tmp_path: Path) -> None:
    store.faults = Faults(silent_after=100)
    with pytest.raises(HubError, match="timed out"):
        download_file(
            request_for(store, tmp_path / "m.gguf"),
            retry_policy=RetryPolicy(max_tries=1, first_pause_s=0.01, read_timeout_s=0.3),
        )
    store.faults = Faults()
    check(download_file(request_for(store, tmp_path / "m.gguf")))


def test_several_connections_share_a_slow_file(
    store: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "_MIN_RANGE_BYTES", 100_000)
    store.faults = Faults(bytes_per_s=1_200_000)
    check(download_file(request_for(store, tmp_path / "m.gguf"), retry_policy=QUICK))
    starts = {request[1] for request in store.file_requests()}
    assert 2 <= len(starts) <= QUICK.max_connections + 2


def test_full_disk_is_reported_before_and_during_the_download(
    store: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
        with pytest.raises(DownloadError, match=r"needs another 3 MB"):
            download_file(request_for(store, tmp_path / "m.gguf"))
    written = [0]
    real = os.pwrite

    def full(file: int, data: bytes, offset: int) -> int:
        written[0] += len(data)
        if written[0] > 1_500_000:
            raise OSError(28, "No space left on device")
        return real(file, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(DownloadError, match="No space left"):
            download_file(request_for(store, tmp_path / "m.gguf"))
    assert not (tmp_path / "m.gguf").exists()
    progress: list[DownloadProgress] = []
    check(download_file(request_for(store, tmp_path / "m.gguf"), progress.append))
    assert progress[-1].resumed_bytes > 0


def test_cancelled_download_resumes_from_the_last_range(store: LocalHub, tmp_path: Path) -> None:
    store.faults = Faults(bytes_per_s=1_000_000)
    cancel = threading.Event()

    def cancel_after_300_kb(progress: DownloadProgress) -> None:
        if progress.done_bytes > 300_000:
            cancel.set()

    with pytest.raises(DownloadCancelled):
        download_file(request_for(store, tmp_path / "m.gguf"), cancel_after_300_kb, cancel)
    store.faults = Faults()
    progress: list[DownloadProgress] = []
    check(download_file(request_for(store, tmp_path / "m.gguf"), progress.append))
    assert progress[-1].resumed_bytes > 300_000


def test_unexpected_exception_fails_the_download(
    store: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = PartialFile.write, [0]

    def write(part: PartialFile, offset: int, data: bytes) -> None:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyError("something else")
        real(part, offset, data)

    monkeypatch.setattr(PartialFile, "write", write)
    with pytest.raises(KeyError):
        download_file(request_for(store, tmp_path / "m.gguf"))
    assert not (tmp_path / "m.gguf").exists()
    part = PartialFile(tmp_path / "n.gguf", FileVersion(3, "x"))
    part.close()
    with pytest.raises(OSError, match="is closed"):
        real(part, 0, b"abc")


def test_download_works_if_the_server_allows_one_connection(
    store: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "_MIN_RANGE_BYTES", 100_000)
    store.faults = Faults(bytes_per_s=1_500_000, max_connections=1)
    retry_policy = RetryPolicy(max_tries=6, first_pause_s=0.05, growth_interval_s=0.05)
    check(download_file(request_for(store, tmp_path / "m.gguf"), retry_policy=retry_policy))
    assert len(store.file_requests()) > 1


def test_file_without_hash_and_etag_is_not_resumed(store: LocalHub, tmp_path: Path) -> None:
    store.faults = Faults(no_etag=True, drop_after=[1_000_000])
    path = download_file(
        DownloadRequest(url=f"{store.store_url}/{NAME}/m.gguf", path=tmp_path / "m.bin"), retry_policy=QUICK
    )
    assert path.read_bytes() == BODY
    assert [request[1] for request in store.file_requests()] == ["bytes=0-", "bytes=0-"]


def test_closed_port_fails_without_further_attempts(store: LocalHub, tmp_path: Path, pauses: list[float]) -> None:
    with pytest.raises(HubError, match="Cannot reach"):
        download_file(
            DownloadRequest(url="http://127.0.0.1:1/m.gguf", path=tmp_path / "m.gguf", size_bytes=5, sha256=SHA)
        )
    assert pauses == []


# Processes


def _pull(store: LocalHub, home: Path, *arguments: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {"HF_ENDPOINT": store.url, "EDGECHAT_HOME": str(home)}
    return subprocess.Popen(
        edgechat_command("models", "pull", *arguments), env=environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def count_saved_bytes(store: LocalHub, repo: str) -> int:
    """Return the number of bytes of a repository's files that a later download does not need to receive again."""
    n_bytes = 0
    for name in store.repos[repo].files:
        content = store.content(repo, name)
        path = paths.models_dir() / repo / name
        if path.exists():
            n_bytes += len(content)
        else:
            part = PartialFile(path, FileVersion(len(content), hashlib.sha256(content).hexdigest()))
            n_bytes += part.resumed_bytes
            part.close()
    return n_bytes


def count_received_bytes() -> int:
    """Return the size of all complete and partial model files."""
    n_bytes = 0
    for path in [*paths.models_dir().rglob("*.gguf"), *paths.models_dir().rglob("*.part")]:
        with contextlib.suppress(FileNotFoundError):  # a partial file that is complete by now
            n_bytes += path.stat().st_size
    return n_bytes


def wait_for_responses(store: LocalHub) -> None:
    """Wait until the server sends nothing: it may notice the end of a client late, and count bytes late."""
    until(lambda: store.open_bodies == 0)


def test_killed_download_of_a_split_model_resumes_and_the_model_works(
    store: LocalHub, tmp_path: Path, home: Path, cli: Cli
) -> None:
    files: dict[str, Path | bytes] = {path.name: path for path in split_tiny(tmp_path)}
    assert len(files) == 3
    store.repos["own/tiny"] = FakeRepo(files)
    sizes = [p.stat().st_size for p in files.values() if isinstance(p, Path)]
    store.faults.bytes_per_s = sum(sizes) / 2
    for _ in range(2):
        child = _pull(store, home, "own/tiny")
        enough_bytes = count_received_bytes() + sum(sizes) / 5
        until(lambda: count_received_bytes() >= enough_bytes)  # noqa: B023
        child.send_signal(signal.SIGKILL)
        child.communicate()
        wait_for_responses(store)
        assert not any(p.read_bytes() != store.content("own/tiny", p.name) for p in paths.models_dir().rglob("*.gguf"))
    store.faults.bytes_per_s = 0
    saved_bytes, store.sent_bytes = count_saved_bytes(store, "own/tiny"), 0
    assert saved_bytes > 0
    child = _pull(store, home, "own/tiny", "--name", "tiny")
    out, error = child.communicate(timeout=120)
    assert child.returncode == 0, error
    assert b"Installed as tiny" in out
    wait_for_responses(store)
    assert store.sent_bytes == sum(sizes) - saved_bytes
    verified = cli("models", "verify", "tiny")
    assert verified.stdout.count(": verified") == 3
    answer = cli("ask", "-m", "tiny", "--max-tokens", "4", "--temperature", "0", "--json", "Hello")
    assert answer.returncode == 0, answer.stderr


def test_two_processes_download_a_file_once(store: LocalHub, tmp_path: Path, home: Path) -> None:
    model = write_tiny_llama(tmp_path / "tiny.gguf")
    store.repos["own/tiny"] = FakeRepo({"tiny-F32.gguf": model})
    store.faults.bytes_per_s = model.stat().st_size
    children = [_pull(store, home, "own/tiny") for _ in range(2)]
    for child in children:
        _, error = child.communicate(timeout=120)
        assert child.returncode == 0, error
    wait_for_responses(store)
    assert store.sent_bytes == model.stat().st_size
