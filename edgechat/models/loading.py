"""From a model file to an engine that has it loaded."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from edgechat import paths
from edgechat.chat import events
from edgechat.config import Settings
from edgechat.engine import protocol
from edgechat.engine.client import KILLED, EngineClient
from edgechat.errors import EdgechatError, EngineDiedError, ModelFileError, PlanError
from edgechat.hardware.memory import peak_pss_bytes
from edgechat.hardware.profile import Gpu
from edgechat.humanize import size
from edgechat.modelfile.header import ModelHeader
from edgechat.modelfile.split import read_header
from edgechat.models import instances, observed_memory
from edgechat.models.resources import current_machine, save_gpus, saved_gpus
from edgechat.planner import memory
from edgechat.planner.machine import Machine
from edgechat.planner.memory import REPACKED, LoadOptions, MemoryEstimate
from edgechat.planner.plan import LoadPlan, plan, smaller_plan
from edgechat.prompt import renderer
from edgechat.runtime.backends.bundle import Bundle, find_bundle

LoadCallback = Callable[[events.ModelLoadProgressed], None]

# Above this part of what is available, llama.cpp is asked for exact sizes first, which takes a tenth of a second or more.
_TIGHT: Final = 0.5
# A first plan, one with less of a GPU, and one without.
_ATTEMPTS: Final = 2


def load_model(
    engine: EngineClient, header: ModelHeader, settings: Settings, listen: LoadCallback, begin: Callable[[], None]
) -> tuple[LoadPlan, protocol.Loaded, list[str]]:
    """Plan, and have `engine` load a model; also what was not as planned. Raises EdgechatError.

    `begin` is called first, to start whatever can start beside the engine. If memory runs
    out all the same, one smaller plan is tried; with a GPU, one with less of it, and then one without.
    """
    # The engine's process starts up while this one reads on.
    engine.start()
    begin()
    bundle = find_bundle()
    gpus, said = _gpus(engine, settings, bundle, listen)
    said += bundle.left_out
    here = current_machine(settings, header.path, engine.pid, gpus)
    speculation = settings.speculation and not settings.strict
    chosen = _planned(engine, header, here, settings.n_ctx, speculation=speculation)
    loaded = None
    for attempt in range(_ATTEMPTS):
        try:
            loaded = _load(engine, chosen, listen)
            break
        except (PlanError, EngineDiedError, ModelFileError) as error:
            second = _second_plan(error, header, here, chosen, settings.n_ctx, attempt)
            if second is None:
                raise
            said.append(f"{_why(error, chosen)}: {_changes(chosen, second)}")
            chosen = second
    if loaded is None:
        loaded = _load(engine, chosen, listen)
    announce_loaded(engine, chosen)
    return chosen, loaded, said


def announce_loaded(engine: EngineClient, chosen: LoadPlan | None) -> None:
    """Let other programs of ours know what this one has in memory."""
    if engine.pid is not None and chosen is not None:
        instances.announce(engine.pid, chosen.model_path, chosen.estimate.engine)


def load_without_gpu(engine: EngineClient, failed: LoadPlan, settings: Settings) -> tuple[LoadPlan, protocol.Loaded]:
    """Load without a GPU that failed in use. Raises EdgechatError."""
    header = read_header(Path(failed.model_path))
    here = current_machine(settings, header.path, engine.pid, ())
    chosen = _planned(engine, header, here, settings.n_ctx, speculation=failed.speculation)
    loaded = _load(engine, chosen, lambda event: None)
    announce_loaded(engine, chosen)
    return chosen, loaded


def _gpus(
    engine: EngineClient, settings: Settings, bundle: Bundle, listen: LoadCallback
) -> tuple[list[Gpu], list[str]]:
    """GPUs that work here, and why others do not; nothing is asked where the build has no module for any."""
    if not settings.gpu or not bundle.gpu_modules:
        return [], []
    before = saved_gpus()
    found = engine.list_devices(benchmark=False, on_event=lambda event: _tell(event, listen))
    save_gpus(found.gpus)
    if found.gpus:
        return found.gpus, []
    problems = found.problems or [f"{gpu.name} is not there any more" for gpu in before]
    return [], [f"{words}; the CPU computes" for words in problems]


def _second_plan(
    error: EdgechatError, header: ModelHeader, here: Machine, failed: LoadPlan, n_ctx: int | None, attempt: int
) -> LoadPlan | None:
    """A smaller one after memory ran out, once; after failures with a GPU, one with less of it and then without."""
    if failed.options.n_gpu_layers:
        if attempt == 0 and not here.gpu_is_unified:
            return smaller_plan(header, here, failed, n_ctx)
        without = msgspec.structs.replace(here, gpu_name="", gpu_free_bytes=0, gpu_is_unified=False)
        return plan(header, without, n_ctx=n_ctx, speculation=failed.speculation)
    return smaller_plan(header, here, failed, n_ctx) if attempt == 0 and _ran_out(error) else None


def _why(error: EdgechatError, failed: LoadPlan) -> str:
    if failed.options.n_gpu_layers:
        return f"the GPU could not be used ({_first_line(error)})"
    return f"memory ran out with {size(failed.estimate.total)} planned"


def _first_line(error: EdgechatError) -> str:
    return str(error).partition("\n")[0]


def unload(engine: EngineClient, chosen: LoadPlan | None) -> None:
    """Note what a model took, before its engine gives it up or ends."""
    pid = engine.pid
    if pid is None or chosen is None:
        return
    instances.withdraw(pid)
    peak = peak_pss_bytes(pid)
    if peak and engine.has_loaded_one_model:
        observed_memory.record(chosen.model_path, chosen.estimate.engine - chosen.estimate.observed_extra, peak)


def _planned(
    engine: EngineClient, header: ModelHeader, here: Machine, n_ctx: int | None, *, speculation: bool
) -> LoadPlan:
    """By formulas where there is room enough; else with the sizes that llama.cpp reports."""
    extra = observed_memory.extra_bytes(header.path)

    def rough(options: LoadOptions) -> MemoryEstimate:
        return memory.estimate(header, options, REPACKED, extra)

    try:
        first = plan(header, here, n_ctx=n_ctx, speculation=speculation, estimator=rough)
    except PlanError:
        if header.tensor_bytes > here.available_bytes:
            raise
    else:
        fills_gpu = bool(first.options.n_gpu_layers) and first.estimate.gpu > _TIGHT * here.gpu_free_bytes
        if first.estimate.total <= _TIGHT * here.available_bytes and not fills_gpu:
            return first
    return plan(header, here, n_ctx=n_ctx, speculation=speculation, estimator=exactly(engine, header, extra))


def exactly(engine: EngineClient, header: ModelHeader, extra_bytes: int = 0) -> Callable[[LoadOptions], MemoryEstimate]:
    """Sizes as llama.cpp reports them; by formulas for what it cannot load."""

    def take(options: LoadOptions) -> MemoryEstimate:
        try:
            found = engine.probe_memory(
                protocol.ProbeMemory(id=engine.next_id(), model_path=header.path, options=options)
            )
        except EdgechatError:  # that is for the load to say
            return memory.estimate(header, options, REPACKED, extra_bytes)
        return memory.exact(header, options, found.memory, extra_bytes)

    return take


def _load(engine: EngineClient, chosen: LoadPlan, listen: LoadCallback) -> protocol.Loaded:
    request = protocol.Load(id=engine.next_id(), plan=chosen, prefix_dir=str(paths.prefix_dir()))
    return engine.load(request, lambda event: _tell(event, listen))


def _ran_out(error: EdgechatError) -> bool:
    """True if memory was what was missing: llama.cpp says so, or the system took the process that wanted more."""
    killed = isinstance(error, EngineDiedError) and error.code == -KILLED
    return isinstance(error, PlanError) or killed


def _changes(before: LoadPlan, after: LoadPlan) -> str:
    """What a second plan does differently, in words."""
    new = [words for words in after.concessions if words not in before.concessions]
    return f"loading again with less ({'; '.join(new) or size(after.estimate.total)})"


def load_warnings(settings: Settings, model_path: Path, loaded: protocol.Loaded) -> list[str]:
    """What is not as the user may think."""
    found = []
    wanted, most = settings.n_threads, os.cpu_count() or 1
    if wanted is not None and wanted > most:
        found.append(f"{wanted} threads are more than the {most} of this machine: using {most}")
    if loaded.chat_template is None:
        found.append(
            f"{model_path.name} has no chat template: using the format {renderer.PLAIN_NAME!r}, "
            "which it may not have been trained for"
        )
    return found


def _tell(event: protocol.AnyEvent, listen: LoadCallback) -> None:
    if isinstance(event, protocol.BackendTesting):
        listen(events.ModelLoadProgressed(phase="testing", words=event.message))
    elif isinstance(event, protocol.LoadProgressed):
        words = f"loading the model: {event.fraction:.0%}"
        listen(events.ModelLoadProgressed(phase="loading", words=words, fraction=event.fraction))
