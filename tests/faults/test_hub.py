"""Tokens, redirects, TLS, unsafe names and error responses of the hub."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgechat.catalogue import hub, pull
from edgechat.catalogue.download import http
from edgechat.catalogue.download.file_download import download_file
from edgechat.catalogue.download.request import DownloadCancelled, DownloadProgress
from edgechat.errors import CatalogueError, HubError
from tests.conftest import Cli
from tests.faults.hub_file import BODY, NAME, QUICK, check, request_for
from tests.hub import FakeRepo, Faults, LocalHub, local_hub


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
    with local_hub(directory) as server:
        yield server, directory / "cert.pem"


def test_cancelled_tls_download_keeps_only_decrypted_bytes(
    secure: tuple[LocalHub, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, certificate = secure
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    server.repos = {NAME: FakeRepo({"m.gguf": BODY})}
    request = request_for(server, tmp_path / "m.gguf")
    for limit in (300_000, 1_000_000, 2_000_000):
        cancel = threading.Event()
        server.faults = Faults(bytes_per_s=6_000_000)

        def cancel_at_limit(progress: DownloadProgress, limit: int = limit, cancel: threading.Event = cancel) -> None:
            if progress.done_bytes > limit:
                cancel.set()

        with pytest.raises(DownloadCancelled):
            download_file(request, cancel_at_limit, cancel)
        part = (tmp_path / "m.gguf.part").read_bytes()
        assert part == BODY[: len(part)]
        if limit < 2_000_000:  # the next download starts again, so that it cannot be complete before it is cancelled
            (tmp_path / "m.gguf.part").unlink()
    server.faults = Faults()
    check(download_file(request))
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(HubError, match="certificate"):
        download_file(request_for(server, tmp_path / "n.gguf"))


def test_redirect_from_https_to_http_is_refused(
    store: LocalHub, secure: tuple[LocalHub, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, certificate = secure
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    server.repos, server.faults = (
        {NAME: FakeRepo({"m.gguf": BODY})},
        Faults(redirect_to=f"{store.store_url}/{NAME}/m.gguf"),
    )
    with pytest.raises(HubError, match="does not follow redirects from https to http"):
        download_file(request_for(server, tmp_path / "m.gguf"))
    for target in ("http://a..b/", "http://[", "file:///etc/passwd", "//", ""):
        store.faults = Faults(redirect_to=target)
        with pytest.raises(HubError):
            download_file(request_for(store, tmp_path / "m.gguf"), retry_policy=QUICK)


def test_token_is_not_sent_to_another_origin(store: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    store.repos[NAME].token = "hf_secret"
    target = pull.find_target(f"{NAME}:m.gguf")
    check(download_file(target.files[0]))
    hub_requests = [request for request in store.requests if "/resolve/" in request[0]]
    assert all(request[2].get("authorization") or request[2].get("Authorization") for request in hub_requests)
    for _, _, headers in store.file_requests():
        assert "hf_secret" not in str(headers)


def test_only_http_urls_are_accepted() -> None:
    with pytest.raises(HubError, match="is not an http or https URL"):
        http.get("ftp://127.0.0.1/file")
    with pytest.raises(HubError, match="is not an http or https URL"):
        http.get("file:///etc/passwd")


@pytest.mark.parametrize(
    ("gated", "token", "message"),
    [(True, "", "is gated"), (True, "hf_other", "is gated"), (False, "", "HF_TOKEN"), (False, "hf_other", "gated")],
)
def test_gated_and_private_repositories_are_explained(
    store: LocalHub, monkeypatch: pytest.MonkeyPatch, gated: bool, token: str, message: str
) -> None:
    store.repos[NAME] = FakeRepo({"m.gguf": BODY}, gated=gated, token="hf_right")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubError, match=message) as error:
        pull.download_model(pull.find_target(NAME), retry_policy=QUICK)
    assert "hf_" not in str(error.value).replace("hf_token", "")


def test_unsafe_file_names_are_refused(store: LocalHub) -> None:
    names = [
        "../up.gguf", "/etc/abs.gguf", "a/../../b.gguf", "CON.gguf", "a/nul.gguf", "lpt1.gguf", "a\\b.gguf",
        ".hidden.gguf", "a\x1b[2J.gguf", "x" * 300 + ".gguf", "a//b.gguf", "c:d.gguf", "trailing .gguf/x.gguf",
        "-rf.gguf",
    ]  # fmt: skip
    store.repos["evil/repo"] = FakeRepo({**dict.fromkeys(names, b"GGUF"), "good-Q4_0.gguf": b"GGUF"})
    repo = hub.Hub().get_repository("evil/repo")
    assert [variant.files[0].path for variant in repo.variants if variant.files[0].path != "trailing .gguf/x.gguf"] == [
        "good-Q4_0.gguf"
    ]
    for address in (
        f"{store.store_url}/own/repo/..%2F..%2Fup.gguf",
        "http://x/",
        "http://x/a%00.gguf",
        "http://x/..gguf",
        "http://x/con.gguf",
    ):
        with pytest.raises(CatalogueError, match=r"valid \.gguf file name"):
            pull.find_target(address)


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"{", b'{"id": 3}', b'{"id": "a/b", "siblings": [{"size": 1}]}'])
def test_invalid_response_of_the_hub_is_one_error(store: LocalHub, body: bytes) -> None:
    store.faults.api_body = body
    message = ""
    try:
        assert hub.Hub().get_repository(NAME).variants == ()
    except HubError as error:
        message = str(error)
    assert not message or "an invalid response" in message


@pytest.mark.parametrize(
    ("status", "message"),
    [(429, "too many requests"), (500, "internal error"), (418, "refused"), (401, "HF_TOKEN")],
)
def test_error_statuses_of_the_hub_are_explained(store: LocalHub, status: int, message: str) -> None:
    store.faults.api_status = status
    store.faults.retry_after = "60" if status == 429 else ""
    with pytest.raises(HubError, match=message):
        hub.Hub().search("anything")


def test_offline_mode_and_unreachable_hub_fail_fast(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for command in (("search", "x"), ("pull", "own/repo"), ("info", "own/repo")):
        result = cli("models", *command)
        assert result.returncode == 6
        assert "HF_HUB_OFFLINE" in result.stderr
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://192.0.2.1")  # reserved: never responds
    started = time.monotonic()
    result = cli("models", "search", "x")
    assert result.returncode == 6
    assert time.monotonic() - started < 100  # Linux gives up after more than two minutes
    assert cli("models", "list").returncode == 0
