"""Program that lets a model drafter run out of memory: `python -m tests.faults.exhausted_drafter KIND WHEN FOLDER`.

The limit of the data segment is real: from the moment WHEN on, the process cannot get the memory that the drafter
needs. The program checks that the texts are those of the target alone, and prints the error of the drafter as JSON.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from edgechat.hardware.memory import return_freed_memory
from edgechat.planner.drafter_plan import DRAFTER_CELLS, DrafterKind, DrafterPlan
from edgechat.runtime.backends import probe
from edgechat.runtime.backends.bundle import find_bundle
from edgechat.runtime.bindings import Bindings, load
from edgechat.runtime.context import Context
from edgechat.runtime.model_drafter import NativeDrafter, open_model_drafter
from tests.draft_models import CYCLE, follow_chain
from tests.engine.test_engine_drafters import DraftingModel
from tests.engine.test_model_drafter import write_pair
from tests.engine.text_models import SteppedModel

# Memory that the process can still get, for the work of Python; each drafter needs several times as much.
_HEADROOM_BYTES: Final = 6 << 20
_N_CELLS: Final = 32768
_N_CTX: Final = 4096
_PROMPT: Final = [1, *CYCLE[20:60]]
_BLOCK_SIZES: Final = (*(1 << k for k in range(26, 10, -1)), *range(1040, 0, -16))


def main() -> None:
    kind, when, folder = sys.argv[1:]
    bundle = find_bundle()
    native = load(bundle, probe.choose_module(bundle)[0])
    moment, _, n_free = when.partition(" ")
    if moment == "draft":
        error = exhaust_draft(native, kind, Path(folder), int(n_free))  # type: ignore[arg-type]
    else:
        error = {"open": exhaust_open, "wake": exhaust_wake}[moment](
            native, kind, Path(folder)  # type: ignore[arg-type]
        )  # fmt: skip
    print(json.dumps(error))  # noqa: T201  (the result for the test)


def open_model(native: Bindings, kind: DrafterKind, folder: Path, n_cells: int = _N_CELLS) -> DraftingModel:
    """Open a target with its drafter, which needs much memory for its cells, and generate a reply with drafts."""
    target, draft = write_pair(kind, folder)
    model = DraftingModel(native, target, kind, draft, n_ctx=_N_CTX, n_cells=n_cells)
    assert ask(model) > 0
    return model


def ask(model: SteppedModel) -> int:
    """Generate a reply, check its text, and return how many of the model's draft tokens were accepted."""
    output, final = model.ask(_PROMPT, max_tokens=100)
    assert output == follow_chain(_PROMPT[-1], 100)
    sources = final.stats.drafts_by_source
    return sources["model"].n_accepted if isinstance(sources, dict) and "model" in sources else 0


def limit_memory(n_bytes: int = _HEADROOM_BYTES) -> None:
    """Let this process get at most `n_bytes` more memory."""
    return_freed_memory()
    status = Path("/proc/self/status").read_text(encoding="ascii")
    used_bytes = 1024 * int(status.partition("VmData:")[2].split()[0])
    resource.setrlimit(resource.RLIMIT_DATA, (used_bytes + n_bytes, resource.RLIM_INFINITY))


def remove_limit() -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def exhaust_open(native: Bindings, kind: DrafterKind, folder: Path) -> str:
    """Memory runs out when the drafter is opened; the model is loaded without it."""
    target, draft = write_pair(kind, folder)
    plan = DrafterPlan(kind=kind, model_path=str(draft or ""), n_seqs=4, n_cells=_N_CELLS)

    def open_limited(context: Context, plan: DrafterPlan, **options: Any) -> NativeDrafter:
        limit_memory()
        return open_model_drafter(context, plan, **options)

    model = SteppedModel(
        native, target, open_drafter=open_limited, drafter=plan, n_ctx=_N_CTX, n_rs_seq=7, n_batch=128, draft_tokens=0
    )  # fmt: skip
    assert model.model.drafter is None
    assert ask(model) == 0
    return model.model.drafter_error


def exhaust_wake(native: Bindings, kind: DrafterKind, folder: Path) -> str:
    """Memory runs out when a sleeping drafter is woken; it sleeps on, and is woken when memory is free again."""
    model = open_model(native, kind, folder)
    assert model.source.free_memory()
    schedule = model.source.profile.schedule
    for is_limited in (True, False):
        if is_limited:
            limit_memory()
        else:
            remove_limit()
        schedule.n_waited = schedule.interval
        model.model.idle_step(lambda _allow: None)
        assert model.source.is_asleep == is_limited
        assert (model.drafter.context is None) == is_limited
        assert (ask(model) == 0) == is_limited
    return model.manager.drafter_error


def exhaust_draft(native: Bindings, kind: DrafterKind, folder: Path, n_free: int) -> str:
    """Memory runs out in a draft: llama.cpp can allocate a block of `n_free` bytes, and nothing else."""
    model = open_model(native, kind, folder, DRAFTER_CELLS)
    library: Any = native.edgechat
    n_calls = 0
    draft: Callable[..., int] = library.edgechat_draft_tokens

    def draft_without_memory(*arguments: Any) -> int:
        nonlocal n_calls
        n_calls += 1
        if n_calls != 3:
            return draft(*arguments)
        with fill_memory(n_free):
            return draft(*arguments)

    library.edgechat_draft_tokens = draft_without_memory
    n_accepted = ask(model)
    assert n_calls >= 3
    if model.source.is_usable:  # the memory sufficed
        assert ask(model) > 0
        return ""
    assert n_accepted <= 2 * model.drafter.max_tokens
    assert ask(model) == 0
    assert model.drafter.context is None
    return model.manager.drafter_error


@contextlib.contextmanager
def fill_memory(n_free: int) -> Iterator[None]:
    """Allocate all memory that malloc can get, except for one block of `n_free` bytes (none if it is 0)."""
    libc = ctypes.CDLL(None)
    malloc, free = libc.malloc, libc.free
    malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    free.restype, free.argtypes = None, [ctypes.c_void_p]
    blocks, n_blocks = (ctypes.c_void_p * 8_000_000)(), 0
    spare_block = malloc(n_free) if n_free else None
    resource.setrlimit(resource.RLIMIT_DATA, (4096, resource.RLIM_INFINITY))  # Linux ignores a limit of 0
    for size in _BLOCK_SIZES:
        while (block := malloc(size)) is not None:
            blocks[n_blocks] = block
            n_blocks += 1
    free(spare_block)
    try:
        yield
    finally:
        remove_limit()
        for i in range(n_blocks):
            free(blocks[i])


if __name__ == "__main__":
    main()
