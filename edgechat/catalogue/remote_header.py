"""Reads model headers from a server by downloading only the beginning of each file."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from edgechat.catalogue import hub
from edgechat.catalogue.download import http
from edgechat.catalogue.hub import RemoteFile, Repository
from edgechat.catalogue.hub_errors import hub_error
from edgechat.modelfile.gguf import read_gguf_stream
from edgechat.modelfile.header import ModelHeader
from edgechat.modelfile.split import join_headers

# End offsets of the successive range requests. Most headers need one request, those with the largest vocabularies
# (about 14 MB) three; later parts of a split model have no vocabulary. Open-ended requests would waste several
# megabytes, because a closed connection still transfers the data that both ends have buffered.
_FIRST_FILE_ENDS: Final = (2 << 20, 8 << 20, 16 << 20)
_LATER_FILE_ENDS: Final = (64 << 10, 1 << 20, 16 << 20)
_STEP_BYTES: Final = 16 << 20
# Time limit for a whole header: enough for 14 MB at 240 kB/s.
_TIMEOUT_S: Final = 60.0


def find_remote_model(reference: str, copy_dir: Path | None = None) -> tuple[Repository, ModelHeader] | None:
    """Fetch the repository and the model header of `owner/repo[:QUANT]`. Returns None for any other reference.

    With `copy_dir`, sparse copies of the files are written there. They have the header and the length of the originals,
    so that llama.cpp can compute memory sizes from them. Raises CatalogueError, ModelFileError and HubError.
    """
    parsed = hub.parse_reference(reference)
    if parsed is None:
        return None
    client = hub.Hub()
    repo = client.get_repository(parsed[0])
    try:
        return repo, read_remote_header(hub.choose_variant(repo, parsed[1]).files, client.headers(), copy_dir)
    except http.HttpStatusError as error:
        raise hub_error(error, repo.id, client.endpoint) from None


def read_remote_header(
    files: Sequence[RemoteFile], headers: Mapping[str, str], copy_dir: Path | None = None
) -> ModelHeader:
    """Download and check the header of a model, from all parts if it is split; `copy_dir` as in `find_remote_model`.

    Raises ModelFileError, HubError and OSError.
    """
    return join_headers([
        _read_file_header(file, headers, _LATER_FILE_ENDS if index else _FIRST_FILE_ENDS, copy_dir)
        for index, file in enumerate(files)
    ])  # fmt: skip


def _read_file_header(
    file: RemoteFile, headers: Mapping[str, str], ends: Sequence[int], copy_dir: Path | None
) -> ModelHeader:
    reader = _RemoteReader(file, headers, ends)
    try:
        if copy_dir is None:
            return read_gguf_stream(file.path, reader.read, file.size_bytes)
        path = copy_dir / PurePosixPath(file.path).name
        with path.open("wb") as copy:

            def read(count: int) -> bytes:
                data = reader.read(count)
                copy.write(data)
                return data

            header = read_gguf_stream(str(path), read, file.size_bytes)
            copy.truncate(file.size_bytes)  # sparse: takes no disk space for the weights
            return header
    finally:
        reader.close()


class _RemoteReader:
    """Sequential reader of a remote file that requests one byte range after another."""

    def __init__(self, file: RemoteFile, headers: Mapping[str, str], ends: Sequence[int]) -> None:
        self._file = file
        self._headers = headers
        self._ends = [*ends]
        self._at = 0
        self._deadline = time.monotonic() + _TIMEOUT_S
        self._response: http.Response | None = None

    def read(self, count: int) -> bytes:
        """Return at most `count` of the next bytes; b"" at the end of the file. Raises HubError."""
        if time.monotonic() > self._deadline:
            raise http.ConnectionFailedError(
                f"The header of {self._file.path} did not arrive within {_TIMEOUT_S:.0f} s. Try again later."
            )
        data = self._response.read(count) if self._response is not None else b""
        if not data and self._at < self._file.size_bytes:
            self.close()
            end = self._ends.pop(0) if self._ends else self._at + _STEP_BYTES
            self._response = http.get(self._file.url, self._at, min(end, self._file.size_bytes), self._headers)
            if self._response.start != self._at:
                raise http.ConnectionFailedError(f"{self._file.path}: the server does not support range requests")
            data = self._response.read(count)
        self._at += len(data)
        return data

    def close(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None
