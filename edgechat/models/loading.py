"""Load a model into an engine, and retry with a smaller plan if memory runs out."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from edgechat import paths
from edgechat.config import Settings
from edgechat.engine import protocol
from edgechat.engine.client import EngineClient
from edgechat.errors import EdgechatError, EngineDiedError, ModelCrashError, ModelFileError, PlanError
from edgechat.hardware.gpu import Gpu
from edgechat.humanize import format_size
from edgechat.modelfile.profile import ModelProfile
from edgechat.modelfile.split import read_header
from edgechat.models import context_limits, observed_memory
from edgechat.models.draft_models import choose_drafter
from edgechat.models.events import LoadCallback, ModelLoadProgressed
from edgechat.models.gpu_failures import (
    check_drafter,
    is_gpu_refused,
    list_matrix_types,
    may_be_gpu_failure,
    record_gpu_failure,
)
from edgechat.models.load_records import record_memory_kill, register_loaded_model
from edgechat.models.resources import current_machine, load_measured_speeds, load_saved_gpus, save_gpus
from edgechat.planner.drafter_choice import DrafterChoice
from edgechat.planner.load_plan import LoadPlan
from edgechat.planner.machine import Machine
from edgechat.planner.mapped_file import FileRange, list_unused_ranges
from edgechat.planner.memory import (
    REPACKED_TYPES,
    BufferSizes,
    LoadOptions,
    convert_reported_buffers,
    estimate_buffers,
)
from edgechat.planner.plan import Estimator, make_smaller_plan, plan
from edgechat.process import KILL_SIGNAL
from edgechat.runtime import drafter_crashes
from edgechat.runtime.backends.bundle import Bundle, find_bundle
from edgechat.runtime.backends.gpu_absence import has_no_gpu

# If a plan uses more than this fraction of the available memory, llama.cpp computes exact buffer sizes before the load.
# This computation takes at least 0.1 s.
_EXACT_SIZES_FRACTION: Final = 0.5
# Maximum number of retries with a GPU; without a GPU, loading is retried only once. The error of the last retry is
# raised.
_MAX_RETRIES: Final = 2


def load_model(
    engine: EngineClient,
    profile: ModelProfile,
    settings: Settings,
    on_event: LoadCallback,
    start_renderer: Callable[[], None],
    free_memory: Callable[[], bool] = lambda: False,
) -> tuple[LoadPlan, protocol.Loaded, list[str]]:
    """Plan and load a model; return the plan, the engine's response, and warnings. Raises EdgechatError.

    `start_renderer` starts the render process while the engine process starts. As long as the plan needs concessions,
    `free_memory` ends another engine that is idle; it returns False if there is none. If memory runs out in spite of
    the plan, retries with a smaller plan; with a GPU, first with fewer GPU layers, then without the GPU. If the engine
    cannot open the drafter that the user named, loads with the heads of the model itself, or without a drafter; if it
    crashes when it opens another drafter, loads without it. A GPU on which the engine crashes is remembered.
    """
    engine.start()  # `start` does not wait until the engine process is ready
    start_renderer()
    bundle = find_bundle()
    drafter = choose_drafter(profile, settings)
    gpus, warnings = _find_gpus(engine, profile, settings, bundle, on_event, drafter)
    drafter = check_drafter(drafter, gpus)
    with _append_to_plan_error(warnings):  # the model may fit on a GPU that is not used
        machine, load_plan = _plan_in_free_memory(engine, profile, settings, gpus, free_memory, drafter)
    warnings += bundle.warnings
    model_properties = None
    gpu_crash: tuple[EdgechatError, LoadPlan] | None = None
    for attempt in range(_MAX_RETRIES):
        try:
            model_properties = _load(engine, profile, load_plan, on_event)
            problem = model_properties.drafter_error.rstrip(".")
            if not problem or not _is_named(load_plan) or drafter.fallback is None:
                break
            model_properties = None
            drafter = _replace_drafter(load_plan, drafter, problem, warnings)
            load_plan = _make_plan(engine, profile, machine, settings, drafter)
        except (PlanError, EngineDiedError, ModelFileError) as error:
            if _is_out_of_memory(error):  # other programs may have taken memory since the plan was made
                machine = current_machine(settings, profile.path, engine.pid, gpus)
            if reason := _find_drafter_crash(load_plan):
                drafter = _replace_drafter(load_plan, drafter, reason, warnings)
                load_plan = _make_plan(engine, profile, machine, settings, drafter)
                continue
            retry_plan = _make_retry_plan(error, profile, machine, load_plan, settings.n_ctx, attempt, drafter)
            if retry_plan is None:
                raise
            warnings.append(_format_retry_warning(error, load_plan, retry_plan))
            if load_plan.options.uses_gpu and may_be_gpu_failure(error):
                gpu_crash = error, load_plan
            load_plan = retry_plan
    if model_properties is None:
        model_properties = _load(engine, profile, load_plan, on_event)
    if gpu_crash is not None and not load_plan.options.uses_gpu:  # the model file is not the cause
        record_gpu_failure(*gpu_crash)
    register_loaded_model(engine, load_plan)
    return load_plan, model_properties, warnings


@contextlib.contextmanager
def _append_to_plan_error(warnings: Sequence[str]) -> Iterator[None]:
    try:
        yield
    except PlanError as error:
        raise PlanError(" ".join([str(error), *(f"{warning}." for warning in warnings)])) from error


def _plan_in_free_memory(
    engine: EngineClient, profile: ModelProfile, settings: Settings, gpus: Sequence[Gpu] | None,
    free_memory: Callable[[], bool], drafter: DrafterChoice,
) -> tuple[Machine, LoadPlan]:  # fmt: skip
    """Return the resources of the machine and a plan; call `free_memory` until the plan needs no concessions.

    The plan includes `drafter` if there is room. Memory that the user's budget forbids to use is not freed. Raises
    PlanError.
    """
    while True:
        machine = current_machine(settings, profile.path, engine.pid, gpus)
        try:
            load_plan = _make_plan(engine, profile, machine, settings, drafter)
        except PlanError:
            if machine.is_budget_set or not free_memory():
                raise
        else:
            if not load_plan.concessions or machine.is_budget_set or not free_memory():
                return machine, load_plan


def reload_model(
    engine: EngineClient, failed_plan: LoadPlan, settings: Settings, gpus: Sequence[Gpu] | None = None,
    free_memory: Callable[[], bool] = lambda: False,
) -> tuple[LoadPlan, protocol.Loaded]:  # fmt: skip
    """Load the model of `failed_plan` again with a new plan; an empty list of `gpus` means the CPU.

    `gpus` defaults to those of `failed_plan`, unless one of them failed with this model: the GPUs that were found last
    can be those of another model, and untested with the weights of this one. `free_memory` ends an idle engine, as in
    `load_model`. Raises EdgechatError.
    """
    if gpus is None:
        is_refused = failed_plan.options.uses_gpu and is_gpu_refused(failed_plan)
        gpus = () if is_refused else failed_plan.gpus
    profile = ModelProfile.from_header(read_header(Path(failed_plan.model_path)))
    drafter = check_drafter(choose_drafter(profile, settings), gpus)
    _, load_plan = _plan_in_free_memory(engine, profile, settings, gpus, free_memory, drafter)
    model_properties = _load(engine, profile, load_plan, lambda event: None)
    register_loaded_model(engine, load_plan)
    return load_plan, model_properties


def make_exact_estimator(engine: EngineClient, profile: ModelProfile, gpus: Sequence[Gpu] = ()) -> Estimator:
    """Return an estimator that asks llama.cpp for buffer sizes, or uses formulas for a file that llama.cpp rejects.

    `gpus` are those on which the model may be placed; without them, those that the engine process listed last.
    """
    devices = [gpu.device for gpu in gpus if gpu.device]

    def compute_buffers(options: LoadOptions) -> BufferSizes:
        request = protocol.ProbeMemory(
            id=engine.next_id(), model_path=profile.path, options=options, devices=devices
        )  # fmt: skip
        try:
            return convert_reported_buffers(profile, options, engine.probe_memory(request).memory)
        except ModelCrashError:  # a load would crash the engine again
            raise
        except EdgechatError:  # the load will report the error
            return estimate_buffers(profile, options)

    return compute_buffers


def _find_gpus(
    engine: EngineClient, profile: ModelProfile, settings: Settings, bundle: Bundle, on_event: LoadCallback,
    drafter: DrafterChoice,
) -> tuple[list[Gpu], list[str]]:  # fmt: skip
    """Return the GPUs that work with this model, and warnings about others; without a GPU, ask no engine.

    They are also tested with the weights of `drafter`, if it is in a file of its own.
    """
    if not settings.gpu or not bundle.gpu_modules:
        return [], []
    earlier_gpus = load_saved_gpus()
    if not earlier_gpus and has_no_gpu(bundle):
        return [], []
    devices = engine.list_devices(
        benchmark=False, n_weights=count_weights(profile), n_bytes=profile.tensor_bytes, model_path=profile.path,
        drafter_types=list_matrix_types(drafter.profile) if drafter.profile is not None else (),
        on_event=lambda event: _forward_progress(event, on_event),
    )  # fmt: skip
    save_gpus(devices.gpus)
    if devices.gpus:
        return devices.gpus, []
    problems = devices.problems or [f"The GPU {gpu.name} was not found" for gpu in earlier_gpus]
    return [], [f"{problem}; edgechat uses the CPU" for problem in problems]


def count_weights(profile: ModelProfile) -> dict[int, int]:
    """Return the number of weights in matrices by type, as ggml's number."""
    counts: dict[int, int] = {}
    for tensor in profile.tensors:
        if len(tensor.shape) > 1:
            counts[tensor.type_id] = counts.get(tensor.type_id, 0) + math.prod(tensor.shape)
    return counts


