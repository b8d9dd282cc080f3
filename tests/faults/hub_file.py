"""A file on a local hub, and requests for it, for tests of failing downloads."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from edgechat.catalogue.download.file_download import download_file
from edgechat.catalogue.download.request import DownloadRequest, RetryPolicy
from edgechat.errors import HubError
from tests.hub import Faults, LocalHub

QUICK = RetryPolicy(max_tries=3, first_pause_s=0.01, growth_interval_s=0.05)
BODY = random.Random(1).randbytes(3_000_000)
SHA = hashlib.sha256(BODY).hexdigest()
NAME = "own/repo"


def request_for(store: LocalHub, path: Path, sha256: str = SHA, size: int | None = len(BODY)) -> DownloadRequest:
    return DownloadRequest(url=f"{store.url}/{NAME}/resolve/main/m.gguf", path=path, size_bytes=size, sha256=sha256)


def interrupt(store: LocalHub, request: DownloadRequest, after: int) -> None:
    """Download until the server drops the connection after `after` bytes, and every later one at once."""
    store.faults = Faults(drop_after=[after, 0, 0, 0])
    with pytest.raises(HubError):
        download_file(request, retry_policy=QUICK)
    assert not request.path.exists()
    store.faults, store.requests = Faults(), []


def check(path: Path) -> None:
    assert path.read_bytes() == BODY
    assert [p.name for p in path.parent.iterdir() if ".part" in p.name and not p.name.endswith(".lock")] == []
