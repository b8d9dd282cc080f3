"""Loads a model into an engine, and retries with a smaller plan if memory runs out."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from edgechat import paths
from edgechat.config import Settings
from edgechat.engine import protocol
from edgechat.engine.client import KILL_SIGNAL, EngineClient
from edgechat.errors import EdgechatError, EngineDiedError, ModelFileError, PlanError
from edgechat.hardware.gpu import Gpu
from edgechat.hardware.memory import peak_pss_bytes
from edgechat.humanize import size
from edgechat.modelfile.profile import ModelProfile
from edgechat.modelfile.split import read_header
from edgechat.models import instances, observed_memory
from edgechat.models.events import LoadCallback, ModelLoadProgressed
from edgechat.models.resources import current_machine, save_gpus, saved_gpus
from edgechat.planner.load_plan import LoadPlan
from edgechat.planner.machine import Machine
from edgechat.planner.memory import BufferSizes, LoadOptions, formula_buffers, reported_buffers
from edgechat.planner.plan import Estimator, plan, smaller_plan
from edgechat.prompt import renderer
from edgechat.runtime.backends.bundle import Bundle, find_bundle

# Fraction of the available memory above which llama.cpp computes exact sizes first, which takes at least 0.1 s.
_EXACT_SIZES_FRACTION: Final = 0.5
# Maximum number of retries: one on a CPU, two with a GPU. A failure of the last retry is raised.
_MAX_RETRIES: Final = 2


def load_model(
    engine: EngineClient, profile: ModelProfile, settings: Settings, on_event: LoadCallback, begin: Callable[[], None]
) -> tuple[LoadPlan, protocol.Loaded, list[str]]:
    """Plan and load a model; return the plan, the engine's answer, and warnings. Raises EdgechatError.

    `begin` is called first, to start other processes while the engine starts. If memory runs out in spite of the plan,
    a smaller plan is tried; with a GPU, first a plan with fewer GPU layers, then a plan without the GPU.
    """
    engine.start()  # the engine process starts up while this process continues
    begin()
    bundle = find_bundle()
    gpus, warnings = _find_gpus(engine, settings, bundle, on_event)
    warnings += bundle.left_out
    machine = current_machine(settings, profile.path, engine.pid, gpus)
    speculation = settings.speculation and not settings.strict
    load_plan = _make_plan(engine, profile, machine, settings.n_ctx, speculation=speculation)
    loaded = None
    for attempt in range(_MAX_RETRIES):
        try:
            loaded = _load(engine, load_plan, on_event)
            break
        except (PlanError, EngineDiedError, ModelFileError) as error:
            retry = _retry_plan(error, profile, machine, load_plan, settings.n_ctx, attempt)
            if retry is None:
                raise
            warnings.append(_retry_warning(error, load_plan, retry))
            load_plan = retry
    if loaded is None:
        loaded = _load(engine, load_plan, on_event)
    announce_loaded(engine, load_plan)
    return load_plan, loaded, warnings


def load_without_gpu(
    engine: EngineClient, failed_plan: LoadPlan, settings: Settings
) -> tuple[LoadPlan, protocol.Loaded]:
    """Load the model of `failed_plan` on the CPU after a GPU failure. Raises EdgechatError."""
    profile = ModelProfile.from_header(read_header(Path(failed_plan.model_path)))
    machine = current_machine(settings, profile.path, engine.pid, ())
    load_plan = _make_plan(engine, profile, machine, settings.n_ctx, speculation=failed_plan.speculation)
    loaded = _load(engine, load_plan, lambda event: None)
    announce_loaded(engine, load_plan)
    return load_plan, loaded


def announce_loaded(engine: EngineClient, load_plan: LoadPlan | None) -> None:
    """Record the engine's memory, so that the plans of other edgechat processes leave it free."""
    if engine.pid is not None and load_plan is not None:
        instances.announce(engine.pid, load_plan.model_path, load_plan.estimate.engine)


def unload(engine: EngineClient, load_plan: LoadPlan | None) -> None:
    """Record the model's peak memory before its engine frees it or ends."""
    pid = engine.pid
    if pid is None or load_plan is None:
        return
    instances.withdraw(pid)
    peak_bytes = peak_pss_bytes(pid)
    if peak_bytes and engine.has_loaded_one_model:
        memory = load_plan.estimate
        observed_memory.record(load_plan.model_path, memory.engine - memory.observed_extra, peak_bytes)


def exact_estimator(engine: EngineClient, profile: ModelProfile) -> Estimator:
    """Return an estimator that asks llama.cpp for buffer sizes, or uses formulas for a file that llama.cpp rejects."""

    def buffers(options: LoadOptions) -> BufferSizes:
        request = protocol.ProbeMemory(id=engine.next_id(), model_path=profile.path, options=options)
        try:
            return reported_buffers(profile, options, engine.probe_memory(request).memory)
        except EdgechatError:  # loading the model will report the error
            return formula_buffers(profile, options)

    return buffers


