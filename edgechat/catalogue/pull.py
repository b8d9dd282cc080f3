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
from edgechat.catalogue import curated, hub, library, records, web
from edgechat.catalogue.download import download
from edgechat.catalogue.fetch import Patience, Progress, Wanted
from edgechat.catalogue.hub import Hub, Repo, Variant
from edgechat.catalogue.safety import safe_path
from edgechat.errors import CatalogueError, HubError
from edgechat.modelfile.split import read_header

# The address of a file on the hub, as a browser shows it.
_OF_HUB: Final = re.compile(
    r"https?://[^/]+/(?P<repo>[\w.-]+/[\w.-]+)/(?:resolve|blob)/[^/]+/(?:[^?#]*/)?(?P<file>[^/?#]+\.gguf)(?:[?#].*)?",
    re.IGNORECASE,
)


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be got, and where it goes."""

    reference: str
    """As it can be asked for again: `owner/repo:QUANT`, or the address."""
    quant: str
    files: tuple[Wanted, ...]
    repo: str = ""

    @property
    def size_bytes(self) -> int | None:
        """All files; None if the server does not say before it sends."""
        sizes = [file.size_bytes for file in self.files]
        return None if None in sizes else sum(size for size in sizes if size is not None)


def find(reference: str, make_hub: Callable[[], Hub] = Hub) -> Target:
    """What a person means. Asks the hub. Raises CatalogueError and HubError."""
    if reference.startswith(("http://", "https://")) and hub.parse(reference) is None:
        of_hub = _OF_HUB.fullmatch(reference)
        if of_hub is None or not reference.startswith((f"{hub.endpoint()}/", "https://huggingface.co/")):
            return _address(reference)
        reference = f"{of_hub['repo']}:{urllib.parse.unquote(of_hub['file'])}"
    name, _, quant = reference.partition(":")
    model = curated.load().get(name.lower())
    if model is not None and "/" not in reference:
        return _curated(model, quant, make_hub())
    parsed = hub.parse(reference)
    if parsed is None:
        raise CatalogueError(library.unknown_reference(reference))
    server = make_hub()
    repo = server.repo(parsed[0])
    return _from_repo(repo, hub.choose(repo, parsed[1]), server)


def _curated(model: curated.Model, quant: str, server: Hub) -> Target:
    """From the first of its sources that has the quant."""
    problem: Exception | None = None
    for repo_id in model.repos:
        try:
            repo = server.repo(repo_id)
            return _from_repo(repo, hub.choose(repo, quant), server)
        except (CatalogueError, HubError) as error:  # noqa: PERF203  (the next source is tried)
            problem = problem or error
            if isinstance(error, web.Unreachable):
                break
    if problem is not None:
        raise problem
    raise CatalogueError(
        f"{model.id} comes in a package ({', '.join(s.package or s.url or '' for s in model.source)}), not from the hub"
    )


def _from_repo(repo: Repo, variant: Variant, server: Hub) -> Target:
    folder, headers = paths.models_dir().joinpath(*repo.id.split("/")), server.headers()
    if not safe_path(repo.id):
        raise HubError(f"the hub calls the repository {repo.id!r}, which cannot be the name of a folder")
    files = tuple(
        Wanted(
            url=file.url, path=folder.joinpath(*file.path.split("/")), size_bytes=file.size_bytes, sha256=file.sha256,
            headers=headers,
        )
        for file in variant.files
    )  # fmt: skip
    return Target(
        reference=f"{repo.id}:{variant.quant or variant.files[0].path}", quant=variant.quant, files=files, repo=repo.id
    )


def _address(url: str) -> Target:
    name = urllib.parse.unquote(web.split(url).path).rsplit("/", 1)[-1]
    if not name.lower().endswith(".gguf") or not safe_path(name):
        raise CatalogueError(f"{web.shown(url)} does not end in the name of a .gguf file")
    wanted = Wanted(url=url, path=paths.models_dir() / name)
    return Target(reference=web.shown(url), quant=hub.quant_of(name), files=(wanted,))


def get(
    target: Target,
    tell: Callable[[int, Progress], None] = lambda number, progress: None,
    cancel: threading.Event | None = None,
    patience: Patience = Patience(),  # noqa: B008  (frozen)
) -> Path:
    """Get all files; returns the first. `tell` hears which of them it is, and how far.

    Raises DownloadError, HubError, and ModelFileError if what came is no model that can be read.
    """
    for number, wanted in enumerate(target.files):

        def hear(progress: Progress, number: int = number) -> None:
            tell(number, progress)

        try:
            download(wanted, hear, cancel, patience)
        except web.Refused as error:
            raise hub.explain(error, target.repo or target.reference) from None
    first = target.files[0].path
    read_header(first)
    with records.changed_records() as changed:
        changed.origins[str(first)] = target.reference
    for wanted in target.files:
        if wanted.sha256:
            library.remember_hash(wanted.path, wanted.sha256, wanted.sha256)
    return first
