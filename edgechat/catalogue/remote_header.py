"""What a model on a server is, from the beginning of its files only."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from edgechat.catalogue import hub
from edgechat.catalogue.download import http
from edgechat.catalogue.hub import RemoteFile, Repository
from edgechat.modelfile.gguf import read_gguf_stream
from edgechat.modelfile.header import ModelHeader
from edgechat.modelfile.split import join_headers

# Where the requests for a header end. Most headers take one, those with the largest vocabularies (about 14 MB) three;
# what follows the first file of a set has no vocabulary. Ranges are asked for because a connection that is dropped still
# carries what both ends hold for it, several megabytes.
_FIRST_ENDS: Final = (2 << 20, 8 << 20, 16 << 20)
_OTHER_ENDS: Final = (64 << 10, 1 << 20, 16 << 20)
_STEP_BYTES: Final = 16 << 20
# 14 MB at 240 kB a second.
_DEADLINE_S: Final = 60.0


def find_remote_model(reference: str, keep: Path | None = None) -> tuple[Repository, ModelHeader] | None:
    """A repository, and the header of the model in it that `owner/repo[:QUANT]` stands for; None if it is not that.

    Asks the hub. In the directory `keep` files are left that begin as those afar, and are as long: llama.cpp reads
    sizes from them. Raises CatalogueError, ModelFileError and HubError.
    """
    parsed = hub.parse_reference(reference)
    if parsed is None:
        return None
    server = hub.Hub()
    repo = server.get_repository(parsed[0])
    try:
        return repo, read_remote_header(hub.choose_variant(repo, parsed[1]).files, server.headers(), keep)
    except http.HttpStatusError as error:
        raise hub.explain(error, repo.id) from None


def read_remote_header(
    files: Sequence[RemoteFile], headers: Mapping[str, str], keep: Path | None = None
) -> ModelHeader:
    """The checked header of a model; with `keep`, its path is in there. Raises ModelFileError, HubError and OSError."""
    return join_headers([
        _read(file, headers, _OTHER_ENDS if number else _FIRST_ENDS, keep) for number, file in enumerate(files)
    ])  # fmt: skip


def _read(file: RemoteFile, headers: Mapping[str, str], ends: Sequence[int], keep: Path | None) -> ModelHeader:
    reader = _RemoteReader(file, headers, ends)
    try:
        if keep is None:
            return read_gguf_stream(file.path, reader.read, file.size_bytes)
        path = keep / PurePosixPath(file.path).name
        with path.open("wb") as copy:

            def read(count: int) -> bytes:
                data = reader.read(count)
                copy.write(data)
                return data

            header = read_gguf_stream(str(path), read, file.size_bytes)
            copy.truncate(file.size_bytes)  # sparse: nothing of the weights is on the disk
            return header
    finally:
        reader.close()


class _RemoteReader:
    """The beginning of a file, one range after another as far as it is read."""

    def __init__(self, file: RemoteFile, headers: Mapping[str, str], ends: Sequence[int]) -> None:
        self._file = file
        self._headers = headers
        self._ends = [*ends]
        self._at = 0
        self._until_s = time.monotonic() + _DEADLINE_S
        self._response: http.Response | None = None

    def read(self, count: int) -> bytes:
        """At most `count` bytes; b"" at the end of the file. Raises HubError."""
        if time.monotonic() > self._until_s:
            raise http.ConnectionFailedError(f"the header of {self._file.path} did not come within {_DEADLINE_S:.0f} s")
        data = self._response.read(count) if self._response is not None else b""
        if not data and self._at < self._file.size_bytes:
            self.close()
            end = self._ends.pop(0) if self._ends else self._at + _STEP_BYTES
            self._response = http.get(self._file.url, self._at, min(end, self._file.size_bytes), self._headers)
            if self._response.start != self._at:
                raise http.ConnectionFailedError(f"{self._file.path}: the server knows no ranges")
            data = self._response.read(count)
        self._at += len(data)
        return data

    def close(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None
