"""Model headers of files on a server, read by downloading only the beginning of each file."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from edgechat.catalogue import hub
from edgechat.catalogue.download import http
from edgechat.catalogue.hub import RemoteFile, Repository
from edgechat.catalogue.hub_errors import make_hub_error
from edgechat.modelfile.gguf import read_gguf_stream
from edgechat.modelfile.header import ModelHeader
from edgechat.modelfile.split import join_headers

# End offsets of successive range requests. Most headers need one request, and headers with the largest vocabularies
# (about 14 MB) need three. Later parts of a split model have no vocabulary. Requests without an end offset would waste
# several megabytes, because a closed connection still transfers the data that both ends have buffered.
_FIRST_FILE_RANGE_ENDS: Final = (2 << 20, 8 << 20, 16 << 20)
_LATER_FILE_RANGE_ENDS: Final = (64 << 10, 1 << 20, 16 << 20)
_STEP_BYTES: Final = 16 << 20
# Time limit for a whole header: enough for 14 MB at 240 kB/s.
_TIMEOUT_S: Final = 60.0


def find_remote_model(reference: str, copy_dir: Path | None = None) -> tuple[Repository, ModelHeader] | None:
    """Fetch the repository and the model header of `owner/repo[:QUANT]`. Returns None for any other reference.

    If `copy_dir` is given, sparse copies of the files are written to this directory. The copies have the header and the
    size of the originals, so that llama.cpp can compute memory sizes from them. Raises CatalogueError, ModelFileError
    and HubError.
    """
    repo_and_quant = hub.parse_reference(reference)
    if repo_and_quant is None:
        return None
    client = hub.Hub()
    repo = client.get_repository(repo_and_quant[0])
    try:
        return repo, read_remote_header(hub.choose_variant(repo, repo_and_quant[1]).files, client.headers(), copy_dir)
    except http.HttpStatusError as error:
        raise make_hub_error(error, repo.id, client.endpoint) from None


def read_remote_header(
    files: Sequence[RemoteFile], headers: Mapping[str, str], copy_dir: Path | None = None
) -> ModelHeader:
    """Download and check the header of a model, including all parts of a split model.

    `copy_dir` has the same meaning as in `find_remote_model`. Raises ModelFileError, HubError and OSError.
    """
    return join_headers([
        _read_file_header(file, headers, _LATER_FILE_RANGE_ENDS if index else _FIRST_FILE_RANGE_ENDS, copy_dir)
        for index, file in enumerate(files)
    ])  # fmt: skip


def _read_file_header(
    file: RemoteFile, headers: Mapping[str, str], range_ends: Sequence[int], copy_dir: Path | None
) -> ModelHeader:
    reader = _RemoteReader(file, headers, range_ends)
    try:
        if copy_dir is None:
            return read_gguf_stream(file.path, reader.read, file.size_bytes)
        path = copy_dir / PurePosixPath(file.path).name
        with path.open("wb") as copy_file:

            def read(count: int) -> bytes:
                data = reader.read(count)
                copy_file.write(data)
                return data

            header = read_gguf_stream(str(path), read, file.size_bytes)
            copy_file.truncate(file.size_bytes)  # makes the file sparse: the weights use no disk space
            return header
    finally:
        reader.close()


class _RemoteReader:
    """Sequential reader of a remote file that requests one byte range after another."""

    def __init__(self, file: RemoteFile, headers: Mapping[str, str], range_ends: Sequence[int]) -> None:
        self._file = file
        self._headers = headers
        self._range_ends = [*range_ends]
        self._position = 0
        self._deadline = time.monotonic() + _TIMEOUT_S
        self._response: http.Response | None = None

    def read(self, count: int) -> bytes:
        """Return the next bytes, at most `count`; b"" at the end of the file. Raises HubError."""
        if time.monotonic() > self._deadline:
            raise http.ConnectionFailedError(
                f"The header of {self._file.path} did not arrive within {_TIMEOUT_S:.0f} s. Try again later."
            )
        data = self._response.read(count) if self._response is not None else b""
        if not data and self._position < self._file.size_bytes:
            self.close()
            end = self._range_ends.pop(0) if self._range_ends else self._position + _STEP_BYTES
            self._response = http.get(self._file.url, self._position, min(end, self._file.size_bytes), self._headers)
            if self._response.start != self._position:
                raise http.ConnectionFailedError(
                    f"Cannot read the header of {self._file.path}: the server does not support range requests"
                )
            data = self._response.read(count)
        self._position += len(data)
        return data

    def close(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None
