"""Files from a hub that fails in every way it can."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgechat import paths
from edgechat.catalogue import hub, pull
from edgechat.catalogue.download import http, transfer
from edgechat.catalogue.download.file_download import download_file
from edgechat.catalogue.download.partial_file import FileVersion, PartialFile
from edgechat.catalogue.download.request import DownloadCancelled, DownloadProgress, DownloadRequest, RetryPolicy
from edgechat.errors import CatalogueError, DownloadError, HubError
from tests.conftest import Cli, edgechat_command
from tests.hub import FakeRepo, Faults, LocalHub, local_hub
from tests.models import split_tiny, write_tiny_llama
from tests.waiting import until

QUICK = RetryPolicy(max_tries=3, first_pause_s=0.01, read_timeout_s=0.5, growth_interval_s=0.2)
BODY = random.Random(1).randbytes(3_000_000)
SHA = hashlib.sha256(BODY).hexdigest()
NAME = "own/repo"


@pytest.fixture(scope="module")
def server() -> Iterator[LocalHub]:
    with local_hub() as found:
        yield found


@pytest.fixture
def store(server: LocalHub, monkeypatch: pytest.MonkeyPatch) -> LocalHub:
    """A hub in order, and the environment that leads to it."""
    server.faults, server.requests, server.sent_bytes = Faults(), [], 0
    server.repos = {NAME: FakeRepo({"m.gguf": BODY})}
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    return server


def wanted(store: LocalHub, path: Path, sha256: str = SHA, size: int | None = len(BODY)) -> DownloadRequest:
    return DownloadRequest(url=f"{store.url}/{NAME}/resolve/main/m.gguf", path=path, size_bytes=size, sha256=sha256)


def interrupted(store: LocalHub, what: DownloadRequest, after: int) -> None:
    """Get so many bytes of it, and then nothing any more."""
    store.faults = Faults(drop_after=[after, 0, 0, 0])
    with pytest.raises(HubError):
        download_file(what, retry_policy=QUICK)
    assert not what.path.exists()
    store.faults, store.requests = Faults(), []


def check(path: Path) -> None:
    assert path.read_bytes() == BODY
    assert [p.name for p in path.parent.iterdir() if ".part" in p.name and not p.name.endswith(".lock")] == []


def test_a_file_arrives_and_is_not_fetched_twice(store: LocalHub, tmp_path: Path) -> None:
    heard: list[DownloadProgress] = []
    check(download_file(wanted(store, tmp_path / "m.gguf"), heard.append))
    assert heard[-1].state == "verifying"
    assert heard[-1].done_bytes == len(BODY)
    before = len(store.requests)
    check(download_file(wanted(store, tmp_path / "m.gguf")))
    assert len(store.requests) == before


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drops=st.lists(st.integers(0, len(BODY)), max_size=6), data=st.data())
def test_connections_dropped_at_any_byte(
    store: LocalHub, tmp_path: Path, drops: list[int], data: st.DataObject
) -> None:
    store.faults.no_ranges = data.draw(st.booleans())
    store.faults.drop_after = list(drops)
    store.sent_bytes = 0
    path = tmp_path / "m.gguf"
    path.unlink(missing_ok=True)
    check(download_file(wanted(store, path), retry_policy=RetryPolicy(max_tries=9, first_pause_s=0.0)))
    if not store.faults.no_ranges:  # no byte that had arrived was sent again, but for what was on its way
        assert store.sent_bytes <= len(BODY) + 9 * (1 << 20)


def test_what_arrived_is_used_after_the_process_has_gone(store: LocalHub, tmp_path: Path) -> None:
    interrupted(store, wanted(store, tmp_path / "m.gguf"), 1_000_000)
    heard: list[DownloadProgress] = []
    check(download_file(wanted(store, tmp_path / "m.gguf"), heard.append))
    assert heard[-1].resumed_bytes == 1_000_000
    assert store.file_requests()[0][1] == "bytes=1000000-"


def test_a_server_without_ranges_is_read_past_what_is_there(store: LocalHub, tmp_path: Path) -> None:
    store.faults = Faults(no_ranges=True, drop_after=[1_500_000])
    check(download_file(wanted(store, tmp_path / "m.gguf"), retry_policy=QUICK))
    store.faults = Faults(no_ranges=True, no_length=True)
    check(download_file(wanted(store, tmp_path / "again.gguf", size=None), retry_policy=QUICK))


def test_a_file_that_changes_is_never_mixed(store: LocalHub, tmp_path: Path) -> None:
    other = random.Random(2).randbytes(len(BODY))
    model = write_tiny_llama(tmp_path / "tiny.gguf").read_bytes()
    # By hash: what arrived of the old one does not count for the new one.
    interrupted(store, wanted(store, tmp_path / "m.gguf"), 1_000_000)
    store.repos[NAME] = FakeRepo({"m.gguf": other})
    got = download_file(wanted(store, tmp_path / "m.gguf", hashlib.sha256(other).hexdigest()))
    assert got.read_bytes() == other
    # Without a hash: by the server's name for the version.
    store.repos[NAME] = FakeRepo({"m.gguf": model})
    address = DownloadRequest(url=f"{store.store_url}/{NAME}/m.gguf", path=tmp_path / "n.gguf")
    interrupted(store, address, 2000)
    changed = bytearray(model)
    changed[-1] ^= 1
    store.repos[NAME] = FakeRepo({"m.gguf": bytes(changed)})
    assert download_file(address, retry_policy=QUICK).read_bytes() == changed


def test_a_file_that_changes_while_it_arrives(store: LocalHub, tmp_path: Path) -> None:
    store.faults.drop_after = [1_000_000]
    slow = RetryPolicy(max_tries=3, first_pause_s=0.5)
    threading.Timer(0.25, lambda: store.repos.update({NAME: FakeRepo({"m.gguf": BODY + b"more"})})).start()
    with pytest.raises(DownloadError, match="changed"):
        download_file(wanted(store, tmp_path / "m.gguf"), retry_policy=slow)
    assert not (tmp_path / "m.gguf").exists()


def test_a_wrong_hash_is_thrown_away(store: LocalHub, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="thrown away"):
        download_file(wanted(store, tmp_path / "m.gguf", "0" * 64))
    assert [p for p in tmp_path.iterdir() if p.suffix == ".gguf" or p.name.endswith((".part", ".log"))] == []


def test_damage_of_what_was_kept_is_found_and_mended(store: LocalHub, tmp_path: Path) -> None:
    interrupted(store, wanted(store, tmp_path / "m.gguf"), 1_000_000)
    part = tmp_path / "m.gguf.part"
    damaged = bytearray(part.read_bytes())
    damaged[500_000] ^= 0xFF
    part.write_bytes(damaged)
    check(download_file(wanted(store, tmp_path / "m.gguf")))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(log=st.binary(max_size=200), length=st.integers(0, 4000), tail=st.binary(max_size=40))
def test_a_damaged_log_is_survived(store: LocalHub, tmp_path: Path, log: bytes, length: int, tail: bytes) -> None:
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
    check(download_file(wanted(store, path)))


@pytest.mark.parametrize(
    ("statuses", "arrives"),
    [([500, 502, 503], True), ([429, 429], True), ([408], True), ([500] * 9, False), ([404], False), ([416], False)],
)
def test_servers_in_trouble(store: LocalHub, tmp_path: Path, statuses: list[int], arrives: bool) -> None:
    store.faults = Faults(statuses=statuses)
    patience = RetryPolicy(max_tries=4, first_pause_s=0.01)
    if arrives:
        check(download_file(wanted(store, tmp_path / "m.gguf"), retry_policy=patience))
    else:
        with pytest.raises(HubError):
            download_file(wanted(store, tmp_path / "m.gguf"), retry_policy=patience)


def test_retry_after_is_waited_for_or_told(store: LocalHub, tmp_path: Path) -> None:
    store.faults = Faults(statuses=[429], retry_after="1")
    started = time.monotonic()
    check(download_file(wanted(store, tmp_path / "m.gguf"), retry_policy=QUICK))
    assert time.monotonic() - started >= 1
    store.faults = Faults(statuses=[429], retry_after="3600")
    with pytest.raises(HubError, match="3600 s"):
        download_file(wanted(store, tmp_path / "n.gguf"), retry_policy=QUICK)


def test_a_server_that_sends_a_byte_now_and_then_is_left(store: LocalHub, tmp_path: Path) -> None:
    store.faults = Faults(bytes_per_s=400)
    started = time.monotonic()
    with pytest.raises(HubError, match="less than 1 kB"):
        download_file(
            wanted(store, tmp_path / "m.gguf"),
            retry_policy=RetryPolicy(max_tries=1, first_pause_s=0.01, read_timeout_s=0.4),
        )
    assert time.monotonic() - started < 5


def test_a_server_that_falls_silent_is_left(store: LocalHub, tmp_path: Path) -> None:
    store.faults = Faults(silent_after=100)
    with pytest.raises(HubError, match="timed out"):
        download_file(
            wanted(store, tmp_path / "m.gguf"),
            retry_policy=RetryPolicy(max_tries=1, first_pause_s=0.01, read_timeout_s=0.3),
        )
    store.faults = Faults()
    check(download_file(wanted(store, tmp_path / "m.gguf")))


def test_several_connections_share_a_slow_file(
    store: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "_LEAST_SHARE_BYTES", 100_000)
    store.faults = Faults(bytes_per_s=600_000)
    check(download_file(wanted(store, tmp_path / "m.gguf"), retry_policy=QUICK))
    starts = {request[1] for request in store.file_requests()}
    assert 2 <= len(starts) <= QUICK.max_connections + 2


def test_a_full_disk_is_seen_before_and_during(
    store: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
        with pytest.raises(DownloadError, match=r"3 MB more"):
            download_file(wanted(store, tmp_path / "m.gguf"))
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
            download_file(wanted(store, tmp_path / "m.gguf"))
    assert not (tmp_path / "m.gguf").exists()
    heard: list[DownloadProgress] = []
    check(download_file(wanted(store, tmp_path / "m.gguf"), heard.append))
    assert heard[-1].resumed_bytes > 0


def test_cancelling_keeps_what_is_there(store: LocalHub, tmp_path: Path) -> None:
    store.faults = Faults(bytes_per_s=1_000_000)
    cancel = threading.Event()

    def tell(progress: DownloadProgress) -> None:
        if progress.done_bytes > 300_000:
            cancel.set()

    with pytest.raises(DownloadCancelled):
        download_file(wanted(store, tmp_path / "m.gguf"), tell, cancel)
    store.faults = Faults()
    heard: list[DownloadProgress] = []
    check(download_file(wanted(store, tmp_path / "m.gguf"), heard.append))
    assert heard[-1].resumed_bytes > 300_000


def test_what_nobody_expected_is_no_success(store: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = PartialFile.write, [0]

    def write(part: PartialFile, offset: int, data: bytes) -> None:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyError("something else")
        real(part, offset, data)

    monkeypatch.setattr(PartialFile, "write", write)
    with pytest.raises(KeyError):
        download_file(wanted(store, tmp_path / "m.gguf"))
    assert not (tmp_path / "m.gguf").exists()
    part = PartialFile(tmp_path / "n.gguf", FileVersion(3, "x"))
    part.close()
    with pytest.raises(OSError, match="is closed"):
        real(part, 0, b"abc")


def test_a_server_that_allows_one_connection_is_enough(
    store: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "_LEAST_SHARE_BYTES", 100_000)
    store.faults = Faults(bytes_per_s=1_500_000, max_connections=1)
    patience = RetryPolicy(max_tries=6, first_pause_s=0.05, read_timeout_s=0.5, growth_interval_s=0.2)
    check(download_file(wanted(store, tmp_path / "m.gguf"), retry_policy=patience))
    assert len(store.file_requests()) > 1


def test_without_a_name_for_the_version_nothing_is_gone_on_with(store: LocalHub, tmp_path: Path) -> None:
    store.faults = Faults(no_etag=True, drop_after=[1_000_000])
    path = download_file(
        DownloadRequest(url=f"{store.store_url}/{NAME}/m.gguf", path=tmp_path / "m.bin"), retry_policy=QUICK
    )
    assert path.read_bytes() == BODY
    assert [request[1] for request in store.file_requests()] == ["bytes=0-", "bytes=0-"]


def test_a_closed_port_is_said_at_once(store: LocalHub, tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(HubError, match="cannot be reached"):
        download_file(
            DownloadRequest(url="http://127.0.0.1:1/m.gguf", path=tmp_path / "m.gguf", size_bytes=5, sha256=SHA)
        )
    assert time.monotonic() - started < 3


# Tokens and other origins


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LocalHub, Path]]:
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    directory = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=IP:127.0.0.1", "-keyout", directory / "key.pem", "-out", directory / "cert.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    with local_hub(directory) as found:
        yield found, directory / "cert.pem"


def test_cancelling_over_tls_keeps_only_what_was_sent(
    secure: tuple[LocalHub, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, certificate = secure
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    server.repos = {NAME: FakeRepo({"m.gguf": BODY})}
    what = wanted(server, tmp_path / "m.gguf")
    for limit in (300_000, 1_000_000, 2_000_000):
        cancel = threading.Event()
        server.faults = Faults(bytes_per_s=6_000_000)

        def cancel_at_limit(progress: DownloadProgress, limit: int = limit, cancel: threading.Event = cancel) -> None:
            if progress.done_bytes > limit:
                cancel.set()

        with pytest.raises(DownloadCancelled):
            download_file(what, cancel_at_limit, cancel)
        part = (tmp_path / "m.gguf.part").read_bytes()
        assert part == BODY[: len(part)]
    server.faults = Faults()
    check(download_file(what))
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(HubError, match="certificate"):
        download_file(wanted(server, tmp_path / "n.gguf"))


def test_https_does_not_lead_to_http(
    store: LocalHub, secure: tuple[LocalHub, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, certificate = secure
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    server.repos, server.faults = (
        {NAME: FakeRepo({"m.gguf": BODY})},
        Faults(redirect_to=f"{store.store_url}/{NAME}/m.gguf"),
    )
    with pytest.raises(HubError, match="leads from https to http"):
        download_file(wanted(server, tmp_path / "m.gguf"))
    for target in ("http://a..b/", "http://[", "file:///etc/passwd", "//", ""):
        store.faults = Faults(redirect_to=target)
        with pytest.raises(HubError):
            download_file(wanted(store, tmp_path / "m.gguf"), retry_policy=QUICK)


def test_no_token_follows_to_another_origin(store: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    store.repos[NAME].token = "hf_secret"
    target = pull.find_target(f"{NAME}:m.gguf")
    check(download_file(target.files[0]))
    asked = [request for request in store.requests if "/resolve/" in request[0]]
    assert all(request[2].get("authorization") or request[2].get("Authorization") for request in asked)
    for _, _, headers in store.file_requests():
        assert "hf_secret" not in str(headers)


def test_only_http_is_asked() -> None:
    with pytest.raises(HubError, match="no address"):
        http.get("ftp://127.0.0.1/file")
    with pytest.raises(HubError, match="no address"):
        http.get("file:///etc/passwd")


@pytest.mark.parametrize(
    ("gated", "sent", "words"),
    [(True, "", "is gated"), (True, "hf_other", "is gated"), (False, "", "HF_TOKEN"), (False, "hf_other", "gated")],
)
def test_closed_repositories_are_explained(
    store: LocalHub, monkeypatch: pytest.MonkeyPatch, gated: bool, sent: str, words: str
) -> None:
    store.repos[NAME] = FakeRepo({"m.gguf": BODY}, gated=gated, token="hf_right")
    if sent:
        monkeypatch.setenv("HF_TOKEN", sent)
    with pytest.raises(HubError, match=words) as error:
        pull.download_model(pull.find_target(NAME), retry_policy=QUICK)
    assert "hf_" not in str(error.value).replace("hf_token", "")


def test_hostile_names_go_nowhere(store: LocalHub) -> None:
    names = [
        "../up.gguf", "/etc/abs.gguf", "a/../../b.gguf", "CON.gguf", "a/nul.gguf", "lpt1.gguf", "a\\b.gguf", ".hidden.gguf",
        "a\x1b[2J.gguf", "x" * 300 + ".gguf", "a//b.gguf", "c:d.gguf", "trailing .gguf/x.gguf", "-rf.gguf",
    ]  # fmt: skip
    store.repos["evil/repo"] = FakeRepo({**dict.fromkeys(names, b"GGUF"), "good-Q4_0.gguf": b"GGUF"})
    found = hub.Hub().get_repository("evil/repo")
    assert [
        variant.files[0].path for variant in found.variants if variant.files[0].path != "trailing .gguf/x.gguf"
    ] == ["good-Q4_0.gguf"]
    for address in (
        f"{store.store_url}/own/repo/..%2F..%2Fup.gguf",
        "http://x/",
        "http://x/a%00.gguf",
        "http://x/..gguf",
        "http://x/con.gguf",
    ):
        with pytest.raises(CatalogueError, match=r"\.gguf file"):
            pull.find_target(address)


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"{", b'{"id": 3}', b'{"id": "a/b", "siblings": [{"size": 1}]}'])
def test_answers_that_are_nonsense(store: LocalHub, body: bytes) -> None:
    store.faults.api_body = body
    problem = ""
    try:
        assert hub.Hub().get_repository(NAME).variants == ()
    except HubError as error:
        problem = str(error)
    assert not problem or "no usable answer" in problem


@pytest.mark.parametrize(
    ("status", "words"), [(429, "too often"), (500, "in trouble"), (418, "refused"), (401, "HF_TOKEN")]
)
def test_refusals_of_the_hub_are_explained(store: LocalHub, status: int, words: str) -> None:
    store.faults.api_status = status
    store.faults.retry_after = "60" if status == 429 else ""
    with pytest.raises(HubError, match=words):
        hub.Hub().search("anything")


# Processes


def _pull(store: LocalHub, home: Path, *arguments: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {"HF_ENDPOINT": store.url, "EDGECHAT_HOME": str(home)}
    return subprocess.Popen(
        edgechat_command("models", "pull", *arguments), env=environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_a_split_set_is_killed_twice_resumed_verified_and_answers(
    store: LocalHub, tmp_path: Path, home: Path, cli: Cli
) -> None:
    files: dict[str, Path | bytes] = {path.name: path for path in split_tiny(tmp_path)}
    assert len(files) == 3
    store.repos["own/tiny"] = FakeRepo(files)
    sizes = [p.stat().st_size for p in files.values() if isinstance(p, Path)]
    store.faults.bytes_per_s = sum(sizes) / 2
    for _ in range(2):
        child = _pull(store, home, "own/tiny")
        enough_bytes = store.sent_bytes + sum(sizes) / 5
        until(lambda: store.sent_bytes >= enough_bytes)  # noqa: B023
        child.send_signal(signal.SIGKILL)
        child.communicate()
        assert not any(p.read_bytes() != store.content("own/tiny", p.name) for p in paths.models_dir().rglob("*.gguf"))
    store.faults.bytes_per_s = 0
    child = _pull(store, home, "own/tiny", "--name", "tiny")
    out, error = child.communicate(timeout=60)
    assert child.returncode == 0, error
    assert b"called tiny" in out
    assert store.sent_bytes <= sum(sizes) + 2 * (1 << 16) + sum(sizes) / 10
    verified = cli("models", "verify", "tiny")
    assert verified.stdout.count("as it should be") == 3
    answer = cli("ask", "-m", "tiny", "--max-tokens", "4", "--temperature", "0", "--json", "Hello")
    assert answer.returncode == 0, answer.stderr


def test_two_processes_that_want_one_file_get_it_once(store: LocalHub, tmp_path: Path, home: Path) -> None:
    model = write_tiny_llama(tmp_path / "tiny.gguf")
    store.repos["own/tiny"] = FakeRepo({"tiny-F32.gguf": model})
    store.faults.bytes_per_s = model.stat().st_size
    children = [_pull(store, home, "own/tiny") for _ in range(2)]
    for child in children:
        _, error = child.communicate(timeout=60)
        assert child.returncode == 0, error
    assert store.sent_bytes == model.stat().st_size


def test_offline_says_so_at_once(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for command in (("search", "x"), ("pull", "own/repo"), ("info", "own/repo")):
        result = cli("models", *command)
        assert result.returncode == 6
        assert "HF_HUB_OFFLINE" in result.stderr
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://192.0.2.1")  # an address that never answers
    started = time.monotonic()
    result = cli("models", "search", "x")
    assert result.returncode == 6
    assert time.monotonic() - started < 3 + 3
    assert cli("models", "list").returncode == 0
