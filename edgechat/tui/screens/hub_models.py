"""Models of the hub in the models screen: search results, the quants of a repository, and the plan of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgechat.tui.screens.model_groups import ModelFile

if TYPE_CHECKING:
    from edgechat.catalogue.hub import SearchResult
    from edgechat.config import Settings


def search(query: str) -> list[SearchResult]:
    """Return the repositories on the hub that match `query`. Raises HubError."""
    from edgechat.catalogue.hub import Hub

    return Hub().search(query)


def format_result(result: SearchResult) -> str:
    """Return the text of a repository: name, downloads, licence, and whether it needs an account."""
    return f"{result.id}  {result.downloads:,} downloads  {result.licence}{'  gated' if result.is_gated else ''}"


def list_quants(repo: str) -> list[ModelFile]:
    """Return the quants of a repository, largest first. Raises HubError and CatalogueError."""
    from edgechat.catalogue.hub import Hub

    files = {}
    for variant in sorted(Hub().get_repository(repo).model_variants(), key=lambda v: -v.size_bytes):
        quant = variant.quant or variant.files[0].path
        files[quant] = ModelFile(f"{repo}:{quant}", quant, variant.size_bytes)
    return list(files.values())


def plan(reference: str, settings: Settings) -> ModelFile | None:
    """Compute a plan from the header of a remote file. Raises CatalogueError, ModelFileError and HubError."""
    from edgechat.catalogue import remote_header
    from edgechat.models import selection
    from edgechat.planner.report import make_plan_row

    remote_model = remote_header.find_remote_model(reference)
    if remote_model is None:
        return None
    candidate = selection.make_candidate(reference, remote_model[1], repo=reference, is_installed=False)
    [evaluation] = selection.evaluate_all([candidate], settings)
    row = make_plan_row(evaluation, None)
    return ModelFile(reference, row.quant, row.file_bytes, row=row)
