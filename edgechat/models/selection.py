"""Which models there are to choose from, here and in the catalogue, and which one is taken when nobody names one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from edgechat.catalogue import curated, library
from edgechat.config import Settings
from edgechat.engine.client import EngineClient
from edgechat.errors import CatalogueError, EdgechatError, PlanError
from edgechat.humanize import size
from edgechat.modelfile.header import ModelHeader
from edgechat.modelfile.split import read_header
from edgechat.models import observed_memory
from edgechat.models.resources import current_machine, measured_speeds
from edgechat.planner.memory import REPACKED, LoadOptions, MemoryEstimate, estimate
from edgechat.planner.quality import quality
from edgechat.planner.ranking import Candidate, Evaluation, choose, evaluate
from edgechat.planner.synthetic_header import file_sizes, synthetic_profiles

# So many of the best are looked at closely; a library of hundreds must not hold up the first frame.
_MOST = 12


def make_candidate(
    name: str, header: ModelHeader, *, repo: str = "", is_here: bool = True, known: curated.CatalogueModel | None = None
) -> Candidate:
    """A file, with what the catalogue knows of its model."""
    known = known or curated.find_for_file(repo, header.name, Path(header.path).name)
    n_active = _active(header, known)
    return Candidate(
        name=name, quant=header.quant, header=header, is_installed=is_here,
        quality=quality(header.quant, header.n_params, n_active, known),
    )  # fmt: skip


def installed_candidates(entries: Sequence[library.InstalledModel] | None = None) -> list[Candidate]:
    """Models on this machine. Raises CatalogueError."""
    found = []
    for entry in library.scan() if entries is None else entries:
        if entry.is_usable:
            try:
                header = read_header(entry.path)
                if not header.is_embedding:
                    found.append(make_candidate(entry.name, header, repo=entry.repo))
            except EdgechatError:  # gone or damaged since it was seen
                continue
    return found


def _promise(entry: library.InstalledModel) -> float:
    known = curated.find_for_file(entry.repo, entry.facts.name, entry.path.name)
    return quality(entry.facts.quant, entry.facts.n_params, None, known).points


def catalogue_candidates() -> list[Candidate]:
    """Every quant of every model of the catalogue whose shape it knows; nothing is asked of a network."""
    found = []
    for model in curated.load().values():
        if not model.shape.n_layers:  # what its context takes cannot be said
            continue
        known = file_sizes(model)
        for quant, header in synthetic_profiles(model).items():
            n_params = model.shape.n_params or header.n_params
            found.append(Candidate(
                name=f"{model.id}:{quant}", quant=quant, header=header, is_installed=False, is_size_estimated=not known[quant][1],
                is_default=model.is_default, quality=quality(quant, n_params, model.shape.n_params_active, model),
            ))  # fmt: skip
    return found


def choose_installed(settings: Settings) -> tuple[str, Path]:
    """Name and file of the best model here that fits. Raises PlanError if none does.

    Where what is remembered of models cannot be read, the starter answers: `edgechat models` says what is wrong.
    """
    try:
        entries = [entry for entry in library.scan() if entry.is_usable]
    except CatalogueError:
        return library.STARTER, library.starter_model()
    if len(entries) == 1:  # whether it fits is said when it is loaded
        return entries[0].name, entries[0].path
    if len(entries) > _MOST:
        entries = sorted(entries, key=_promise, reverse=True)[:_MOST]
    rated = evaluate_all(installed_candidates(entries), settings)
    best = choose(rated)
    if best is not None:
        return best.candidate.name, Path(best.candidate.header.path)
    if rated:
        smallest = min(rated, key=lambda r: r.memory.total)
        raise PlanError(
            f"none of the {len(rated)} models here fits: the smallest, {smallest.candidate.name}, {smallest.verdict}, "
            f"and {size(current_machine(settings).available_bytes)} are available; {suggest_download(settings)}"
        )
    raise PlanError(f"there is no model here; {suggest_download(settings)}")


def suggest_download(settings: Settings) -> str:
    """What of the catalogue would be the best on this machine, in words."""
    best = choose(evaluate_all(catalogue_candidates(), settings), unasked=True)
    if best is None:
        return "nothing of the catalogue fits either (`edgechat plan --all` says how much is missing)"
    return (
        f"of the catalogue, {best.candidate.name} would be the best for this machine, with "
        f"{size(best.memory.total)}: `edgechat models pull {best.candidate.name}` gets it"
    )


def measure_speeds() -> None:
    """Find out how fast this machine is, unless that is known; takes some seconds. Where it cannot be, nothing changes."""
    if measured_speeds() is not None:
        return
    engine = EngineClient()
    try:
        engine.list_devices(benchmark=True)
    except EdgechatError:
        return
    finally:
        engine.close()


def evaluate_all(candidates: Sequence[Candidate], settings: Settings) -> list[Evaluation]:
    """Plan them all on this machine."""
    here, speeds = current_machine(settings), measured_speeds()
    repacked = speeds.repacked if speeds is not None else REPACKED

    def exact(candidate: Candidate) -> Callable[[LoadOptions], MemoryEstimate]:
        extra = observed_memory.extra_bytes(candidate.header.path) if candidate.is_installed else 0
        return lambda options: estimate(candidate.header, options, repacked, extra)

    return [
        evaluate(c, here, speeds=speeds, n_ctx=settings.n_ctx, min_tps=settings.min_speed, exact=exact)
        for c in candidates
    ]


def _active(header: ModelHeader, known: curated.CatalogueModel | None) -> int | None:
    """Weights used for each token, where that is not all of them."""
    if known is not None and known.shape.n_params_active:
        return known.shape.n_params_active
    n_experts, n_used = header.hparam("expert_count"), header.hparam("expert_used_count")
    if not n_experts or not n_used:
        return None
    routed = sum(math.prod(t.shape) for t in header.tensors if "_exps." in t.name)
    return header.n_params - routed + routed * min(n_used, n_experts) // n_experts
