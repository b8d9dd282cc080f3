"""Selection of a model: installed, catalogue and named candidates, and the automatic choice of an installed model."""

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
from edgechat.engine.cancellation import Cancellation
from edgechat.engine.client import EngineClient
from edgechat.errors import CatalogueError, EdgechatError, ModelFileError, PlanError
from edgechat.hardware.contention import is_machine_busy
from edgechat.humanize import format_size
from edgechat.modelfile.checks import check_header
from edgechat.modelfile.header import ModelHeader
from edgechat.modelfile.profile import ModelProfile
from edgechat.modelfile.split import read_header
from edgechat.models import observed_memory
from edgechat.models.draft_models import add_own_heads
from edgechat.models.gpu_failures import leave_out_failed_gpu
from edgechat.models.loading import make_exact_estimator
from edgechat.models.resources import current_machine, load_measured_speeds
from edgechat.planner import requantize
from edgechat.planner.machine import Machine
from edgechat.planner.observed_speed import ObservedSpeed
from edgechat.planner.picks import BALANCED, choose_evaluation, choose_picks
from edgechat.planner.quality import quality
from edgechat.planner.ranking import Candidate, Evaluation, evaluate
from edgechat.planner.synthetic_profile import compute_file_sizes, make_synthetic_profiles
from edgechat.planner.throughput import KernelSpeeds
from edgechat.planner.turn import ReasoningSupport
from edgechat.prompt.thinking import is_thinking_on
from edgechat.runtime.backends import kernel_benchmark, observed_speeds
from edgechat.runtime.backends.bundle import find_bundle

# Maximum number of installed models that the automatic choice evaluates; more would delay the first frame.
_MAX_EVALUATED_MODELS: Final = 12


def make_candidate(name: str, header: ModelHeader, *, repo: str = "", is_installed: bool = True) -> Candidate:
    """Create a candidate from a model file's header and the catalogue. Raises ModelFileError for an invalid header."""
    model = curated.guess_model(repo, header.name, Path(header.path).name)
    profile = ModelProfile.from_header(header)
    return Candidate(
        name=name, quant=header.quant, profile=profile, is_installed=is_installed, file_bytes=header.file_bytes,
        quality=quality(header.quant, profile.n_params, _count_active_params(profile, model), model),
        extra_bytes=observed_memory.extra_bytes(header.path) if is_installed else 0,
        thinking=_find_reasoning_support(model),
    )  # fmt: skip


def list_installed_candidates(entries: Sequence[library.InstalledModel] | None = None) -> list[Candidate]:
    """Return candidates for the chat models in `entries` (default: all installed models). Raises CatalogueError."""
    candidates = []
    for entry in library.scan() if entries is None else entries:
        if entry.is_usable:
            try:
                header = read_header(entry.path)
                check_header(header)
                if not header.is_embedding:
                    candidates.append(make_candidate(entry.name, header, repo=entry.repo))
            except EdgechatError:  # the file was deleted or damaged after the scan
                continue
    return candidates


def list_catalogue_candidates() -> list[Candidate]:
    """Return a candidate for each quant of each catalogue model with known dimensions. Does not use the network."""
    return [c for model in curated.load_catalogue().values() for c in _make_catalogue_candidates(model)]


def _make_catalogue_candidates(model: curated.CatalogueModel) -> list[Candidate]:
    if not model.dimensions.n_layers:  # the KV cache size depends on the number of layers
        return []
    candidates, sizes = [], compute_file_sizes(model)
    for quant, profile in make_synthetic_profiles(model).items():
        n_params = model.dimensions.n_params or profile.n_params
        candidates.append(Candidate(
            name=f"{model.id}:{quant}", quant=quant, profile=profile, is_installed=False,
            file_bytes=sizes[quant][0], is_size_estimated=not sizes[quant][1], is_default=model.is_default,
            quality=quality(quant, n_params, model.dimensions.n_params_active, model),
            thinking=_find_reasoning_support(model),
        ))  # fmt: skip
    return candidates


