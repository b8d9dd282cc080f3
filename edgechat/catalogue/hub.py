"""Client of the Hugging Face hub: search for models, and list the quants and files of a repository.

Only this module and `hub_client` import huggingface_hub, and they use no private API of that library. Requests are sent
only for a search or a download that the user started, and telemetry is off.
"""

from __future__ import annotations

import functools
import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, TypeGuard, TypeVar

import msgspec

from edgechat.catalogue import hub_client
from edgechat.catalogue.download import http
from edgechat.catalogue.download.network_settings import translate_setup_errors
from edgechat.catalogue.download.safe_names import is_safe_path
from edgechat.catalogue.hub_errors import make_hub_error
from edgechat.errors import CatalogueError, EdgechatError, HubError
from edgechat.humanize import format_count
from edgechat.modelfile.file_kinds import format_join_command, group_file_parts
from edgechat.modelfile.split import parse_part_name

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")

API_TIMEOUT_S: Final = 10.0
"""Timeout of a hub API request, such as a search or a request for the file list of a repository."""
_RETRY_PAUSES_S: Final = (0.5, 1.5)
"""Pauses in seconds before the second and the third attempt of a request, after server errors."""
MAX_FILES: Final = 5000
"""Maximum number of files read from the file list of a repository; further files are ignored."""
# Larger sizes are invalid: no file system has files of 4 EiB.
_MAX_FILE_BYTES: Final = 1 << 62
_MAX_LICENCE_CHARS: Final = 60
_SHA256_PATTERN: Final = re.compile(r"[0-9a-f]{64}")
REFERENCE_PATTERN: Final = re.compile(
    r"(?:hf\.co/|https://huggingface\.co/)?(?P<repo>\w[\w.-]*/\w[\w.-]*?)(?::(?P<quant>[^:]+))?/?"
)
"""Model reference: `owner/repo`, `owner/repo:QUANT` or `owner/repo:FILE`, also as a URL."""
# Pattern of a quant name in a file name. The alternatives are ordered so that the longest name matches.
_QUANT_PATTERN: Final = re.compile(
    r"(?:^|[-._/])((?:UD-)?(?:IQ[1-4]_(?:XXS|XS|S|M|NL|NL_XL)|Q[1-8]_(?:[01](?:_\d_\d)?|K(?:_(?:XXS|XS|S|M|L|XL))?)|"
    r"TQ[12]_0|MXFP4(?:_MOE)?|NVFP4|BF16|F16|FP16|F32))(?=$|[-._/])",
    re.IGNORECASE,
)
PREFERRED_QUANTS: Final = (
    "Q4_K_M", "UD-Q4_K_XL", "Q4_K_S", "IQ4_XS", "Q4_0", "MXFP4_MOE", "MXFP4", "IQ4_NL", "Q4_1", "Q5_K_M", "Q5_K_S",
    "Q6_K", "Q8_0", "UD-Q4_K_M", "Q3_K_M", "Q3_K_L", "Q2_K", "BF16", "F16",
)  # fmt: skip
"""Quants in order of preference as the default quant; those with about 4.5 bits per weight come first."""


class RemoteFile(msgspec.Struct, frozen=True, kw_only=True):
    """A model file in a hub repository."""

    path: str
    """Path of the file in the repository, already checked with `is_safe_path`."""
    size_bytes: int
    sha256: str
    """Published SHA-256; "" for small files, for which the hub publishes no SHA-256."""
    url: str


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """One quant of a model: a single file, or all parts of a split model."""

    quant: str
    files: tuple[RemoteFile, ...]
    is_projector: bool = False

    @property
    def size_bytes(self) -> int:
        """Total size of the files in bytes."""
        return sum(file.size_bytes for file in self.files)


class UnusableVariant(msgspec.Struct, frozen=True, kw_only=True):
    """Model that edgechat cannot download from its repository."""

    quant: str
    name: str
    """Path that the model's file would have in the repository if it were not divided into parts."""
    reason: str
    """Sentence with the reason and the next step, without a final period."""