def _make_plan(
    engine: EngineClient, profile: ModelProfile, machine: Machine, settings: Settings, drafter: DrafterChoice
) -> LoadPlan:
    """Make a plan with buffer sizes from formulas if memory is ample, otherwise with exact sizes from llama.cpp."""
    make_plan = partial(
        plan, profile, machine, n_ctx=settings.n_ctx, speculation=settings.speculation and not settings.strict,
        extra_bytes=observed_memory.extra_bytes(profile.path), longest_n_ctx=context_limits.read_limit(profile.path),
        drafter=drafter,
    )  # fmt: skip
    try:
        rough_plan = make_plan()
    except PlanError:
        if profile.tensor_bytes > machine.available_bytes:
            raise
    else:
        fills_gpu = (
            rough_plan.options.uses_gpu and rough_plan.estimate.gpu > _EXACT_SIZES_FRACTION * machine.gpu_free_bytes
        )
        if rough_plan.estimate.total <= _EXACT_SIZES_FRACTION * machine.available_bytes and not fills_gpu:
            return rough_plan
    return make_plan(estimator=make_exact_estimator(engine, profile, machine.gpus))


def list_ranges_to_remove(
    profile: ModelProfile, options: LoadOptions, *, loads_heads: bool = False
) -> tuple[FileRange, ...]:
    """Return the ranges of the mapped model files that a loaded model does not need in memory.

    `loads_heads` is True if the prediction layers (MTP) of the model are loaded, too. The saved kernel benchmark shows
    which tensor types the backend repacks; without one, `REPACKED_TYPES` is used.
    """
    if loads_heads:
        profile = msgspec.structs.replace(profile, n_skipped_layers=0)
    speeds = load_measured_speeds()
    return list_unused_ranges(profile, options, speeds.repacked_types if speeds is not None else REPACKED_TYPES)