def load_warnings(settings: Settings, model_path: Path, loaded: protocol.Loaded) -> list[str]:
    """Return warnings about a loaded model: fewer threads than set, or no chat template."""
    warnings = []
    n_cpus = os.cpu_count() or 1
    if settings.n_threads is not None and settings.n_threads > n_cpus:
        warnings.append(f"This machine has {n_cpus} hardware threads: using {n_cpus} instead of {settings.n_threads}.")
    if loaded.chat_template is None:
        warnings.append(
            f"{model_path.name} has no chat template: using the format {renderer.PLAIN_NAME!r}, which may differ from "
            "the format that the model was trained with."
        )
    return warnings


def _find_gpus(
    engine: EngineClient, settings: Settings, bundle: Bundle, on_event: LoadCallback
) -> tuple[list[Gpu], list[str]]:
    """Return the usable GPUs, and warnings about others. Without a GPU backend, the engine is not asked."""
    if not settings.gpu or not bundle.gpu_modules:
        return [], []
    before = saved_gpus()
    devices = engine.list_devices(benchmark=False, on_event=lambda event: _forward(event, on_event))
    save_gpus(devices.gpus)
    if devices.gpus:
        return devices.gpus, []
    problems = devices.problems or [f"{gpu.name} was not found" for gpu in before]
    return [], [f"{problem}; using the CPU" for problem in problems]


def _make_plan(
    engine: EngineClient, profile: ModelProfile, machine: Machine, n_ctx: int | None, *, speculation: bool
) -> LoadPlan:
    """Make a plan with sizes from formulas if memory is ample, otherwise with the sizes that llama.cpp reports."""
    extra_bytes = observed_memory.extra_bytes(profile.path)
    try:
        rough = plan(profile, machine, n_ctx=n_ctx, speculation=speculation, extra_bytes=extra_bytes)
    except PlanError:
        if profile.tensor_bytes > machine.available_bytes:
            raise
    else:
        fills_gpu = (
            bool(rough.options.n_gpu_layers) and rough.estimate.gpu > _EXACT_SIZES_FRACTION * machine.gpu_free_bytes
        )
        if rough.estimate.total <= _EXACT_SIZES_FRACTION * machine.available_bytes and not fills_gpu:
            return rough
    return plan(
        profile, machine, n_ctx=n_ctx, speculation=speculation, extra_bytes=extra_bytes,
        estimator=exact_estimator(engine, profile),
    )  # fmt: skip


def _load(engine: EngineClient, load_plan: LoadPlan, on_event: LoadCallback) -> protocol.Loaded:
    request = protocol.Load(id=engine.next_id(), plan=load_plan, prefix_dir=str(paths.prefix_dir()))
    return engine.load(request, lambda event: _forward(event, on_event))


def _retry_plan(
    error: EdgechatError, profile: ModelProfile, machine: Machine, failed: LoadPlan, n_ctx: int | None, attempt: int
) -> LoadPlan | None:
    """Return the plan for the next attempt (fewer GPU layers, no GPU, or less CPU memory); None to give up."""
    if failed.options.n_gpu_layers:
        if attempt == 0 and not machine.gpu_is_unified:
            return smaller_plan(profile, machine, failed, n_ctx)
        without_gpu = msgspec.structs.replace(machine, gpu_name="", gpu_free_bytes=0, gpu_is_unified=False)
        return plan(profile, without_gpu, n_ctx=n_ctx, speculation=failed.speculation)
    return smaller_plan(profile, machine, failed, n_ctx) if attempt == 0 and _ran_out_of_memory(error) else None


def _ran_out_of_memory(error: EdgechatError) -> bool:
    """Return True if llama.cpp reported too little memory, or if the out-of-memory killer ended the engine."""
    killed = isinstance(error, EngineDiedError) and error.code == -KILL_SIGNAL
    return isinstance(error, PlanError) or killed


def _retry_warning(error: EdgechatError, failed: LoadPlan, retry: LoadPlan) -> str:
    first_line = str(error).partition("\n")[0]
    reason = f"the GPU could not be used ({first_line})" if failed.options.n_gpu_layers else (
        f"memory ran out with {size(failed.estimate.total)} planned"
    )  # fmt: skip
    concessions = [concession for concession in retry.concessions if concession not in failed.concessions]
    return f"{reason}: loading again with less memory ({'; '.join(concessions) or size(retry.estimate.total)})"


def _forward(event: protocol.AnyEvent, on_event: LoadCallback) -> None:
    if isinstance(event, protocol.BackendTesting):
        on_event(ModelLoadProgressed(phase="testing", message=event.message))
    elif isinstance(event, protocol.LoadProgressed):
        message = f"loading the model: {event.fraction:.0%}"
        on_event(ModelLoadProgressed(phase="loading", message=message, fraction=event.fraction))
