"""From a model file to an engine that has it loaded."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from edgechat import paths
from edgechat.chat import events, renderer
from edgechat.config import Settings, size_bytes
from edgechat.engine import protocol
from edgechat.engine.client import EngineClient
from edgechat.hardware.cpu import usable_threads
from edgechat.hardware.memory import read_memory
from edgechat.modelfile.split import read_header
from edgechat.planner.plan import LoadPlan, plan

Listener = Callable[[events.LoadProgressed], None]


def load(
    engine: EngineClient, model_path: Path, settings: Settings, listen: Listener, begin: Callable[[], None]
) -> tuple[LoadPlan, protocol.Loaded]:
    """Check the model file, plan, and have `engine` load it. Raises EdgechatError.

    `begin` is called once the file is known to be sound, to start whatever can start beside the engine.
    """
    header = read_header(model_path)
    # The engine's process starts up while this one reads on.
    engine.start()
    begin()
    chosen = plan(
        header,
        available_bytes=available_bytes(settings),
        n_threads=_threads(settings),
        n_ctx=settings.n_ctx,
        disk_free_bytes=_disk_free_bytes(settings),
        speculation=settings.speculation and not settings.strict,
    )
    return chosen, engine.load(_request(engine.next_id(), chosen), lambda event: _tell(event, listen))


def available_bytes(settings: Settings) -> int:
    """What a plan may use: what the machine can give now, and no more than the budget."""
    available = read_memory().available_bytes
    budget = size_bytes(settings.budget) if settings.budget else None
    return available if budget is None else min(available, budget)


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


def _threads(settings: Settings) -> int:
    if settings.n_threads is None:
        return usable_threads()
    # Threads that wait for each other without a core each take minutes for a word.
    return min(settings.n_threads, os.cpu_count() or 1)


def _disk_free_bytes(settings: Settings) -> int:
    """Free bytes where prefixes are kept; 0 if none are to be."""
    if not settings.prefix_cache:
        return 0
    try:
        return paths.free_bytes(paths.prefix_dir())
    except OSError:
        return 0


def _request(request_id: int, chosen: LoadPlan) -> protocol.Load:
    return protocol.Load(
        id=request_id, path=chosen.model_path, n_ctx=chosen.n_ctx, n_threads=chosen.n_threads,
        n_batch=chosen.n_batch, n_ubatch=chosen.n_ubatch, use_mmap=chosen.use_mmap,
        use_extra_bufts=chosen.use_extra_bufts, n_seqs=chosen.n_seqs, prefix_ram_bytes=chosen.prefix_ram_bytes,
        prefix_disk_bytes=chosen.prefix_disk_bytes, prefix_dir=str(paths.prefix_dir()),
        speculation=chosen.speculation, n_rs_seq=chosen.n_rs_seq, draft_tokens=chosen.draft_tokens,
    )  # fmt: skip


def _tell(event: protocol.AnyEvent, listen: Listener) -> None:
    if isinstance(event, protocol.BackendTesting):
        listen(events.LoadProgressed(phase="testing", words=event.words))
    elif isinstance(event, protocol.LoadProgressed):
        words = f"loading the model: {event.fraction:.0%}"
        listen(events.LoadProgressed(phase="loading", words=words, fraction=event.fraction))
