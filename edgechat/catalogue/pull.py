"""From a name to a model on this machine: by catalogue id, `owner/repo[:QUANT]`, or a plain address."""

from __future__ import annotations

import re
import threading
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from edgechat import paths
from edgechat.catalogue import curated, hub, library, resolve
from edgechat.catalogue.download import http
from edgechat.catalogue.download.file_download import download_file
from edgechat.catalogue.download.request import DownloadProgress, DownloadRequest, RetryPolicy, check_disk_space
from edgechat.catalogue.download.safe_names import safe_path
from edgechat.catalogue.hub import Hub, Repository, Variant
from edgechat.errors import CatalogueError, HubError
from edgechat.modelfile.split import read_header

# The address of a file on the hub, as a browser shows it.
_OF_HUB: Final = re.compile(
    r"https?://[^/]+/(?P<repo>[\w.-]+/[\w.-]+)/(?:resolve|blob)/(?P<revision>[^/]+)/(?P<file>[^?#]+\.gguf)(?:[?#].*)?",
    re.IGNORECASE,
)


class PullTarget(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be got, and where it goes."""

    reference: str
    """As it can be asked for again: `owner/repo:QUANT`, or the address."""
    quant: str
    files: tuple[DownloadRequest, ...]
    repo: str = ""

    @property
    def size_bytes(self) -> int | None:
        """All files; None if the server does not say before it sends."""
        sizes = [file.size_bytes for file in self.files]
        return None if None in sizes else sum(size for size in sizes if size is not None)


def find_target(reference: str, make_hub: Callable[[], Hub] = Hub) -> PullTarget:
    """What a person means. Asks the hub. Raises CatalogueError and HubError."""
    revision = ""
    if reference.startswith(("http://", "https://")) and hub.parse_reference(reference) is None:
        of_hub = _OF_HUB.fullmatch(reference)
        if of_hub is None or not reference.startswith((f"{hub.endpoint()}/", "https://huggingface.co/")):
            return _address(reference)
        revision = urllib.parse.unquote(of_hub["revision"])
        reference = f"{of_hub['repo']}:{urllib.parse.unquote(of_hub['file'])}"
    name, _, quant = reference.partition(":")
    model = curated.load().get(name.lower())
    if model is not None and "/" not in reference:
        return _curated(model, quant, make_hub)
    parsed = hub.parse_reference(reference)
    if parsed is None:
        raise CatalogueError(resolve.unknown_reference_message(reference))
    server = make_hub()
    repo = server.get_repository(parsed[0], None if revision in {"", "main"} else revision)
    return _from_repo(repo, hub.choose_variant(repo, parsed[1]), server)


def _curated(model: curated.CatalogueModel, quant: str, make_hub: Callable[[], Hub]) -> PullTarget:
    """From the first of its sources that has the quant."""
    problem: Exception | None = None
    server: Hub | None = None
    for source in model.source:
        try:
            if source.url:
                if not quant or hub.quant_of(source.url).lower() == quant.lower():
                    return _address(source.url)
                continue
            if source.repo is None:
                continue
            server = server or make_hub()
            repo = server.get_repository(source.repo)
            return _from_repo(repo, hub.choose_variant(repo, quant), server)
        except (CatalogueError, HubError) as error:
            problem = problem or error
            if isinstance(error, http.ConnectionFailedError):
                break
    if problem is not None:
        raise problem
    where = ", ".join(source.package or source.repo or source.url or "" for source in model.source)
    raise CatalogueError(f"{model.id} is not to be had as {quant or 'a file'}; its sources are {where}")


def _from_repo(repo: Repository, variant: Variant, server: Hub) -> PullTarget:
    folder, headers = paths.models_dir().joinpath(*repo.id.split("/")), server.headers()
    if not safe_path(repo.id):
        raise HubError(f"the hub calls the repository {repo.id!r}, which cannot be the name of a folder")
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


def _kept_bytes(files: tuple[DownloadRequest, ...]) -> int:
    """What is there of files that are not whole; as they say, which is checked when they are gone on with."""
    parts = [wanted.path.with_name(f"{wanted.path.name}.part") for wanted in files if not wanted.path.exists()]
    return sum(part.stat().st_size for part in parts if part.is_file())


def _address(url: str) -> PullTarget:
    """Below the host's name and the address's own folders: files of one name from two places are two models."""
    parts = http.split_url(url)
    path = urllib.parse.unquote(parts.path).lstrip("/")
    host = (parts.hostname or "") + (f"_{parts.port}" if parts.port else "")
    if not path.lower().endswith(".gguf") or not safe_path(f"{host}/{path}"):
        raise CatalogueError(
            f"{http.redact_url(url)} does not end in the name of a .gguf file, or in one that cannot be a file's"
        )
    wanted = DownloadRequest(url=url, path=paths.models_dir().joinpath(host, *path.split("/")))
    return PullTarget(reference=http.redact_url(url), quant=hub.quant_of(path), files=(wanted,))


def download_model(
    target: PullTarget,
    on_progress: Callable[[int, DownloadProgress], None] = lambda number, progress: None,
    cancel: threading.Event | None = None,
    retry_policy: RetryPolicy = RetryPolicy(),  # noqa: B008  (frozen)
) -> Path:
    """Get all files; returns the first. `tell` hears which of them it is, and how far.

    Raises DownloadError, HubError, and ModelFileError if what came is no model that can be read.
    """
    missing = [wanted.size_bytes or 0 for wanted in target.files if not wanted.path.exists()]
    check_disk_space(target.files[0].path, sum(missing) - _kept_bytes(target.files))
    for number, wanted in enumerate(target.files):

        def hear(progress: DownloadProgress, number: int = number) -> None:
            on_progress(number, progress)

        try:
            download_file(wanted, hear, cancel, retry_policy)
        except http.HttpStatusError as error:
            raise hub.explain(error, target.repo or target.reference) from None
    first = target.files[0].path
    read_header(first)
    for wanted in target.files:
        if wanted.sha256:
            library.record_hash(wanted.path, wanted.sha256, wanted.sha256)
    return first
