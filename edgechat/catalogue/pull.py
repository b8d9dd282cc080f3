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
from edgechat.catalogue.download.network_settings import NetworkSetupError
from edgechat.catalogue.download.request import DownloadProgress, DownloadRequest, RetryPolicy, check_disk_space
from edgechat.catalogue.download.safe_names import is_safe_path
from edgechat.catalogue.hub import Hub, Repository, Variant
from edgechat.catalogue.hub_errors import make_hub_error
from edgechat.catalogue.registry import VerifiedHash
from edgechat.errors import CatalogueError, HubError
from edgechat.modelfile.file_kinds import parse_file_part
from edgechat.modelfile.split import read_header

# Pattern of the URL of a file on the hub: its web page (blob) or its download link (resolve).
_HUB_FILE_URL: Final = re.compile(
    r"https?://[^/]+/(?P<repo>[\w.-]+/[\w.-]+)/(?:resolve|blob)/(?P<revision>[^/]+)/(?P<file>[^?#]+\.gguf)(?:[?#].*)?",
    re.IGNORECASE,
)


class PullTarget(msgspec.Struct, frozen=True, kw_only=True):
    """Files to download for one model, with their local paths."""

    reference: str
    """Model reference in normal form: `owner/repo:QUANT`, `owner/repo:FILE` or the URL."""
    quant: str
    files: tuple[DownloadRequest, ...]
    repo: str = ""
    """Hub repository; "" for a URL that is not on the hub."""

    @property
    def size_bytes(self) -> int | None:
        """Total size of the files in bytes; None if the size of any file is unknown."""
        sizes = [file.size_bytes for file in self.files]
        return None if None in sizes else sum(size for size in sizes if size is not None)


def find_target(reference: str, make_hub: Callable[[], Hub] = Hub) -> PullTarget:
    """Return the files to download for a model reference, from the hub or a URL.

    Raises CatalogueError, HubError, and UsageError if `reference` is empty.
    """
    resolve.check_name(reference)
    revision = ""
    if reference.startswith(("http://", "https://")) and hub.parse_reference(reference) is None:
        hub_file = _HUB_FILE_URL.fullmatch(reference)
        if hub_file is None or not reference.startswith((f"{hub.endpoint()}/", "https://huggingface.co/")):
            return _make_url_target(reference)
        revision = urllib.parse.unquote(hub_file["revision"])
        reference = f"{hub_file['repo']}:{urllib.parse.unquote(hub_file['file'])}"
    name, _, quant = reference.partition(":")
    model = curated.load_catalogue().get(name.lower())
    if model is not None and "/" not in reference:
        return _find_curated_target(model, quant, make_hub)
    repo_and_quant = hub.parse_reference(reference)
    if repo_and_quant is None:
        raise CatalogueError(resolve.make_unknown_reference_message(reference))
    client = make_hub()
    repo = client.get_repository(repo_and_quant[0], None if revision in {"", "main"} else revision)
    return _make_repository_target(repo, hub.choose_variant(repo, repo_and_quant[1]), client)


def _find_curated_target(model: curated.CatalogueModel, quant: str, make_hub: Callable[[], Hub]) -> PullTarget:
    """Return the download target in the first source that has the quant. If no source has it, raise the first error."""
    first_error: Exception | None = None
    client: Hub | None = None
    for source in model.sources:
        try:
            if source.url:
                if not quant or hub.parse_quant(source.url).lower() == quant.lower():
                    return _make_url_target(source.url)
                continue
            if source.repo is None:
                continue
            client = client or make_hub()
            repo = client.get_repository(source.repo)
            return _make_repository_target(repo, hub.choose_variant(repo, quant), client)
        except (CatalogueError, HubError) as error:
            first_error = first_error or error
            if isinstance(error, (http.ConnectionFailedError, NetworkSetupError)):
                break
    if first_error is not None:
        raise first_error
    sources = ", ".join(source.package or source.repo or source.url or "" for source in model.sources)
    raise CatalogueError(f"No source of {model.id} offers {quant or 'a file to download'}. Sources: {sources}.")


def _make_repository_target(repo: Repository, variant: Variant, client: Hub) -> PullTarget:
    folder, headers = paths.models_dir().joinpath(*repo.id.split("/")), client.headers()
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


def _make_url_target(url: str) -> PullTarget:
    """Return the download target of a URL. The local path includes host and folders, so that names cannot collide."""
    parts = http.split_url(url)
    path = urllib.parse.unquote(parts.path).lstrip("/")
    host = (parts.hostname or "") + (f"_{parts.port}" if parts.port else "")
    file_part = parse_file_part(path.rsplit("/", 1)[-1])
    if file_part is not None and not path.lower().endswith(".gguf"):
        raise CatalogueError(
            f"{http.redact_url(url)} is only a part of {file_part.whole_name}, which was cut into several files. "
            "Download all parts, join them with `cat`, and add the joined file with `edgechat models add`."
        )
    if not path.lower().endswith(".gguf") or not is_safe_path(f"{host}/{path}"):
        raise CatalogueError(f"{http.redact_url(url)} does not end in a valid .gguf file name")
    request = DownloadRequest(url=url, path=paths.models_dir().joinpath(host, *path.split("/")))
    return PullTarget(reference=http.redact_url(url), quant=hub.parse_quant(path), files=(request,))


def download_model(
    target: PullTarget,
    on_progress: Callable[[int, DownloadProgress], None] = lambda index, progress: None,
    cancel: threading.Event | None = None,
    retry_policy: RetryPolicy = RetryPolicy(),  # noqa: B008  (frozen)
) -> Path:
    """Download all files of a model, and return the path of the first file.

    `on_progress` receives the index of the current file and its progress. Raises DownloadError and HubError, and
    ModelFileError if the downloaded files are not a valid model.
    """
    missing_requests = [request for request in target.files if not request.path.exists()]
    missing_bytes = sum(request.size_bytes or 0 for request in missing_requests) - _part_file_bytes(missing_requests)
    check_disk_space(target.files[0].path, missing_bytes)
    for index, request in enumerate(target.files):

        def report_progress(progress: DownloadProgress, index: int = index) -> None:
            on_progress(index, progress)

        try:
            download_file(request, report_progress, cancel, retry_policy)
        except http.HttpStatusError as error:
            if not target.repo:
                raise
            raise make_hub_error(error, target.repo, hub.endpoint()) from None
    first = target.files[0].path
    read_header(first)
    hashes = {
        request.path: VerifiedHash(sha256=request.sha256, expected_sha256=request.sha256)
        for request in target.files
        if request.sha256
    }
    if hashes:
        registry.save_verified_hashes(hashes)
    return first


def _part_file_bytes(requests: list[DownloadRequest]) -> int:
    """Return the total size of the `.part` files of `requests`, without checking their content."""
    parts = [request.path.with_name(f"{request.path.name}.part") for request in requests]
    return sum(part.stat().st_size for part in parts if part.is_file())
