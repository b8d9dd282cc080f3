"""From a model file to an engine that has it loaded."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from edgechat import paths
from edgechat.chat import events, learned, renderer, running
from edgechat.chat.machine import machine
from edgechat.config import Settings
from edgechat.engine import protocol
from edgechat.engine.client import KILLED, EngineClient
from edgechat.errors import EdgechatError, EngineDiedError, PlanError
from edgechat.hardware.memory import peak_bytes
from edgechat.modelfile.header import ModelHeader
from edgechat.modelfile.split import read_header
from edgechat.planner import memory
from edgechat.planner.memory import REPACKED, LoadOptions, MemoryEstimate
from edgechat.planner.plan import LoadPlan, Machine, mib, plan, smaller

Listener = Callable[[events.LoadProgressed], None]

# Above this part of what is available, llama.cpp is asked for exact sizes first, which takes a tenth of a second or more.
_TIGHT: Final = 0.5


def load(
    engine: EngineClient, model_path: Path, settings: Settings, listen: Listener, begin: Callable[[], None]
) -> tuple[LoadPlan, protocol.Loaded, list[str]]:
    """Check the model file, plan, and have `engine` load it; also what was not as planned. Raises EdgechatError.

    `begin` is called once the file is known to be sound, to start whatever can start beside the engine. If memory runs
    out all the same, one smaller plan is tried.
    """
    header = read_header(model_path)
    # The engine's process starts up while this one reads on.
    engine.start()
    begin()
    here = machine(settings, header.path, engine.pid)
    speculation = settings.speculation and not settings.strict
    chosen = _planned(engine, header, here, settings.n_ctx, speculation=speculation)
    said: list[str] = []
    try:
        loaded = _load(engine, chosen, listen)
    except (PlanError, EngineDiedError) as error:
        second = smaller(header, here, chosen, settings.n_ctx) if _ran_out(error) else None
        if second is None:
            raise
        said.append(f"memory ran out with {mib(chosen.estimate.total)} planned: {_changes(chosen, second)}")
        chosen, loaded = second, _load(engine, second, listen)
    if engine.pid is not None:
        running.announce(engine.pid, chosen.model_path, chosen.estimate.engine)
    return chosen, loaded, said


def unload(engine: EngineClient, chosen: LoadPlan | None) -> None:
    """Note what a model took, before its engine gives it up or ends."""
    pid = engine.pid
    if pid is None or chosen is None:
        return
    running.withdraw(pid)
    peak = peak_bytes(pid)
    if peak:
        learned.record(chosen.model_path, chosen.estimate.engine - chosen.estimate.learned, peak)


def _planned(
    engine: EngineClient, header: ModelHeader, here: Machine, n_ctx: int | None, *, speculation: bool
) -> LoadPlan:
    """By formulas where there is room enough; else with the sizes that llama.cpp reports."""
    extra = learned.extra_bytes(header.path)

    def rough(options: LoadOptions) -> MemoryEstimate:
        return memory.estimate(header, options, REPACKED, extra)

    try:
        first = plan(header, here, n_ctx=n_ctx, speculation=speculation, estimator=rough)
    except PlanError:
        if header.tensor_bytes > here.available_bytes:
            raise
    else:
        if first.estimate.total <= _TIGHT * here.available_bytes:
            return first
    return plan(header, here, n_ctx=n_ctx, speculation=speculation, estimator=exactly(engine, header, extra))


def exactly(engine: EngineClient, header: ModelHeader, extra_bytes: int = 0) -> Callable[[LoadOptions], MemoryEstimate]:
    """Sizes as llama.cpp reports them; by formulas for what it cannot load."""
    fails = False

    def take(options: LoadOptions) -> MemoryEstimate:
        nonlocal fails
        rough = memory.estimate(header, options, REPACKED, extra_bytes)
        if fails:
            return rough
        try:
            found = engine.probe(protocol.Probe(id=engine.next_id(), path=header.path, options=options))
        except EdgechatError:
            fails = True
            return rough
        return memory.exact(header, options, found.memory, extra_bytes)

    return take


def _load(engine: EngineClient, chosen: LoadPlan, listen: Listener) -> protocol.Loaded:
    request = protocol.Load(id=engine.next_id(), plan=chosen, prefix_dir=str(paths.prefix_dir()))
    return engine.load(request, lambda event: _tell(event, listen))


def _ran_out(error: EdgechatError) -> bool:
    """True if memory was what was missing: llama.cpp says so, or the system took the process that wanted more."""
    killed = isinstance(error, EngineDiedError) and error.code == -KILLED
    return isinstance(error, PlanError) or killed


def _changes(before: LoadPlan, after: LoadPlan) -> str:
    """What a second plan does differently, in words."""
    new = [words for words in after.trades if words not in before.trades]
    return f"loading again with less ({'; '.join(new) or mib(after.estimate.total)})"


def warnings(settings: Settings, model_path: Path, loaded: protocol.Loaded) -> list[str]:
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


def _tell(event: protocol.AnyEvent, listen: Listener) -> None:
    if isinstance(event, protocol.BackendTesting):
        listen(events.LoadProgressed(phase="testing", words=event.words))
    elif isinstance(event, protocol.LoadProgressed):
        words = f"loading the model: {event.fraction:.0%}"
        listen(events.LoadProgressed(phase="loading", words=words, fraction=event.fraction))