def find_catalogue_candidates(name: str, *, with_quants: bool) -> list[Candidate]:
    """Return the candidate for a catalogue ID, with or without a quant; with `with_quants`, return one for each quant.

    Without a quant in `name`, the candidate has the quant that `models pull` would download. Returns [] if the
    catalogue does not have the model or its dimensions. Raises CatalogueError for an unknown quant.
    """
    from edgechat.catalogue.hub import PREFERRED_QUANTS

    model_id, _, quant = name.lower().partition(":")
    model = curated.load_catalogue().get(model_id)
    if model is None:
        return []
    curated.check_quant(model, quant)
    candidates = _make_catalogue_candidates(model)
    if with_quants:
        return candidates
    preferred_quants = [quant.upper()] if quant else [*PREFERRED_QUANTS, *(c.quant for c in candidates)]
    choice = next((c for q in preferred_quants for c in candidates if c.quant.upper() == q.upper()), None)
    return [choice] if choice is not None else []


def make_named_candidates(
    engine: EngineClient, names: Sequence[str], directory: Path, *, with_quants: bool = False
) -> list[Candidate]:
    """Return the candidates for `names`: installed models, files, catalogue IDs, or `owner/repo[:QUANT]` on the hub.

    Models of the catalogue are planned without the network. The headers of models on the hub are downloaded into
    `directory`. With `with_quants`, each candidate is followed by candidates for its other quants, with sizes computed
    by llama.cpp's rules. Raises EdgechatError for an unknown name, and for a model of a remote before it asks the hub.
    """
    candidates: list[Candidate] = []
    for name in names:
        try:
            header, repo, is_installed = _find_header(name, directory / str(len(candidates)))
        except ModelFileError:
            catalogue_candidates = find_catalogue_candidates(name, with_quants=with_quants)
            if not catalogue_candidates:
                raise
            candidates += catalogue_candidates
            continue
        candidates.append(make_candidate(name, header, repo=repo, is_installed=is_installed))
        for quant in requantize.PRESETS if with_quants else ():
            tensor_types = engine.list_quant_types(
                requantize.make_quant_model(header), requantize.find_preset_number(quant)
            )
            if tensor_types and quant != header.quant:
                quant_header = requantize.make_requantized_header(header, quant, tensor_types)
                quant_header = msgspec.structs.replace(quant_header, path=f"{name} in {quant}")
                candidates.append(make_candidate(quant_header.path, quant_header, repo=repo, is_installed=False))
    return candidates


def _find_header(name: str, directory: Path) -> tuple[ModelHeader, str, bool]:
    """Return a model's header, its hub repository ("" for an installed model), and whether the model is installed."""
    # Imported only here, because the import would delay the start of a chat.
    from edgechat.catalogue import remote_header, resolve

    try:
        header = read_header(resolve.find_model(name))
        check_header(header)
        return header, "", True
    except ModelFileError:
        resolve.check_is_not_remote(name)
        if library.is_path_like(name):
            raise
        directory.mkdir()
        remote = remote_header.find_remote_model(name, directory)
        if remote is None:
            raise
        return remote[1], remote[0].id, False


def choose_installed_model(settings: Settings) -> tuple[str, Path]:
    """Return the name and file of the best installed model that fits. Raises PlanError if none fits.

    If the registry is damaged, returns the starter model; `edgechat models` reports the damage.
    """
    try:
        entries = [entry for entry in library.scan() if entry.is_usable]
    except CatalogueError:
        return library.STARTER, library.starter_model()
    if len(entries) == 1:  # with one model, there is no choice, and the load reports whether the model fits
        return entries[0].name, entries[0].path
    if len(entries) > _MAX_EVALUATED_MODELS:
        entries = sorted(entries, key=_estimate_points, reverse=True)[:_MAX_EVALUATED_MODELS]
    machine = current_machine(settings)
    speeds = load_measured_speeds()
    candidates = add_observed_speeds(list_installed_candidates(entries), machine, speeds)
    evaluations = evaluate_for_machine(candidates, machine, settings, speeds)
    best_evaluation = choose_evaluation(evaluations)
    if best_evaluation is not None:
        return best_evaluation.candidate.name, Path(best_evaluation.candidate.profile.path)
    if evaluations:
        smallest_evaluation = min(evaluations, key=lambda e: e.memory.total)
        raise PlanError(
            f"None of the {len(evaluations)} installed models fits: the smallest, "
            f"{smallest_evaluation.candidate.name}, {smallest_evaluation.verdict}, "
            f"but {format_size(machine.available_bytes)} are available. "
            f"{suggest_download(settings)}"
        )
    raise PlanError(f"No model is installed. {suggest_download(settings)}")


