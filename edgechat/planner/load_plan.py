"""Load plan: everything the engine needs to load a model."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from edgechat.planner.memory import LoadOptions, MemoryEstimate

N_BATCH: Final = 512


class LoadPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Options, threads and budgets for loading one model file, with the memory that they take."""

    model_path: str
    options: LoadOptions
    n_threads: int
    n_threads_batch: int
    n_batch: int
    prefix_ram_bytes: int
    """Budget of the prefix cache in RAM."""
    prefix_disk_bytes: int
    """Budget of the prefix cache on disk."""
    speculation: bool
    draft_tokens: int
    """Tokens of other conversations in which the drafter searches."""
    estimate: MemoryEstimate
    concessions: tuple[str, ...] = ()
    """What was reduced so that the model fits, as short texts."""
    reasons: dict[str, str] = {}
    """Explanation of each field or option, by its name."""


def manual_plan(model_path: str, *, n_threads: int, n_batch: int = N_BATCH, **fields: Any) -> LoadPlan:
    """Return a plan with given values, for benchmarks and tests; nothing is computed or checked.

    `fields` are fields of LoadPlan or LoadOptions.
    """
    plan_fields = {name: value for name, value in fields.items() if name in LoadPlan.__struct_fields__}
    options = {"n_seqs": 2} | {name: value for name, value in fields.items() if name not in plan_fields}
    defaults: dict[str, Any] = {
        "prefix_ram_bytes": 0, "prefix_disk_bytes": 0, "speculation": True, "draft_tokens": 0,
        "n_threads_batch": n_threads, "estimate": MemoryEstimate(weights=0, repacked=0, kv_cache=0, compute=0),
    }  # fmt: skip
    return LoadPlan(
        model_path=model_path, n_threads=n_threads, n_batch=n_batch, options=LoadOptions(**options),
        **(defaults | plan_fields),
    )  # fmt: skip