class Repository(msgspec.Struct, frozen=True, kw_only=True):
    """A hub repository at one revision."""

    id: str
    revision: str
    is_gated: bool
    licence: str
    variants: tuple[Variant, ...]
    unusable: tuple[UnusableVariant, ...] = ()

    def model_variants(self) -> list[Variant]:
        """Return the variants that are models, not projectors (image or sound encoders)."""
        return [variant for variant in self.variants if not variant.is_projector]


class SearchResult(msgspec.Struct, frozen=True, kw_only=True):
    """A repository in the results of a search."""

    id: str
    downloads: int
    likes: int
    licence: str
    is_gated: bool


def parse_quant(name: str) -> str:
    """Return the quant in a file name, in upper case, such as `Q4_K_M`; "" if the name contains none."""
    quants = _QUANT_PATTERN.findall(name)
    return str(quants[-1]).upper().replace("FP16", "F16") if quants else ""


def parse_reference(reference: str) -> tuple[str, str] | None:
    """Split `owner/repo[:QUANT]` into repository and quant ("" if absent). Returns None for any other string."""
    match = REFERENCE_PATTERN.fullmatch(reference)
    return (match["repo"], match["quant"] or "") if match else None


def endpoint() -> str:
    """Return the URL of the hub: the value of HF_ENDPOINT, or https://huggingface.co."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


class Hub:
    """Client of the hub's API. Uses the variables HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE, and proxy variables.

    huggingface_hub sends its requests with edgechat's HTTP client, so that searches and downloads use the same proxies,
    certificates and time limits.
    """

    def __init__(self) -> None:
        """Read the settings and the token of the hub. Raises HubError if one of them is invalid."""
        self.endpoint = endpoint()
        hub_client.check_endpoint(self.endpoint)
        # huggingface_hub reads these variables when it is imported.
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
        os.environ["HF_HUB_DISABLE_XET"] = "1"
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        with translate_setup_errors():
            import huggingface_hub

            from edgechat import __version__

            huggingface_hub.set_client_factory(functools.partial(hub_client.make_client, self.endpoint))
            self._token: str | Literal[False] = hub_client.read_token() or False
            self._api: HfApi = huggingface_hub.HfApi(
                endpoint=self.endpoint, token=self._token, library_name="edgechat", library_version=__version__
            )
            self._is_offline = bool(huggingface_hub.is_offline_mode())

    def headers(self) -> dict[str, str]:
        """Return the HTTP headers for file requests. They contain the user's token, so send them only to the hub."""
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # missing in __all__

        from edgechat import __version__

        headers = build_hf_headers(token=self._token, library_name="edgechat", library_version=__version__)
        return {str(name): str(value) for name, value in headers.items()}

    def search(self, text: str, limit: int = 20) -> list[SearchResult]:
        """Search for repositories with GGUF files, and sort them by downloads, most first. Raises HubError."""

        def search() -> list[SearchResult]:
            repositories = self._api.list_models(search=text, filter="gguf", sort="downloads", limit=limit)
            results = {
                repo.id: SearchResult(
                    id=repo.id, downloads=int(repo.downloads or 0), likes=int(repo.likes or 0),
                    licence=_find_licence(repo), is_gated=bool(repo.gated),
                )
                for repo in repositories
                if _is_repository_name(repo.id)
            }  # fmt: skip
            return list(results.values())

        return self._call_api(search, repr(text))

    def get_repository(self, repo_id: str, revision: str | None = None) -> Repository:
        """Fetch a repository, with variants sorted by size. Raises HubError, or CatalogueError for an invalid name."""
        return self._call_api(lambda: self._fetch_repository(repo_id, revision), repo_id)

    def _fetch_repository(self, repo_id: str, revision: str | None) -> Repository:
        info = self._api.model_info(repo_id, revision=revision, files_metadata=True, timeout=API_TIMEOUT_S)
        if not _is_repository_name(info.id):
            raise ValueError(f"the repository name {str(info.id)!r} is not valid")
        sha = str(info.sha or revision or "main")
        siblings = (info.siblings or [])[:MAX_FILES]
        cut_files = _find_cut_files(sibling.rfilename for sibling in siblings)
        file_parts = {name for parts in cut_files.values() for name in parts}
        files = []
        for sibling in siblings:
            name = sibling.rfilename
            if not name.lower().endswith(".gguf") or not is_safe_path(name) or not _is_size(sibling.size):
                continue
            if name in file_parts:
                continue
            sha256 = str(sibling.lfs.sha256).lower() if sibling.lfs is not None else ""
            sha256 = sha256 if _SHA256_PATTERN.fullmatch(sha256) else ""
            files.append(
                RemoteFile(path=name, size_bytes=sibling.size, sha256=sha256, url=self._file_url(info.id, sha, name))
            )
        variants, unusable = _group_into_variants(files)
        unusable += [_make_cut_variant(*item, f"{self.endpoint}/{info.id}") for item in cut_files.items()]
        return Repository(
            id=info.id, revision=sha, is_gated=bool(info.gated), licence=_find_licence(info),
            variants=tuple(variants), unusable=tuple(unusable),
        )  # fmt: skip

    def _file_url(self, repo_id: str, revision: str, path: str) -> str:
        from huggingface_hub import hf_hub_url

        return str(hf_hub_url(repo_id, path, revision=revision, endpoint=self.endpoint))

    def _call_api(self, send_request: Callable[[], T], repo_or_query: str) -> T:
        """Call the API, and retry twice after server errors. Raises HubError with `repo_or_query` in the message."""
        if self._is_offline:
            raise HubError(
                f"HF_HUB_OFFLINE is set, so no request for {repo_or_query} was sent to {self.endpoint}. "
                "Unset HF_HUB_OFFLINE, or use an installed model (`edgechat models list`)."
            )
        for pause_s in (*_RETRY_PAUSES_S, None):
            try:
                return self._call_api_once(send_request, repo_or_query)
            except http.HttpStatusError as error:  # noqa: PERF203  (pauses follow)
                if pause_s is None or not error.is_transient or (error.retry_after_s or 0.0) > pause_s:
                    raise make_hub_error(error, repo_or_query, self.endpoint) from None
                time.sleep(pause_s)
        raise AssertionError  # the last attempt returns or raises

    def _call_api_once(self, send_request: Callable[[], T], repo_or_query: str) -> T:
        """Call the API once, without retries. Raises HttpStatusError with the hub's error code, and HubError."""
        from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

        try:
            return http.run_with_timeout(API_TIMEOUT_S + http.CONNECT_TIMEOUT_S, send_request, self.endpoint)
        except HfHubHTTPError as error:
            code = error.response.headers.get("X-Error-Code", "")
            if isinstance(error, RepositoryNotFoundError):  # also raised for status 401 without X-Error-Code
                code = "GatedRepo" if isinstance(error, GatedRepoError) else "RepoNotFound"
            raise http.HttpStatusError(str(error), error.response.status_code, code=code) from None
        except HFValidationError as error:
            raise CatalogueError(f"{repo_or_query!r} is not a valid repository name: {error}") from None
        except EdgechatError:
            raise
        except Exception as error:  # noqa: BLE001  (the library raises many types for a response that it cannot use)
            raise HubError(
                f"{self.endpoint} sent an invalid response for {repo_or_query}: "
                f"{http.shorten_reason(str(error) or type(error).__name__)}"
            ) from None