def explain_automatic_choice(settings: Settings) -> str:
    """Explain which installed model is chosen automatically with the saved speed of this machine.

    Raises CatalogueError.
    """
    from edgechat.planner.report import explain_automatic_choice as explain

    evaluations = evaluate_all(list_installed_candidates(), settings)
    choice = choose_evaluation(evaluations)
    if choice is None:
        return "No installed model fits in memory."
    return explain(choice, evaluations)


def _estimate_points(entry: library.InstalledModel) -> float:
    model = curated.guess_model(entry.repo, entry.facts.name, entry.path.name)
    return quality(entry.facts.quant, entry.facts.n_params, None, model).points


def suggest_download(settings: Settings) -> str:
    """Return a sentence with the recommended catalogue model and the command that downloads it.

    If this machine has not been measured yet, the sentence names the command that measures it. If no catalogue model
    fits, it names the command that shows the memory of each model.
    """
    evaluations = evaluate_all(list_catalogue_candidates(), settings)
    if not any(e.plan is not None and not e.uses_reserve and e.candidate.is_default for e in evaluations):
        return "No model of the catalogue fits. `edgechat plan --all` shows how much memory each model needs."
    picks = {objective: pick for pick in choose_picks(evaluations, defaults_only=True) for objective in pick.objectives}
    if BALANCED not in picks:
        return "`edgechat plan --all` measures this machine and recommends models for it."
    best_evaluation = picks[BALANCED].evaluation
    name = best_evaluation.candidate.name
    return (
        f"The best catalogue model for this machine is {name}, which needs "
        f"{format_size(best_evaluation.memory.total)} of memory. Download it with `edgechat models pull {name}`."
    )


def evaluate_all(candidates: Sequence[Candidate], settings: Settings) -> list[Evaluation]:
    """Evaluate candidates on this machine with its saved speeds; memory is estimated with formulas."""
    machine, speeds = current_machine(settings), load_measured_speeds()
    return evaluate_for_machine(add_observed_speeds(candidates, machine, speeds), machine, settings, speeds)


def add_observed_speeds(
    candidates: Sequence[Candidate], machine: Machine, speeds: KernelSpeeds | None
) -> list[Candidate]:
    """Return candidates with the speeds of their recent replies on this machine, which correct predicted speeds."""
    observed = _read_observed_speeds(speeds)
    if observed is None:
        return list(candidates)
    n_threads_batch = machine.n_threads_batch or machine.n_threads
    return [
        msgspec.structs.replace(c, observed_speed=observed.find(c.profile.path, machine.n_threads, n_threads_batch))
        for c in candidates
    ]


def _read_observed_speeds(speeds: KernelSpeeds | None) -> observed_speeds.ObservedSpeeds | None:
    """Return the saved speeds of replies with the backend of `speeds`; None without speeds or without a bundle."""
    try:
        return observed_speeds.ObservedSpeeds(find_bundle(), speeds.backend) if speeds is not None else None
    except EdgechatError:  # there is no bundle
        return None


def evaluate_for_machine(
    candidates: Sequence[Candidate], machine: Machine, settings: Settings, speeds: KernelSpeeds | None,
    engine: EngineClient | None = None, on_candidate: Callable[[str], None] = lambda name: None,
) -> list[Evaluation]:  # fmt: skip
    """Evaluate candidates on `machine`. If `engine` is given, llama.cpp computes the memory of models on disk.

    `on_candidate` receives the name of each candidate before its evaluation.
    """
    think = is_thinking_on(reasoning=settings.reasoning, thinking=settings.thinking, decode_tps=None)

    def evaluate_candidate(candidate: Candidate) -> Evaluation:
        on_candidate(candidate.name)
        own_machine, gpu_problem = leave_out_failed_gpu(machine, candidate.profile.path)
        estimator = None
        if engine is not None and Path(candidate.profile.path).exists():
            estimator = make_exact_estimator(engine, candidate.profile, own_machine.gpus)
        evaluation = evaluate(
            add_own_heads(candidate, settings), own_machine, speeds=speeds, n_ctx=settings.n_ctx,
            min_tps=settings.min_speed, think=think, estimator=estimator,
        )  # fmt: skip
        if not gpu_problem or evaluation.plan is None:
            return evaluation
        reasons = evaluation.plan.reasons | {"n_gpu_layers": gpu_problem}
        return msgspec.structs.replace(evaluation, plan=msgspec.structs.replace(evaluation.plan, reasons=reasons))

    return [evaluate_candidate(candidate) for candidate in candidates]


