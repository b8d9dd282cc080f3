"""Load a model into a resident engine that other clients of this user share, or attach to one that has it loaded."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from edgechat import paths
from edgechat.config import AUTO, OFF, Settings, parse_size
from edgechat.engine import protocol, resident_client
from edgechat.engine.client import EngineClient
from edgechat.engine.resident_client import ShareRequest
from edgechat.errors import EdgechatError, LocalSocketError, PlanError
from edgechat.hardware import vulkan
from edgechat.hardware.gpu import Gpu
from edgechat.modelfile.content_hash import read_stamp
from edgechat.modelfile.header import ModelHeader
from edgechat.modelfile.profile import ModelProfile
from edgechat.modelfile.split import list_model_files
from edgechat.models.events import LoadCallback, ModelLoadProgressed
from edgechat.models.load_records import record_memory_kill
from edgechat.planner.load_plan import LoadPlan

LoadResult = tuple[LoadPlan, protocol.Loaded, list[str]]


def make_share_request(header: ModelHeader, settings: Settings, client_name: str) -> ShareRequest | None:
    """Return what a client needs of a shared engine; None if the user wants a private engine process."""
    if resident_client.is_private():
        return None
    stamps = [f"{os.path.realpath(file)} {read_stamp(file)}" for file in list_model_files(Path(header.path))]
    options = (settings.gpu, settings.n_threads, settings.prefix_cache, settings.speculation, settings.strict)
    parts = [
        *stamps,
        repr(options),
        _describe_draft_model(settings.draft_model),
        str(paths.prefix_dir()),
        *_describe_surroundings(),
    ]
    return ShareRequest(
        client=protocol.ClientInfo(client_name, os.getpid()),
        keep_alive_s=settings.keep_alive,
        key=hashlib.sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()[:24],
        model_path=header.path,
        n_ctx=settings.n_ctx,
        budget_bytes=parse_size(settings.budget) if settings.budget else None,
    )


def _describe_draft_model(name: str) -> str:
    """Return the setting `draft_model`, with the path and the version of a file that it names."""
    if name in {AUTO, OFF}:
        return name
    from edgechat.models.draft_models import find_draft_file

    try:
        path = find_draft_file(name)
    except EdgechatError:  # loading the model reports the error
        return name
    return f"{os.path.realpath(path)} {read_stamp(path)}"


def _describe_surroundings() -> list[str]:
    """Return what a process inherits from its starter and what changes its speed: priority, CPUs and GPUs."""
    surroundings = [os.environ.get(name, "") for name in ("CUDA_VISIBLE_DEVICES", *vulkan.VARIABLES)]
    if sys.platform != "win32":
        surroundings.append(str(os.nice(0)))
    if hasattr(os, "sched_getaffinity"):
        surroundings.append(str(sorted(os.sched_getaffinity(0))))
    return surroundings


def open_model(
    engine: EngineClient,
    header: ModelHeader,
    settings: Settings,
    on_event: LoadCallback,
    start_renderer: Callable[[], None],
    client_name: str,
    replace: Callable[[], object],
) -> LoadResult:
    """Attach to an engine that has the model loaded, or load it; return the plan, the engine's response and warnings.

    If engines cannot be shared, for example because the folder of the sockets belongs to another user, the model is
    loaded into a private engine process, with a warning. After the end of a shared engine, the client's next request
    calls `replace`. Raises EdgechatError.
    """
    profile = ModelProfile.from_header(header)
    request = make_share_request(header, settings, client_name)
    engine.leave(request, replace if request is not None else None)

    def load(free_memory: Callable[[], bool] = lambda: False) -> LoadResult:
        engine.start()  # starts while this process imports the planner, which a client that attaches does not need
        from edgechat.models.loading import load_model

        return load_model(engine, profile, settings, on_event, start_renderer, free_memory)

    if request is None:
        return load()
    try:
        return _attach(engine, start_renderer) or _load_shared(engine, load, on_event, start_renderer)
    except LocalSocketError as error:
        engine.leave(None)
        plan, loaded, warnings = load()
        return plan, loaded, [*warnings, f"The model is not shared with other edgechat programs: {error}"]


def replace_engine(
    engine: EngineClient, failed_plan: LoadPlan, settings: Settings, gpus: Sequence[Gpu] | None = None
) -> LoadResult:
    """Attach to the engine with which another client has replaced an ended one, or load the model with a new plan.

    The memory can be less than at the last load. `reload_model` describes `gpus`. Raises EdgechatError.
    """

    def load(free_memory: Callable[[], bool] = lambda: False) -> LoadResult:
        from edgechat.models.loading import reload_model

        record_memory_kill(engine, failed_plan)
        plan, loaded = reload_model(engine, failed_plan, settings, gpus, free_memory)
        return plan, loaded, []

    try:
        return _attach(engine) or _load_shared(engine, load)
    except LocalSocketError:
        engine.leave(None)
        return load()


def _load_shared(
    engine: EngineClient, load: Callable[[Callable[[], bool]], LoadResult],
    on_event: LoadCallback = lambda event: None, on_attach: Callable[[], None] = lambda: None,
) -> LoadResult:  # fmt: skip
    """Call `load` while no other program loads a model, unless such a program has loaded this one meanwhile.

    Raises LocalSocketError and EdgechatError.
    """

    def report_wait() -> None:
        message = "Waiting for another edgechat program, which is loading a model"
        on_event(ModelLoadProgressed(phase="loading", message=message))

    with resident_client.lock_loading(report_wait, engine.check_not_closed):
        if (attached := _attach(engine, on_attach)) is not None:
            return attached
        try:
            return load(lambda: resident_client.stop_idle_engine(engine.pid))
        except PlanError as error:
            users = resident_client.describe_used_engines(engine.pid)
            raise PlanError(" ".join([str(error), *users])) from error


def _attach(engine: EngineClient, on_attach: Callable[[], None] = lambda: None) -> LoadResult | None:
    load = engine.attach()
    if load is None or engine.model_properties is None:
        return None
    on_attach()
    return load.plan, engine.model_properties, []
