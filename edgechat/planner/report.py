"""What models take, side by side."""

from __future__ import annotations

import msgspec

from edgechat.errors import PlanError
from edgechat.modelfile.header import ModelHeader
from edgechat.planner.plan import DEFAULT_N_CTX, MIN_N_CTX, MemoryEstimate, estimate, plan


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One model."""

    name: str
    quant: str
    total_bytes: int
    memory: MemoryEstimate
    n_ctx: int
    fits: bool
    verdict: str


def report(name: str, header: ModelHeader, available_bytes: int, n_ctx: int | None, n_threads: int) -> Row:
    """What a model takes within `available_bytes`, or what it would take at least."""
    try:
        made = plan(header, available_bytes=available_bytes, n_threads=n_threads, n_ctx=n_ctx)
    except PlanError:
        wanted = n_ctx or min(header.n_ctx_train or DEFAULT_N_CTX, DEFAULT_N_CTX)
        least = estimate(header, n_ctx or min(wanted, MIN_N_CTX), use_mmap=False)
        return Row(
            name=name, quant=header.quant, total_bytes=least.total, memory=least, n_ctx=n_ctx or min(wanted, MIN_N_CTX),
            fits=False, verdict=f"needs {least.total / 1e6:,.0f} MB at least",
        )  # fmt: skip
    verdict = "fits"
    if n_ctx is None and made.n_ctx < min(header.n_ctx_train or DEFAULT_N_CTX, DEFAULT_N_CTX):
        verdict = f"fits with a context of {made.n_ctx}"
    if not made.use_mmap and made.estimate.repacked == 0:
        verdict += ", read instead of mapped"
    return Row(
        name=name, quant=header.quant, total_bytes=made.estimate.total, memory=made.estimate, n_ctx=made.n_ctx, fits=True,
        verdict=verdict,
    )  # fmt: skip
