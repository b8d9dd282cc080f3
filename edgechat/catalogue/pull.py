"""Download of a model by catalogue id, `owner/repo[:QUANT]` or URL."""

from __future__ import annotations

import re
import threading
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from edgechat import paths
from edgechat.catalogue import curated, hub, registry, resolve
from edgechat.catalogue.download import http
from edgechat.catalogue.download.file_download import download_file
from edgechat.catalogue.download.request import DownloadProgress, DownloadRequest, RetryPolicy, check_disk_space
from edgechat.catalogue.download.safe_names import is_safe_path
from edgechat.catalogue.hub import Hub, Repository, Variant
from edgechat.catalogue.hub_errors import hub_error
from edgechat.catalogue.registry import VerifiedHash
from edgechat.errors import CatalogueError, HubError
from edgechat.modelfile.split import read_header

# Pattern of a hub file URL, in the form that a browser shows.
_HUB_FILE_URL: Final = re.compile(
    r"https?://[^/]+/(?P<repo>[\w.-]+/[\w.-]+)/(?:resolve|blob)/(?P<revision>[^/]+)/(?P<file>[^?#]+\.gguf)(?:[?#].*)?",
    re.IGNORECASE,
)


class PullTarget(msgspec.Struct, frozen=True, kw_only=True):
    """The files of one model to download, and their local paths."""

    reference: str
    """Normalised reference: `owner/repo:QUANT` or the URL."""
    quant: str
    files: tuple[DownloadRequest, ...]
    repo: str = ""
    """Hub repository; "" for a plain URL."""

    @property
    def size_bytes(self) -> int | None:
        """Total size of the files in bytes; None if unknown before the download."""
        sizes = [file.size_bytes for file in self.files]
        return None if None in sizes else sum(size for size in sizes if size is not None)


def find_target(reference: str, make_hub: Callable[[], Hub] = Hub) -> PullTarget:
    """Find the files to download for a model reference, by asking the hub. Raises CatalogueError and HubError."""
    revision = ""
    if reference.startswith(("http://", "https://")) and hub.parse_reference(reference) is None:
        hub_file = _HUB_FILE_URL.fullmatch(reference)
        if hub_file is None or not reference.startswith((f"{hub.endpoint()}/", "https://huggingface.co/")):
            return _url_target(reference)
        revision = urllib.parse.unquote(hub_file["revision"])
        reference = f"{hub_file['repo']}:{urllib.parse.unquote(hub_file['file'])}"
    name, _, quant = reference.partition(":")
    model = curated.load().get(name.lower())
    if model is not None and "/" not in reference:
        return _curated_target(model, quant, make_hub)
    parsed = hub.parse_reference(reference)
    if parsed is None:
        raise CatalogueError(resolve.unknown_reference_message(reference))
    client = make_hub()
    repo = client.get_repository(parsed[0], None if revision in {"", "main"} else revision)
    return _repository_target(repo, hub.choose_variant(repo, parsed[1]), client)


def _curated_target(model: curated.CatalogueModel, quant: str, make_hub: Callable[[], Hub]) -> PullTarget:
    """Return the download target from the first source that has the quant, or raise the error of the first source."""
    first_error: Exception | None = None
    client: Hub | None = None
    for source in model.source:
        try:
            if source.url:
                if not quant or hub.quant_of(source.url).lower() == quant.lower():
                    return _url_target(source.url)
                continue
            if source.repo is None:
                continue
            client = client or make_hub()
            repo = client.get_repository(source.repo)
            return _repository_target(repo, hub.choose_variant(repo, quant), client)
        except (CatalogueError, HubError) as error:
            first_error = first_error or error
            if isinstance(error, http.ConnectionFailedError):
                break
    if first_error is not None:
        raise first_error
    sources = ", ".join(source.package or source.repo or source.url or "" for source in model.source)
    raise CatalogueError(f"{model.id} cannot be downloaded as {quant or 'a file'}. Its sources are {sources}.")


def _repository_target(repo: Repository, variant: Variant, client: Hub) -> PullTarget:
    folder, headers = paths.models_dir().joinpath(*repo.id.split("/")), client.headers()
    if not is_safe_path(repo.id):
        raise HubError(f"The hub returned the repository name {repo.id!r}, which is not a safe folder name.")
    files = tuple(
        DownloadRequest(
            url=file.url, path=folder.joinpath(*file.path.split("/")), size_bytes=file.size_bytes, sha256=file.sha256,
            headers=headers,
        )
        for file in variant.files
    )  # fmt: skip
    return PullTarget(
        reference=f"{repo.id}:{variant.quant or variant.files[0].path}", quant=variant.quant, files=files, repo=repo.id
    )


def _url_target(url: str) -> PullTarget:
    """Return the download target of a plain URL. Its local path includes host and folders, to avoid name collisions."""
    parts = http.split_url(url)
    path = urllib.parse.unquote(parts.path).lstrip("/")
    host = (parts.hostname or "") + (f"_{parts.port}" if parts.port else "")
    if not path.lower().endswith(".gguf") or not is_safe_path(f"{host}/{path}"):
        raise CatalogueError(f"{http.redact_url(url)} does not end in a valid .gguf file name")
    request = DownloadRequest(url=url, path=paths.models_dir().joinpath(host, *path.split("/")))
    return PullTarget(reference=http.redact_url(url), quant=hub.quant_of(path), files=(request,))


def download_model(
    target: PullTarget,
    on_progress: Callable[[int, DownloadProgress], None] = lambda index, progress: None,
    cancel: threading.Event | None = None,
    retry_policy: RetryPolicy = RetryPolicy(),  # noqa: B008  (frozen)
) -> Path:
    """Download all files of a model, and return the path of the first file.

    `on_progress` receives the index of the file and its progress. Raises DownloadError and HubError, and ModelFileError
    if the result is not a readable model.
    """
    missing = [request for request in target.files if not request.path.exists()]
    missing_bytes = sum(request.size_bytes or 0 for request in missing) - _partial_bytes(missing)
    check_disk_space(target.files[0].path, missing_bytes)
    for index, request in enumerate(target.files):

        def report(progress: DownloadProgress, index: int = index) -> None:
            on_progress(index, progress)

        try:
            download_file(request, report, cancel, retry_policy)
        except http.HttpStatusError as error:
            if not target.repo:
                raise
            raise hub_error(error, target.repo, hub.endpoint()) from None
    first = target.files[0].path
    read_header(first)
    hashes = {
        request.path: VerifiedHash(sha256=request.sha256, expected=request.sha256)
        for request in target.files
        if request.sha256
    }
    if hashes:
        registry.record_verified(hashes)
    return first


def _partial_bytes(requests: list[DownloadRequest]) -> int:
    """Return the disk space of the partial files of `requests`. Their content is checked only when they are resumed."""
    parts = [request.path.with_name(f"{request.path.name}.part") for request in requests]
    return sum(part.stat().st_size for part in parts if part.is_file())
