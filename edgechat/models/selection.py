"""Selection of a model: candidates on this machine and in the catalogue, and the automatic choice among them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from edgechat.catalogue import curated, library
from edgechat.config import Settings
from edgechat.engine import protocol
from edgechat.engine.client import EngineClient
from edgechat.errors import CatalogueError, EdgechatError, ModelFileError, PlanError
from edgechat.humanize import size
from edgechat.modelfile.header import ModelHeader
from edgechat.modelfile.profile import ModelProfile
from edgechat.modelfile.split import read_header
from edgechat.models import observed_memory
from edgechat.models.loading import exact_estimator
from edgechat.models.resources import current_machine, measured_speeds
from edgechat.planner import requantize
from edgechat.planner.machine import Machine
from edgechat.planner.plan import Estimator
from edgechat.planner.quality import quality
from edgechat.planner.ranking import Candidate, Evaluation, choose, evaluate
from edgechat.planner.synthetic_profile import file_sizes, synthetic_profiles
from edgechat.planner.throughput import KernelSpeeds

# Maximum number of installed models that the automatic choice plans, so that it does not delay the first frame.
_MAX_PLANNED: Final = 12


def make_candidate(name: str, header: ModelHeader, *, repo: str = "", is_installed: bool = True) -> Candidate:
    """Create the candidate for a model file, with catalogue data. Raises ModelFileError for an invalid header."""
    model = curated.find_for_file(repo, header.name, Path(header.path).name)
    profile = ModelProfile.from_header(header)
    return Candidate(
        name=name, quant=header.quant, profile=profile, is_installed=is_installed,
        quality=quality(header.quant, profile.n_params, _n_params_active(profile, model), model),
        extra_bytes=observed_memory.extra_bytes(header.path) if is_installed else 0,
    )  # fmt: skip


def installed_candidates(entries: Sequence[library.InstalledModel] | None = None) -> list[Candidate]:
    """Return the chat models among `entries`, by default all installed models. Raises CatalogueError."""
    candidates = []
    for entry in library.scan() if entries is None else entries:
        if entry.is_usable:
            try:
                header = read_header(entry.path)
                if not header.is_embedding:
                    candidates.append(make_candidate(entry.name, header, repo=entry.repo))
            except EdgechatError:  # deleted or damaged since the scan
                continue
    return candidates


def catalogue_candidates() -> list[Candidate]:
    """Return every quant of every catalogue model with known dimensions, without network access."""
    candidates = []
    for model in curated.load().values():
        if not model.shape.n_layers:  # without layers, the memory of the context cannot be estimated
            continue
        sizes = file_sizes(model)
        for quant, profile in synthetic_profiles(model).items():
            n_params = model.shape.n_params or profile.n_params
            candidates.append(Candidate(
                name=f"{model.id}:{quant}", quant=quant, profile=profile, is_installed=False,
                is_size_estimated=not sizes[quant][1], is_default=model.is_default,
                quality=quality(quant, n_params, model.shape.n_params_active, model),
            ))  # fmt: skip
    return candidates


def named_candidates(
    engine: EngineClient, names: Sequence[str], directory: Path, *, with_quants: bool = False
) -> list[Candidate]:
    """Return the candidates for `names`: installed models, files, or `owner/repo[:QUANT]` on the hub.

    The headers of remote models are downloaded into `directory`. With `with_quants`, each model is followed by its
    other quants, with sizes computed by llama.cpp's rules. Raises EdgechatError for an unknown name.
    """
    candidates: list[Candidate] = []
    for name in names:
        header, repo, is_installed = _find_header(name, directory / str(len(candidates)))
        candidates.append(make_candidate(name, header, repo=repo, is_installed=is_installed))
        for quant in requantize.PRESETS if with_quants else ():
            types = engine.list_quant_types(requantize.quant_model(header), requantize.preset_number(quant))
            if types and quant != header.quant:
                other = requantize.requantized_header(header, quant, types)
                other = msgspec.structs.replace(other, path=f"{name} in {quant}")
                candidates.append(make_candidate(other.path, other, repo=repo, is_installed=False))
    return candidates


def _find_header(name: str, directory: Path) -> tuple[ModelHeader, str, bool]:
    """Return the header of a model, its repository, and True if the model is installed."""
    from edgechat.catalogue import remote_header, resolve  # imported here, so that a chat starts faster

    try:
        return read_header(resolve.find_model(name)), "", True
    except ModelFileError:
        if library.is_path_like(name):
            raise
        directory.mkdir()
        remote = remote_header.find_remote_model(name, directory)
        if remote is None:
            raise
        return remote[1], remote[0].id, False


def choose_installed(settings: Settings) -> tuple[str, Path]:
    """Return the name and file of the best installed model that fits. Raises PlanError if none does.

    If the registry is damaged, the starter model is used; `edgechat models` reports the problem.
    """
    try:
        entries = [entry for entry in library.scan() if entry.is_usable]
    except CatalogueError:
        return library.STARTER, library.starter_model()
    if len(entries) == 1:  # no choice to make; loading reports whether it fits
        return entries[0].name, entries[0].path
    if len(entries) > _MAX_PLANNED:
        entries = sorted(entries, key=_estimated_points, reverse=True)[:_MAX_PLANNED]
    evaluations = evaluate_all(installed_candidates(entries), settings)
    best = choose(evaluations)
    if best is not None:
        return best.candidate.name, Path(best.candidate.profile.path)
    if evaluations:
        smallest = min(evaluations, key=lambda e: e.memory.total)
        raise PlanError(
            f"None of the {len(evaluations)} installed models fits: the smallest, {smallest.candidate.name}, "
            f"{smallest.verdict}, and {size(current_machine(settings).available_bytes)} are available. "
            f"{suggest_download(settings)}"
        )
    raise PlanError(f"No model is installed. {suggest_download(settings)}")


def _estimated_points(entry: library.InstalledModel) -> float:
    model = curated.find_for_file(entry.repo, entry.facts.name, entry.path.name)
    return quality(entry.facts.quant, entry.facts.n_params, None, model).points


def suggest_download(settings: Settings) -> str:
    """Return a sentence that names the best catalogue model for this machine and the command that downloads it."""
    best = choose(evaluate_all(catalogue_candidates(), settings), defaults_only=True)
    if best is None:
        return "No model of the catalogue fits. `edgechat plan --all` shows how much memory each model needs."
    name = best.candidate.name
    return (
        f"The best catalogue model for this machine is {name}, which needs {size(best.memory.total)} of memory. "
        f"Download it with `edgechat models pull {name}`."
    )


def evaluate_all(candidates: Sequence[Candidate], settings: Settings) -> list[Evaluation]:
    """Evaluate candidates on this machine, with measured kernel speeds and memory sizes from formulas."""
    return evaluate_on(candidates, current_machine(settings), settings, measured_speeds())


def evaluate_on(
    candidates: Sequence[Candidate], machine: Machine, settings: Settings, speeds: KernelSpeeds | None,
    engine: EngineClient | None = None,
) -> list[Evaluation]:  # fmt: skip
    """Evaluate candidates on a machine. With an `engine`, llama.cpp computes the memory of existing files."""

    def estimator(candidate: Candidate) -> Estimator | None:
        if engine is None or not Path(candidate.profile.path).exists():
            return None
        return exact_estimator(engine, candidate.profile)

    return [
        evaluate(
            c, machine, speeds=speeds, n_ctx=settings.n_ctx, min_tps=settings.min_speed, estimator=estimator(c)
        )
        for c in candidates
    ]  # fmt: skip


def measure_speeds() -> None:
    """Run the kernel benchmark (a few seconds) unless a saved result exists. Failures are ignored."""
    engine = EngineClient()
    try:
        with contextlib.suppress(EdgechatError):
            load_or_measure_speeds(engine)
    finally:
        engine.close()


def load_or_measure_speeds(
    engine: EngineClient, on_event: Callable[[protocol.AnyEvent], None] = lambda event: None
) -> KernelSpeeds | None:
    """Return the saved kernel benchmark, or run it in `engine`. Raises EdgechatError."""
    return measured_speeds() or engine.list_devices(benchmark=True, on_event=on_event).speeds


def _n_params_active(profile: ModelProfile, model: curated.CatalogueModel | None) -> int | None:
    """Return the number of weights used for each token of a mixture of experts; None for a dense model."""
    if model is not None and model.shape.n_params_active:
        return model.shape.n_params_active
    n_experts, n_used = profile.n_experts, profile.n_experts_used
    if not n_experts or not n_used:
        return None
    routed = sum(math.prod(t.shape) for t in profile.tensors if "_exps." in t.name)
    return profile.n_params - routed + routed * min(n_used, n_experts) // n_experts