def measure_speeds(cancellation: Cancellation, on_progress: Callable[[str], object] = lambda message: None) -> None:
    """Run the kernel benchmark, which takes a few seconds, unless a result is saved. Ignores errors.

    Set `cancellation` to kill the benchmark before a reply starts: the two would slow each other down, and the measured
    speed would be too low. `on_progress` receives status lines.
    """
    engine = EngineClient()
    try:
        with contextlib.suppress(EdgechatError), cancellation.call_on_cancel(lambda: engine.close(timeout_s=0.0)):
            load_or_measure_speeds(engine, on_progress)
    finally:
        engine.close()


def load_or_measure_speeds(
    engine: EngineClient, on_progress: Callable[[str], object] = lambda message: None
) -> KernelSpeeds | None:
    """Return the saved kernel benchmark. If none is saved, or if it is outdated, run the benchmark in `engine`.

    A benchmark is outdated if it is old, if other programs disturbed it, or if recent replies contradict it, which is
    checked at most once a day. `on_progress` receives status lines. Raises EdgechatError.
    """
    speeds = load_measured_speeds()
    if speeds is None or kernel_benchmark.needs_measurement(speeds):
        return engine.list_devices(benchmark=True, on_event=_pass_progress_to(on_progress)).speeds or speeds
    if _is_contradicted(speeds) and not is_machine_busy(speeds.n_threads):
        return remeasure_speeds(engine, on_progress) or speeds
    return speeds


def remeasure_speeds(
    engine: EngineClient, on_progress: Callable[[str], object] = lambda message: None
) -> KernelSpeeds | None:
    """Run the kernel benchmark in `engine`, even if a result is saved; return None if it failed. Raises EdgechatError.

    `on_progress` receives status lines.
    """
    on_event = _pass_progress_to(on_progress)
    speeds = engine.list_devices(benchmark=True, remeasure=True, on_event=on_event).speeds
    if speeds is not None:
        observed_speeds.record_remeasurement()
    return speeds


def _pass_progress_to(on_progress: Callable[[str], object]) -> Callable[[protocol.AnyEvent], None]:
    def on_event(event: protocol.AnyEvent) -> None:
        if isinstance(event, protocol.BackendTesting):
            on_progress(event.message)

    return on_event


def _is_contradicted(speeds: KernelSpeeds) -> bool:
    """Return whether replies of installed models contradict the benchmark, and the benchmark may be run again now."""
    observed = _read_observed_speeds(speeds) if observed_speeds.may_remeasure() else None
    if observed is None:
        return False
    # Only replies with as many threads as in the benchmark can contradict it.
    machine = msgspec.structs.replace(
        current_machine(Settings(gpu=False)), n_threads=speeds.n_threads, n_threads_batch=speeds.n_threads
    )
    entries = [
        entry for entry in library.scan()
        if observed.find(str(entry.path), speeds.n_threads, speeds.n_threads) != ObservedSpeed()
    ]  # fmt: skip
    candidates = add_observed_speeds(list_installed_candidates(entries), machine, speeds)
    return any(e.speed_reasons for e in evaluate_for_machine(candidates, machine, Settings(), speeds))


def _find_reasoning_support(model: curated.CatalogueModel | None) -> ReasoningSupport:
    """Return whether a model reasons before it replies; "no" for models that are not in the catalogue."""
    if model is None or model.thinking is None or model.thinking == "no":
        return "no"
    return "always" if model.thinking == "always" else "toggle"


def _count_active_params(profile: ModelProfile, model: curated.CatalogueModel | None) -> int | None:
    """Return the number of parameters active for each token in a mixture of experts; None for a dense model."""
    if model is not None and model.dimensions.n_params_active:
        return model.dimensions.n_params_active
    n_experts, n_experts_used = profile.n_experts, profile.n_experts_used
    if not n_experts or not n_experts_used:
        return None
    n_expert_params = sum(math.prod(t.shape) for t in profile.tensors if "_exps." in t.name)
    return profile.n_params - n_expert_params + n_expert_params * min(n_experts_used, n_experts) // n_experts
