"""Load plan: the options with which the engine loads a model, and a memory estimate."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from edgechat.hardware.gpu import Gpu
from edgechat.planner.context_growth import ContextGrowth
from edgechat.planner.drafter_plan import DrafterPlan
from edgechat.planner.memory import LoadOptions, MemoryEstimate

N_BATCH: Final = 512
# The prefix cache gets 1/8 of the remaining memory and 1/10 of the free disk space, so that it stays small on a small
# machine.
PREFIX_RAM_DIVISOR: Final = 8
MAX_PREFIX_RAM_BYTES: Final = 2 << 30
PREFIX_DISK_DIVISOR: Final = 10
MAX_PREFIX_DISK_BYTES: Final = 4 << 30


class LoadPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Options, threads and cache budgets for loading one model file, with a memory estimate."""

    model_path: str
    options: LoadOptions
    n_threads: int
    n_threads_batch: int
    n_batch: int
    adapts_n_threads: bool = False
    """Whether decode steps use fewer threads while other programs are busy. The number of threads can change the last
    bits of the logits."""
    prefix_ram_bytes: int
    """Budget of the prefix cache in RAM, in bytes."""
    prefix_disk_bytes: int
    """Budget of the prefix cache on disk, in bytes."""
    gpu_module: str = ""
    """Path of the module that computes on the GPU; "" without a GPU, or if it is unknown."""
    gpus: tuple[Gpu, ...] = ()
    """GPUs that the model may use: those that passed their tests with its weights and are not slow; empty without a
    GPU, or if they are unknown."""
    speculation: bool
    draft_tokens: int
    """Capacity of the draft corpus (texts of other conversations), in tokens."""
    drafter: DrafterPlan | None = None
    """Model drafter; None if only the text is searched for drafts."""
    estimate: MemoryEstimate
    """Memory with a context of `options.n_ctx` tokens."""
    growth: ContextGrowth | None = None
    """Lengths between which the engine resizes the context; None if its length is fixed at `options.n_ctx`."""
    concessions: tuple[str, ...] = ()
    """Short texts about the options that were reduced to make the model fit."""
    reasons: dict[str, str] = {}
    """Reason for each value, by name of the field or option; for `draft_model`, why the drafter that this setting names
    is not used."""

    @property
    def initial_n_ctx(self) -> int:
        """Context length with which the engine opens the context, in tokens."""
        return self.growth.initial_n_ctx if self.growth is not None else self.options.n_ctx

    @property
    def max_n_ctx(self) -> int:
        """Largest context length that the engine may use, in tokens."""
        return self.growth.max_n_ctx if self.growth is not None else self.options.n_ctx


def make_manual_plan(model_path: str, *, n_threads: int, n_batch: int = N_BATCH, **fields: Any) -> LoadPlan:
    """Return a plan with the given values, for benchmarks and tests, without checking whether the model fits.

    `fields` sets further fields of LoadPlan or LoadOptions.
    """
    plan_fields = {name: value for name, value in fields.items() if name in LoadPlan.__struct_fields__}
    options = {"n_seqs": 2} | {name: value for name, value in fields.items() if name not in plan_fields}
    defaults: dict[str, Any] = {
        "prefix_ram_bytes": 0, "prefix_disk_bytes": 0, "speculation": True, "draft_tokens": 0,
        "n_threads_batch": n_threads, "estimate": MemoryEstimate(weights=0, repacked_weights=0, kv_cache=0, compute=0),
    }  # fmt: skip
    return LoadPlan(
        model_path=model_path, n_threads=n_threads, n_batch=n_batch, options=LoadOptions(**options),
        **(defaults | plan_fields),
    )  # fmt: skip