def _is_repository_name(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and REFERENCE_PATTERN.fullmatch(value) is not None and is_safe_path(value)


def _is_size(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < _MAX_FILE_BYTES


def _find_licence(info: Any) -> str:
    tags = info.tags if isinstance(info.tags, list) else []
    licences = (str(tag)[8:] for tag in tags if str(tag).startswith("license:"))
    return next(licences, "")[:_MAX_LICENCE_CHARS]


def _group_into_variants(files: list[RemoteFile]) -> tuple[list[Variant], list[UnusableVariant]]:
    """Group files into variants, sorted by size; return split models with missing parts as unusable variants."""
    split_models: dict[tuple[str, int], dict[int, RemoteFile]] = {}
    variants, unusable = [], []
    for file in files:
        part = parse_part_name(file.path)
        if part is None:
            variants.append(_make_variant((file,)))
        else:
            split_models.setdefault((part.stem, part.n_parts), {})[part.number] = file
    for (stem, n_parts), parts in split_models.items():
        if len(parts) == n_parts:
            variants.append(_make_variant(tuple(parts[number] for number in sorted(parts))))
        else:
            reason = f"{stem}.gguf has {n_parts} parts, but the repository contains only {len(parts)} of them"
            unusable.append(UnusableVariant(quant=parse_quant(stem), name=f"{stem}.gguf", reason=reason))
    return sorted(variants, key=lambda variant: variant.size_bytes), unusable


def _find_cut_files(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the pieces of cut model files, which have no headers of their own, by the name of the whole file."""
    model_names = (name for name in names if is_safe_path(name) and (".gguf" in name.lower() or parse_quant(name)))
    return {
        whole_name: parts
        for whole_name, parts in group_file_parts(model_names).items()
        if len(parts) > 1 or not parts[0].lower().endswith(".gguf")
    }


def _make_cut_variant(whole_name: str, parts: Sequence[str], repo_url: str) -> UnusableVariant:
    command = format_join_command([part.rsplit("/", 1)[-1] for part in parts], whole_name.rsplit("/", 1)[-1])
    return UnusableVariant(
        quant=parse_quant(whole_name), name=whole_name,
        reason=(
            f"{whole_name} was cut into {format_count(len(parts), 'part')}, which must be joined. Download them from "
            f"{repo_url}, join them with `{command}`, and add the joined file with `edgechat models add`"
        ),
    )  # fmt: skip


def _make_variant(files: tuple[RemoteFile, ...]) -> Variant:
    name = files[0].path
    is_projector = "mmproj" in name.rsplit("/", 1)[-1].lower()
    return Variant(quant=parse_quant(name), files=files, is_projector=is_projector)


def choose_variant(repo: Repository, quant: str = "") -> Variant:
    """Choose the variant whose quant or file name is `quant`. If `quant` is "", choose the default variant.

    Raises CatalogueError, which lists the available variants, if no variant or more than one matches.
    """
    models = repo.model_variants()
    for preferred_quant in [quant.upper()] if quant else PREFERRED_QUANTS:
        matches = [model for model in models if model.quant == preferred_quant]
        if len(matches) == 1 or (matches and not quant):
            return matches[0]
        if matches:
            names = ", ".join(model.files[0].path for model in matches)
            raise CatalogueError(
                f"{repo.id} has several {preferred_quant} models: {names}. Name the file, as in {repo.id}:FILE."
            )
    for model in models:
        if quant and _matches_file(quant, model.files[0].path):
            return model
    for unusable in repo.unusable:
        if not models or (quant and (unusable.quant == quant.upper() or _matches_file(quant, unusable.name))):
            raise CatalogueError(f"{repo.id}: {unusable.reason}.")
    if not models:
        raise CatalogueError(
            f"{repo.id} has no GGUF files. Use `edgechat models search` to find a repository whose name ends in -GGUF."
        )
    if quant:
        available_quants = ", ".join(dict.fromkeys(model.quant or model.files[0].path for model in models))
        raise CatalogueError(f"{repo.id} has no variant {quant}. Available variants: {available_quants}.")
    return models[len(models) // 2]


def _matches_file(name: str, path: str) -> bool:
    return name.lower() in {path.lower(), path.rsplit("/", 1)[-1].lower()}