def _load(engine: EngineClient, profile: ModelProfile, load_plan: LoadPlan, on_event: LoadCallback) -> protocol.Loaded:
    prefix_dir = str(paths.prefix_dir())
    if not _is_utf8(prefix_dir):  # the protocol contains only text, so the prefix cache stays in memory
        prefix_dir = ""
    request = protocol.Load(
        id=engine.next_id(), plan=load_plan, prefix_dir=prefix_dir,
        unused_ranges=list_ranges_to_remove(
            profile, load_plan.options, loads_heads=load_plan.drafter is not None and load_plan.drafter.kind == "mtp"
        ),
    )  # fmt: skip
    try:
        return engine.load(request, lambda event: _forward_progress(event, on_event))
    except EngineDiedError:
        record_memory_kill(engine, load_plan)
        raise


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _make_retry_plan(
    error: EdgechatError,
    profile: ModelProfile,
    machine: Machine,
    failed_plan: LoadPlan,
    n_ctx: int | None,
    attempt: int,
    drafter: DrafterChoice,
) -> LoadPlan | None:
    """Return the plan for the next attempt (fewer GPU layers, no GPU, or less CPU memory); None if no retry is left.

    A plan without the GPU includes `drafter` if there is room; the others are smaller by the memory of the drafter.
    """
    if failed_plan.options.uses_gpu:
        if attempt == 0 and not machine.gpu_is_unified:
            return make_smaller_plan(profile, machine, failed_plan, n_ctx)
        machine_without_gpu = msgspec.structs.replace(machine, gpu_name="", gpu_free_bytes=0, gpu_is_unified=False)
        return plan(
            profile, machine_without_gpu, n_ctx=n_ctx, speculation=failed_plan.speculation,
            extra_bytes=observed_memory.extra_bytes(profile.path),
            longest_n_ctx=context_limits.read_limit(profile.path), drafter=drafter,
        )  # fmt: skip
    return make_smaller_plan(profile, machine, failed_plan, n_ctx) if _is_out_of_memory(error) else None


