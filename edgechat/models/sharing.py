"""Load a model into a resident engine that other clients of this user share, or attach to one that has it loaded."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from edgechat import paths
from edgechat.config import Settings, parse_size
from edgechat.engine import protocol, resident_client
from edgechat.engine.client import EngineClient
from edgechat.engine.resident_client import ShareRequest
from edgechat.errors import LocalSocketError, PlanError
from edgechat.modelfile.content_hash import read_stamp
from edgechat.modelfile.header import ModelHeader
from edgechat.modelfile.profile import ModelProfile
from edgechat.modelfile.split import list_model_files
from edgechat.models.events import LoadCallback, ModelLoadProgressed
from edgechat.planner.load_plan import LoadPlan

LoadResult = tuple[LoadPlan, protocol.Loaded, list[str]]


def make_share_request(header: ModelHeader, settings: Settings, client_name: str) -> ShareRequest | None:
    """Return what a client needs of a shared engine; None if the user wants a private engine process."""
    if resident_client.is_private():
        return None
    stamps = [f"{os.path.realpath(file)} {read_stamp(file)}" for file in list_model_files(Path(header.path))]
    options = (settings.gpu, settings.n_threads, settings.prefix_cache, settings.speculation, settings.strict)
    parts = [*stamps, repr(options), str(paths.prefix_dir())]
    return ShareRequest(
        client=protocol.ClientInfo(client_name, os.getpid()),
        keep_alive_s=settings.keep_alive,
        key=hashlib.sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()[:24],
        model_path=header.path,
        n_ctx=settings.n_ctx,
        budget_bytes=parse_size(settings.budget) if settings.budget else None,
    )


def open_model(
    engine: EngineClient,
    header: ModelHeader,
    settings: Settings,
    on_event: LoadCallback,
    start_renderer: Callable[[], None],
    client_name: str,
) -> LoadResult:
    """Attach to an engine that has the model loaded, or load it; return the plan, the engine's response and warnings.

    If engines cannot be shared, for example because the folder of the sockets belongs to another user, the model is
    loaded into a private engine process, with a warning. Raises EdgechatError.
    """
    profile = ModelProfile.from_header(header)
    request = make_share_request(header, settings, client_name)
    engine.leave(request)
    if request is None:
        return _load(engine, profile, settings, on_event, start_renderer)
    try:
        return _open_shared(engine, profile, settings, on_event, start_renderer)
    except LocalSocketError as error:
        engine.leave(None)
        plan, loaded, warnings = _load(engine, profile, settings, on_event, start_renderer)
        return plan, loaded, [*warnings, f"The model is not shared with other edgechat programs: {error}"]


def _open_shared(
    engine: EngineClient, profile: ModelProfile, settings: Settings, on_event: LoadCallback,
    start_renderer: Callable[[], None],
) -> LoadResult:  # fmt: skip
    if (result := _attach(engine, start_renderer)) is not None:
        return result

    def report_wait() -> None:
        message = "Waiting for another edgechat program, which is loading a model"
        on_event(ModelLoadProgressed(phase="loading", message=message))

    with resident_client.lock_loading(report_wait):
        if (result := _attach(engine, start_renderer)) is not None:
            return result
        resident_client.stop_outdated_engines(profile.path)
        try:
            return _load(
                engine, profile, settings, on_event, start_renderer,
                free_memory=lambda: resident_client.stop_idle_engine(engine.pid),
            )  # fmt: skip
        except PlanError as error:
            raise PlanError(" ".join([str(error), *resident_client.describe_used_engines()])) from error


def _attach(engine: EngineClient, start_renderer: Callable[[], None]) -> LoadResult | None:
    load = engine.attach()
    if load is None or engine.model_properties is None:
        return None
    start_renderer()
    return load.plan, engine.model_properties, []


def _load(
    engine: EngineClient, profile: ModelProfile, settings: Settings, on_event: LoadCallback,
    start_renderer: Callable[[], None], free_memory: Callable[[], bool] = lambda: False,
) -> LoadResult:  # fmt: skip
    engine.start()  # starts while this process imports the planner, which a client that attaches does not need
    from edgechat.models.loading import load_model

    return load_model(engine, profile, settings, on_event, start_renderer, free_memory)
