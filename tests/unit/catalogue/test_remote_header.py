"""Headers of models on a server."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgechat.catalogue import remote_header
from edgechat.catalogue.hub import RemoteFile
from edgechat.modelfile.split import read_header
from tests.hub import FakeRepo, local_hub
from tests.models import split_tiny
from tests.unit.modelfile.large_vocabulary import write_large_vocabulary


@pytest.mark.slow
def test_remote_header_takes_few_requests_and_no_weights(tmp_path: Path) -> None:
    path = write_large_vocabulary(tmp_path / "m.gguf")
    assert path.stat().st_size > 13e6
    with path.open("r+b") as file:
        file.truncate(100 << 20)
    with local_hub() as hub:
        hub.repos["a/b"] = FakeRepo({"m.gguf": path, **{part.name: part for part in split_tiny(tmp_path)}})

        def remote_file(name: str, size_bytes: int) -> RemoteFile:
            return RemoteFile(path=name, size_bytes=size_bytes, sha256="", url=f"{hub.store_url}/a/b/{name}")

        header = remote_header.read_remote_header([remote_file("m.gguf", 100 << 20)], {})
        assert len(hub.file_requests()) <= 3
        assert hub.sent_bytes <= 16 << 20
        assert header.n_vocab == 262_144
        assert header.tensors == read_header(path).tensors
        hub.requests.clear()
        parts = [
            remote_file(name, len(hub.content("a/b", name)))
            for name in sorted(hub.repos["a/b"].files)
            if "tiny" in name
        ]
        header = remote_header.read_remote_header(parts, {})
        assert header.tensors == read_header(tmp_path / parts[0].path).tensors
        assert len(hub.file_requests()) == 3