def _is_named(load_plan: LoadPlan) -> bool:
    """Return whether a plan uses the drafter that the user named."""
    return load_plan.drafter is not None and load_plan.drafter.is_named


def _replace_drafter(load_plan: LoadPlan, drafter: DrafterChoice, reason: str, warnings: list[str]) -> DrafterChoice:
    """Return the choice for the plan after `load_plan`, whose drafter cannot be used for a `reason`.

    Adds a warning, except about a drafter that the user named, which `find_load_warnings` reports.
    """
    if _is_named(load_plan):
        return msgspec.structs.replace(drafter.fallback or DrafterChoice(reason=reason), refusal=reason)
    warnings.append(f"Decoding without the drafter: {reason}.")
    return DrafterChoice(reason=reason, refusal=load_plan.reasons.get("draft_model", ""))


def _find_drafter_crash(failed_plan: LoadPlan) -> str:
    """Return how the engine died with the drafter of a plan, as a clause; "" if it did not."""
    drafter = failed_plan.drafter
    if drafter is None:
        return ""
    cause = drafter_crashes.find_crash(failed_plan.model_path, drafter.kind, drafter.model_path)
    return f"the engine died with {cause} when it opened the drafter" if cause else ""


def _is_out_of_memory(error: EdgechatError) -> bool:
    """Return whether llama.cpp reported too little memory, or the out-of-memory killer ended the engine."""
    was_killed = isinstance(error, EngineDiedError) and error.code == -KILL_SIGNAL
    return isinstance(error, PlanError) or was_killed


def _format_retry_warning(error: EdgechatError, failed_plan: LoadPlan, retry_plan: LoadPlan) -> str:
    first_line = str(error).partition("\n")[0]
    reason = f"The GPU could not be used ({first_line})" if failed_plan.options.uses_gpu else (
        f"Memory ran out with {format_size(failed_plan.estimate.total)} planned"
    )  # fmt: skip
    concessions = [concession for concession in retry_plan.concessions if concession not in failed_plan.concessions]
    return (
        f"{reason}. Loading again with less memory ({'; '.join(concessions) or format_size(retry_plan.estimate.total)})"
    )


def _forward_progress(event: protocol.AnyEvent, on_event: LoadCallback) -> None:
    if isinstance(event, protocol.BackendTesting):
        on_event(ModelLoadProgressed(phase="testing", message=event.message))
    elif isinstance(event, protocol.LoadProgressed):
        message = f"Loading the model: {event.fraction:.0%}"
        on_event(ModelLoadProgressed(phase="loading", message=message, fraction=event.fraction))
