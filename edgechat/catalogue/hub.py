"""The hub: which repositories there are, which quants they have, and where their files are. The only user of huggingface_hub.

Nothing is asked but for what a person wanted to search or get; telemetry is off.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from edgechat.catalogue.download import http
from edgechat.catalogue.download.safe_names import safe_path
from edgechat.errors import CatalogueError, HubError
from edgechat.modelfile.split import parse_part_name

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")

API_S: Final = 10.0
"""Longest wait for an answer about a repository or a search."""
_PAUSES_S: Final = (0.5, 1.5)
"""Before a second and a third try, where the hub was in trouble."""
MAX_FILES: Final = 5000
"""Of a repository that are looked at."""
REFERENCE: Final = re.compile(
    r"(?:hf\.co/|https://huggingface\.co/)?(?P<repo>\w[\w.-]*/\w[\w.-]*?)(?::(?P<quant>[^:]+))?/?"
)
"""`owner/repo`, `owner/repo:QUANT`, `owner/repo:FILE`."""
# Names of quants as they stand in file names; the longest that fits counts.
_QUANT: Final = re.compile(
    r"(?:^|[-._/])((?:UD-)?(?:IQ[1-4]_(?:XXS|XS|S|M|NL|NL_XL)|Q[1-8]_(?:[01](?:_\d_\d)?|K(?:_(?:XXS|XS|S|M|L|XL))?)|"
    r"TQ[12]_0|MXFP4(?:_MOE)?|NVFP4|BF16|F16|FP16|F32))(?=$|[-._/])",
    re.IGNORECASE,
)
# What is taken where nobody says which: about 4.5 bits first, then what is larger, then what is smaller.
PREFERENCE: Final = (
    "Q4_K_M", "UD-Q4_K_XL", "Q4_K_S", "IQ4_XS", "Q4_0", "MXFP4_MOE", "MXFP4", "IQ4_NL", "Q4_1", "Q5_K_M", "Q5_K_S", "Q6_K",
    "Q8_0", "UD-Q4_K_M", "Q3_K_M", "Q3_K_L", "Q2_K", "BF16", "F16",
)  # fmt: skip


class RemoteFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file of a repository."""

    path: str
    """Below the repository; checked to be safe below any directory."""
    size_bytes: int
    sha256: str
    """"" if the hub does not know it (small files only)."""
    url: str


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """A model in one quant: a file, or a set of them."""

    quant: str
    files: tuple[RemoteFile, ...]
    is_projector: bool = False

    @property
    def size_bytes(self) -> int:
        """All files."""
        return sum(file.size_bytes for file in self.files)


class Repository(msgspec.Struct, frozen=True, kw_only=True):
    """A repository at one revision."""

    id: str
    revision: str
    is_gated: bool
    licence: str
    variants: tuple[Variant, ...]

    def model_variants(self) -> list[Variant]:
        """Without what only turns pictures or sound into input."""
        return [variant for variant in self.variants if not variant.is_projector]


class SearchResult(msgspec.Struct, frozen=True, kw_only=True):
    """One result of a search."""

    id: str
    downloads: int
    likes: int
    licence: str
    is_gated: bool


def quant_of(name: str) -> str:
    """The quant that a file's name tells, in capitals; "" if none."""
    found = _QUANT.findall(name)
    return str(found[-1]).upper().replace("FP16", "F16") if found else ""


def parse_reference(reference: str) -> tuple[str, str] | None:
    """Repository and quant ("" for any) of `owner/repo[:QUANT]`; None if it is not that."""
    match = REFERENCE.fullmatch(reference)
    return (match["repo"], match["quant"] or "") if match else None


