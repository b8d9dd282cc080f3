"""Load a model into a resident engine that other clients of this user share, or attach to one that has it loaded."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

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


def make_share_request(header: ModelHeader, settings: Settings, client_name: str, drafter: str) -> ShareRequest:
    """Return what a client needs of a shared engine; `drafter` is the identity from `identify_drafter`."""
    stamps = [f"{os.path.realpath(file)} {read_stamp(file)}" for file in list_model_files(Path(header.path))]
    options = (settings.gpu, settings.n_threads, settings.prefix_cache, settings.speculation, settings.strict)
    parts = [
        *stamps,
        repr(options),
        drafter,
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


def identify_drafter(profile: ModelProfile, settings: Settings) -> tuple[str, str]:
    """Return what the engines that clients with these settings can share have in common as to drafts, and a refusal.

    This is `auto`, `off`, or the path and the version of the file that the setting `draft_model` names. If that file
    cannot be used, the second value says why, as a clause; such an engine is that with the heads of the model itself,
    which `auto` chooses, too, or that without a drafter.
    """
    name = settings.draft_model
    if name in {AUTO, OFF}:
        return name, ""
    if settings.strict or not settings.speculation or profile.is_embedding:
        return OFF, ""
    from edgechat.models.draft_models import find_draft_file, find_named_problem, find_own_heads

    problem = find_named_problem(profile, name)
    if not problem:
        with contextlib.suppress(EdgechatError):  # the file was deleted meanwhile; loading the model reports it
            path = find_draft_file(name)
            return f"{os.path.realpath(path)} {read_stamp(path)}", ""
    return AUTO if find_own_heads(profile) is not None else OFF, problem


def _describe_surroundings() -> list[str]:
    """Return what a process inherits from its starter and what changes its speed: priority, CPUs and GPUs."""
    surroundings = [os.environ.get(name, "") for name in ("CUDA_VISIBLE_DEVICES", *vulkan.VARIABLES)]
    if sys.platform != "win32":
        surroundings.append(str(os.nice(0)))
    if hasattr(os, "sched_getaffinity"):
        surroundings.append(str(sorted(os.sched_getaffinity(0))))
    return surroundings


def _is_plan_usable(load_plan: LoadPlan) -> bool:
    """Return whether an engine with this plan may get new requests: its GPU has not failed with the model since."""
    if not load_plan.options.uses_gpu:
        return True
    from edgechat.models.gpu_failures import is_gpu_refused

    return not is_gpu_refused(load_plan)


def open_model(
    engine: EngineClient,
    header: ModelHeader,
    settings: Settings,
    on_event: LoadCallback,
    start_renderer: Callable[[], None],
    client_name: str,
    replace: Callable[[LoadPlan], object],
) -> LoadResult:
    """Attach to an engine that has the model loaded, or load it; return the plan, the engine's response and warnings.

    If engines cannot be shared, for example because the folder of the sockets belongs to another user, the model is
    loaded into a private engine process, with a warning. After the end of the engine, the client's next request calls
    `replace` with the last plan. Raises EdgechatError.
    """
    profile = ModelProfile.from_header(header)
    request, refusal = None, ""
    if not resident_client.is_private():
        drafter, refusal = identify_drafter(profile, settings)
        request = make_share_request(header, settings, client_name, drafter)
    engine.leave(request, replace)

    def load(free_memory: Callable[[], bool] = lambda: False) -> LoadResult:
        engine.start()  # starts while this process imports the planner, which a client that attaches does not need
        from edgechat.models.loading import load_model

        return load_model(engine, profile, settings, on_event, start_renderer, free_memory)

    if request is None:
        return load()
    try:
        return _attach(engine, refusal, start_renderer) or _load_shared(engine, load, refusal, on_event, start_renderer)
    except LocalSocketError as error:
        engine.leave(None, replace)
        plan, loaded, warnings = load()
        return plan, loaded, [*warnings, f"The model is not shared with other edgechat programs: {error}"]


def replace_engine(
    engine: EngineClient, failed_plan: LoadPlan, settings: Settings, replace: Callable[[LoadPlan], object],
    gpus: Sequence[Gpu] | None = None,
) -> LoadResult:  # fmt: skip
    """Attach to the engine with which another client has replaced an ended one, or load the model with a new plan.

    The memory can be less than at the last load. `reload_model` describes `gpus`, and `open_model` `replace`. Raises
    EdgechatError.
    """

    def accepts(load_plan: LoadPlan) -> bool:
        return _is_plan_usable(load_plan) and (gpus is None or bool(gpus) or not load_plan.options.uses_gpu)

    def load(free_memory: Callable[[], bool] = lambda: False) -> LoadResult:
        from edgechat.models.loading import reload_model

        record_memory_kill(engine, failed_plan)
        plan, loaded = reload_model(engine, failed_plan, settings, gpus, free_memory)
        return plan, loaded, []

    refusal = failed_plan.reasons.get("draft_model", "")
    try:
        return _attach(engine, refusal, accepts=accepts) or _load_shared(engine, load, refusal, accepts=accepts)
    except LocalSocketError:
        engine.leave(None, replace)
        return load()


def _load_shared(
    engine: EngineClient, load: Callable[[Callable[[], bool]], LoadResult], refusal: str,
    on_event: LoadCallback = lambda event: None, on_attach: Callable[[], None] = lambda: None,
    accepts: Callable[[LoadPlan], bool] = _is_plan_usable,
) -> LoadResult:  # fmt: skip
    """Call `load` while no other program loads a model, unless such a program has loaded this one meanwhile.

    `accepts` returns whether an engine with a plan can be used. Raises LocalSocketError and EdgechatError.
    """

    def report_wait() -> None:
        message = "Waiting for another edgechat program, which is loading a model"
        on_event(ModelLoadProgressed(phase="loading", message=message))

    with resident_client.lock_loading(report_wait, engine.check_not_closed):
        if (attached := _attach(engine, refusal, on_attach, accepts)) is not None:
            return attached
        try:
            return load(lambda: resident_client.stop_idle_engine(engine.pid))
        except PlanError as error:
            users = resident_client.describe_used_engines(engine.pid)
            raise PlanError(" ".join([str(error), *users])) from error


def _attach(
    engine: EngineClient, refusal: str, on_attach: Callable[[], None] = lambda: None,
    accepts: Callable[[LoadPlan], bool] = _is_plan_usable,
) -> LoadResult | None:  # fmt: skip
    """Attach to an engine that has the model loaded; return None if there is none.

    `refusal` is the reason why the drafter that this client names is not used; the client that loaded the model can
    have named another one.
    """
    load = engine.attach(accepts)
    if load is None or engine.model_properties is None:
        return None
    on_attach()
    plan = load.plan
    if refusal and (plan.drafter is None or not plan.drafter.is_named):
        plan = msgspec.structs.replace(plan, reasons=plan.reasons | {"draft_model": refusal})
    return plan, engine.model_properties, []
