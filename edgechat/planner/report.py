"""Output formats of plans: table rows, JSON and text."""

from __future__ import annotations

import math
from typing import Any, Final

import msgspec

from edgechat.humanize import size
from edgechat.planner.load_plan import LoadPlan
from edgechat.planner.memory import MemoryEstimate
from edgechat.planner.ranking import PROMPT_TOKENS, Evaluation

BAR_WIDTH: Final = 24
"""Width of a memory bar in characters."""
MEMORY_PARTS: Final = (
    ("weights", "#", "weights"),
    ("repacked", "+", "repacked weights"),
    ("kv_cache", "k", "KV cache"),
    ("compute", "c", "compute buffers"),
    ("output", "c", "logits"),
    ("vocabulary", "p", "vocabulary and graphs"),
    ("speculation", "s", "speculation"),
    ("process", "p", "processes"),
    ("observed_extra", "p", "observed beyond the estimate"),
)
"""Fields of MemoryEstimate, with their character in a memory bar and their label."""


class PlanRow(msgspec.Struct, frozen=True, kw_only=True):
    """Table row of one candidate of `edgechat plan`. The encoded field names are the JSON format."""

    name: str
    quant: str
    is_installed: bool = msgspec.field(name="is_here")
    is_chosen: bool
    fits: bool
    is_fast_enough: bool
    """True if the model reaches the minimum speed, or if its speed is unknown."""
    verdict: str
    """Short reason for or against the candidate."""
    total_bytes: int
    """Planned memory, or the memory of the smallest load variant if the model does not fit."""
    memory: MemoryEstimate
    n_ctx: int | None
    decode_tps: float | None
    prefill_tps: float | None
    ttft_1000_s: float | None
    """Time to first token after a prompt of 1,000 tokens."""
    quality: float | None
    """Quality score of the model in full precision, in points; None if unknown."""
    quality_loss: float | None
    quality_is_measured: bool
    size_is_known: bool
    concessions: tuple[str, ...] = msgspec.field(name="trades")
    plan: dict[str, Any] | None
    """Load options, threads and cache budgets; None if the model does not fit."""
    reasons: dict[str, str]


def plan_row(evaluation: Evaluation, choice: Evaluation | None) -> PlanRow:
    """Return the table row of a candidate; `choice` is the automatic choice among all candidates."""
    plan, speed, candidate = evaluation.plan, evaluation.speed, evaluation.candidate
    return PlanRow(
        name=candidate.name, quant=candidate.quant, is_installed=candidate.is_installed,
        is_chosen=evaluation is choice, fits=plan is not None, is_fast_enough=evaluation.is_fast_enough,
        verdict=evaluation.verdict, total_bytes=evaluation.memory.total, memory=evaluation.memory,
        n_ctx=plan.options.n_ctx if plan is not None else None,
        decode_tps=_finite(speed.decode_tps if speed else None),
        prefill_tps=_finite(speed.prefill_tps if speed else None),
        ttft_1000_s=_finite(speed.ttft_s(PROMPT_TOKENS) if speed else None),
        quality=_finite(evaluation.points), quality_loss=_finite(candidate.quality.index - evaluation.points),
        quality_is_measured=candidate.quality.is_measured, size_is_known=not candidate.is_size_estimated,
        concessions=plan.concessions if plan is not None else (),
        plan=_plan_fields(plan) if plan is not None else None, reasons=plan.reasons if plan is not None else {},
    )  # fmt: skip


def _plan_fields(plan: LoadPlan) -> dict[str, Any]:
    options: dict[str, Any] = msgspec.structs.asdict(plan.options)
    return options | {
        "n_threads": plan.n_threads, "n_threads_batch": plan.n_threads_batch, "n_batch": plan.n_batch,
        "prefix_ram_bytes": plan.prefix_ram_bytes, "prefix_disk_bytes": plan.prefix_disk_bytes,
        "draft_tokens": plan.draft_tokens,
    }  # fmt: skip


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 2)


def memory_bar(memory: MemoryEstimate, available_bytes: int) -> str:
    """Draw the memory budget as a bar with one character for each purpose; a final `>` if the model does not fit."""
    drawn, total = "", 0
    for name, sign, _ in MEMORY_PARTS:
        total += int(getattr(memory, name))
        drawn += sign * (min(BAR_WIDTH, BAR_WIDTH * total // max(1, available_bytes)) - len(drawn))
        if len(drawn) >= BAR_WIDTH:
            return drawn[: BAR_WIDTH - 1] + (">" if memory.total > available_bytes else drawn[BAR_WIDTH - 1])
    return drawn


def sort_key(row: PlanRow) -> tuple[bool, bool, float]:
    """Sort key of a row: first the chosen model, then models that fit by descending quality, then the others."""
    return (not row.is_chosen, not row.fits, -(row.quality if row.quality is not None else -1e9))


def best_quants(rows: list[PlanRow]) -> list[PlanRow]:
    """Return the first row of each catalogue model, and the rows of all installed models, from sorted `rows`."""
    models: set[str] = set()
    best = []
    for row in rows:
        model = row.name if row.is_installed else row.name.partition(":")[0]
        if model not in models:
            models.add(model)
            best.append(row)
    return best


def plan_lines(plan: LoadPlan) -> list[str]:
    """Format a plan as lines of text: memory by purpose, concessions, and the reason for each value."""
    lines = ["Memory"]
    for name, _, label in MEMORY_PARTS:
        n_bytes = int(getattr(plan.estimate, name))
        if n_bytes:
            lines.append(f"  {label:<32}{size(n_bytes):>10}")
    lines.append(f"  {'total':<32}{size(plan.estimate.total):>10}")
    if plan.concessions:
        lines += ["", "Concessions", *(f"  {concession}" for concession in plan.concessions)]
    lines += ["", "Reasons"]
    values: dict[str, Any] = {"n_threads": plan.n_threads, "n_batch": plan.n_batch}
    for name, reason in plan.reasons.items():
        value = getattr(plan.options, name, values.get(name))
        lines.append(f"  {name}{'' if value is None else f' = {value}'}: {reason}")
    return lines


def row_lines(row: PlanRow, available_bytes: int) -> list[str]:
    """Format a candidate as a few lines of text: verdict, memory, speed and quality."""
    lines = [f"{row.name}  {row.quant}", row.verdict]
    if available_bytes:
        bar = memory_bar(row.memory, available_bytes)
        lines.append(f"[{bar:<{BAR_WIDTH}}] {size(row.total_bytes)} of {size(available_bytes)}")
    facts = [f"context {row.n_ctx}" if row.n_ctx else ""]
    facts.append(f"about {row.decode_tps:.0f} tokens/s" if row.decode_tps else "speed unknown")
    if row.ttft_1000_s:
        facts.append(f"{row.ttft_1000_s:.0f} s to read 1,000 tokens")
    if row.quality is not None:
        facts.append(f"quality {max(0.0, row.quality):.1f}{'' if row.quality_is_measured else ' (estimated)'}")
    lines.append(", ".join(fact for fact in facts if fact))
    return lines