def endpoint() -> str:
    """The hub's address."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


class Hub:
    """What HF_ENDPOINT names, huggingface.co by default. HF_TOKEN, HF_HUB_OFFLINE and proxies are respected."""

    def __init__(self) -> None:
        # Read when the library is imported; what it sends by itself is not ours to send.
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
        os.environ["HF_HUB_DISABLE_XET"] = "1"
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        import huggingface_hub
        from huggingface_hub import constants

        from edgechat import __version__

        self._name, self._version = "edgechat", __version__
        self._api: HfApi = huggingface_hub.HfApi(
            endpoint=endpoint(), library_name=self._name, library_version=self._version
        )
        huggingface_hub.set_client_factory(_make_client)
        self._is_offline = bool(constants.is_offline_mode())
        self.endpoint = str(self._api.endpoint)

    def headers(self) -> dict[str, str]:
        """What goes with a request for a file, the token included; for the hub itself only."""
        from huggingface_hub.utils._headers import build_hf_headers

        found = build_hf_headers(library_name=self._name, library_version=self._version)
        return {str(name): str(value) for name, value in found.items()}

    def search(self, words: str, limit: int = 20) -> list[SearchResult]:
        """Repositories with GGUF files, the most used first. Raises HubError."""
        found = self._ask(
            lambda: list(self._api.list_models(search=words, filter="gguf", sort="downloads", limit=limit)),
            f"{words!r}",
        )
        return [
            SearchResult(
                id=model.id, downloads=model.downloads or 0, likes=model.likes or 0,
                licence=_licence(model), is_gated=bool(model.gated),
            )
            for model in found
        ]  # fmt: skip

    def get_repository(self, repo_id: str, revision: str | None = None) -> Repository:
        """A repository's models, in order of size. Raises HubError."""
        info = self._ask(
            lambda: self._api.model_info(repo_id, revision=revision, files_metadata=True, timeout=API_S), repo_id
        )
        sha = info.sha or revision or "main"
        files = []
        for sibling in (info.siblings or [])[:MAX_FILES]:
            name = sibling.rfilename
            if not name.lower().endswith(".gguf") or not safe_path(name) or not isinstance(sibling.size, int):
                continue
            sha256 = str(sibling.lfs.sha256) if sibling.lfs is not None else ""
            files.append(
                RemoteFile(path=name, size_bytes=sibling.size, sha256=sha256, url=self._url(info.id, sha, name))
            )
        return Repository(
            id=info.id,
            revision=sha,
            is_gated=bool(info.gated),
            licence=_licence(info),
            variants=tuple(_variants(files)),
        )

    def _url(self, repo_id: str, revision: str, path: str) -> str:
        from huggingface_hub import hf_hub_url

        return str(hf_hub_url(repo_id, path, revision=revision, endpoint=self.endpoint))

    def _ask(self, work: Callable[[], T], what: str) -> T:
        """Raises HubError, in words."""
        if self._is_offline:
            raise HubError(
                f"HF_HUB_OFFLINE is set, so the hub was not asked about {what}; what is here already can be used"
            )
        http.check_reachable(self.endpoint)
        for pause_s in (*_PAUSES_S, None):
            try:
                return self._ask_once(work, what)
            except http.HttpStatusError as error:  # noqa: PERF203  (waits follow)
                if pause_s is None or not error.is_transient or (error.retry_after_s or 0.0) > pause_s:
                    raise _explained(what, error) from None
                time.sleep(pause_s)
        raise HubError(f"the hub gave no answer about {what}")

    def _ask_once(self, work: Callable[[], T], what: str) -> T:
        import httpx2
        from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

        try:
            return http.run_with_timeout(API_S + http.CONNECT_S, work, self.endpoint)
        except GatedRepoError:
            raise HubError(
                f"{what} is gated: accept its conditions at {self.endpoint}/{what}, and set HF_TOKEN to a token of yours"
            ) from None
        except RepositoryNotFoundError:
            raise HubError(
                f"{what} is not on {self.endpoint}, or it is private: check the name, or set HF_TOKEN if it is yours"
            ) from None
        except HfHubHTTPError as error:
            raise http.HttpStatusError(str(error), error.response.status_code) from None
        except HFValidationError as error:
            raise CatalogueError(f"{what!r} is no name of a repository: {error}") from None
        except (httpx2.HTTPError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise HubError(
                f"{self.endpoint} gave no usable answer about {what}: {error or type(error).__name__}"
            ) from None


def _stop_at_trouble(response: Any) -> None:
    """The library would ask again by itself, for half a minute and aloud."""
    refused = http.HttpStatusError("", response.status_code, http.retry_after_s(response.headers))
    if refused.is_transient:
        raise refused


def _make_client() -> Any:
    import httpx2
    from huggingface_hub.utils._http import hf_request_event_hook

    return httpx2.Client(
        event_hooks={"request": [hf_request_event_hook], "response": [_stop_at_trouble]}, follow_redirects=True,
        timeout=httpx2.Timeout(API_S, connect=http.CONNECT_S),
    )  # fmt: skip


def explain(error: http.HttpStatusError, repo_id: str) -> HubError:
    """What the refusal of a file means, in words."""
    if error.code == "GatedRepo" or error.status == 403:  # noqa: PLR2004
        return HubError(
            f"{repo_id} is gated: accept its conditions at {endpoint()}/{repo_id}, and set HF_TOKEN to a token of yours"
        )
    if error.status == 401:  # noqa: PLR2004
        return HubError(
            f"{repo_id} wants a token that is valid for it: set HF_TOKEN (is the one that is set still valid?)"
        )
    if error.status == 404:  # noqa: PLR2004
        return HubError(f"{repo_id} no longer has this file: list what it has with `edgechat models info {repo_id}`")
    return error


def _explained(what: str, error: http.HttpStatusError) -> HubError:
    if error.status == 429:  # noqa: PLR2004
        when = f" in {error.retry_after_s:.0f} s" if error.retry_after_s else " later"
        return HubError(
            f"the hub was asked too often; ask about {what} again{when}, or set HF_TOKEN for a higher limit"
        )
    if error.status >= 500:  # noqa: PLR2004
        return HubError(f"the hub is in trouble (status {error.status}); ask about {what} again later")
    if error.status == 401:  # noqa: PLR2004
        return HubError(f"the hub does not accept the token in HF_TOKEN (asked about {what}); is it still valid?")
    return HubError(f"the hub refused to tell about {what} (status {error.status})")


def _licence(info: Any) -> str:
    tags = info.tags if isinstance(info.tags, list) else []
    return next((str(tag)[8:] for tag in tags if str(tag).startswith("license:")), "")


def _variants(files: list[RemoteFile]) -> list[Variant]:
    """Files put together to sets, each with its quant; sets that lack a part are left out."""
    sets: dict[tuple[str, int], dict[int, RemoteFile]] = {}
    variants = []
    for file in files:
        part = parse_part_name(file.path)
        if part is None:
            variants.append(_variant((file,)))
        else:
            sets.setdefault((part.stem, part.n_parts), {})[part.number] = file
    for (_, count), parts in sets.items():
        if len(parts) == count:
            variants.append(_variant(tuple(parts[number] for number in sorted(parts))))
    return sorted(variants, key=lambda variant: variant.size_bytes)


def _variant(files: tuple[RemoteFile, ...]) -> Variant:
    name = files[0].path
    is_projector = "mmproj" in name.rsplit("/", 1)[-1].lower()
    return Variant(quant=quant_of(name), files=files, is_projector=is_projector)


def choose_variant(repo: Repository, quant: str = "") -> Variant:
    """The model of this quant, or the one of middling size. Raises CatalogueError with what there is."""
    models = repo.model_variants()
    if not models:
        raise CatalogueError(
            f"{repo.id} has no GGUF model that can be read here (a repository that has is often called ...-GGUF)"
        )
    for wish in [quant.upper()] if quant else PREFERENCE:
        fitting = [model for model in models if model.quant == wish]
        if len(fitting) == 1 or (fitting and not quant):
            return fitting[0]
        if fitting:
            names = ", ".join(model.files[0].path for model in fitting)
            raise CatalogueError(
                f"{repo.id} has several models of {wish}: {names}; name the file, as in {repo.id}:FILE"
            )
    for model in models:
        if quant and quant.lower() in {model.files[0].path.lower(), model.files[0].path.rsplit("/", 1)[-1].lower()}:
            return model
    if quant:
        known = ", ".join(dict.fromkeys(model.quant or model.files[0].path for model in models))
        raise CatalogueError(f"{repo.id} has no {quant}; it has {known}")
    return models[len(models) // 2]
