"""Plans side by side, as a table or a script wants them."""

from __future__ import annotations

import math
from typing import Any, Final

import msgspec

from edgechat.humanize import size
from edgechat.planner.memory import MemoryEstimate
from edgechat.planner.plan import LoadPlan
from edgechat.planner.ranking import PROMPT_TOKENS, Evaluation

BAR_WIDTH: Final = 24
"""Characters of a bar."""
# Of a bar: what each part of the memory is drawn with, and what it is called.
MEMORY_PARTS: Final = (
    ("weights", "#", "weights"),
    ("repacked", "+", "their copies for faster kernels"),
    ("kv_cache", "k", "keys and values"),
    ("compute", "c", "computing"),
    ("output", "c", "logits"),
    ("vocabulary", "p", "vocabulary and graphs"),
    ("speculation", "s", "drafts"),
    ("process", "p", "the programs"),
    ("observed_extra", "p", "seen here beyond that"),
)


class PlanRow(msgspec.Struct, frozen=True, kw_only=True):
    """One candidate. What is not known is None."""

    name: str
    quant: str
    is_installed: bool = msgspec.field(name="is_here")
    is_chosen: bool
    fits: bool
    is_fast_enough: bool
    """As fast as was wished, or nobody knows."""
    verdict: str
    """One reason why it is or is not what one would choose."""
    total_bytes: int
    """As planned, or the least that it would take."""
    memory: MemoryEstimate
    n_ctx: int | None
    decode_tps: float | None
    prefill_tps: float | None
    ttft_1000_s: float | None
    """Until the first token after a prompt of a thousand."""
    quality: float | None
    """In points of an index; what the quant and the plan cost is taken off."""
    quality_loss: float | None
    quality_is_measured: bool
    size_is_known: bool
    concessions: tuple[str, ...] = msgspec.field(name="trades")
    plan: dict[str, Any] | None
    """How it would be loaded."""
    reasons: dict[str, str]


def plan_row(rated: Evaluation, chosen: Evaluation | None) -> PlanRow:
    """What of a candidate is shown."""
    made, speed, candidate = rated.plan, rated.speed, rated.candidate
    return PlanRow(
        name=candidate.name, quant=candidate.quant, is_installed=candidate.is_installed, is_chosen=rated is chosen,
        fits=made is not None, is_fast_enough=rated.is_fast_enough, verdict=rated.verdict, total_bytes=rated.memory.total, memory=rated.memory,
        n_ctx=made.options.n_ctx if made is not None else None,
        decode_tps=_finite(speed.decode_tps if speed else None),
        prefill_tps=_finite(speed.prefill_tps if speed else None),
        ttft_1000_s=_finite(speed.ttft_s(PROMPT_TOKENS) if speed else None),
        quality=_finite(rated.points), quality_loss=_finite(candidate.quality.index - rated.points),
        quality_is_measured=candidate.quality.is_measured, size_is_known=not candidate.is_size_estimated,
        concessions=made.concessions if made is not None else (),
        plan=_fields(rated), reasons=made.reasons if made is not None else {},
    )  # fmt: skip


def _fields(rated: Evaluation) -> dict[str, Any] | None:
    made = rated.plan
    if made is None:
        return None
    options: dict[str, Any] = msgspec.structs.asdict(made.options)
    return options | {
        "n_threads": made.n_threads, "n_threads_batch": made.n_threads_batch, "n_batch": made.n_batch,
        "prefix_ram_bytes": made.prefix_ram_bytes, "prefix_disk_bytes": made.prefix_disk_bytes,
        "draft_tokens": made.draft_tokens,
    }  # fmt: skip


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 2)


def memory_bar(memory: MemoryEstimate, available: int) -> str:
    """One character for each part of the budget that is used, a > where it is too small."""
    drawn, done = "", 0
    for name, sign, _ in MEMORY_PARTS:
        done += int(getattr(memory, name))
        drawn += sign * (min(BAR_WIDTH, BAR_WIDTH * done // max(1, available)) - len(drawn))
        if len(drawn) >= BAR_WIDTH:
            return drawn[: BAR_WIDTH - 1] + (">" if memory.total > available else drawn[BAR_WIDTH - 1])
    return drawn


def sort_key(row: PlanRow) -> tuple[bool, bool, float]:
    """The chosen one first, then what fits, the best first."""
    return (not row.is_chosen, not row.fits, -(row.quality if row.quality is not None else -1e9))


def best_quants(rows: list[PlanRow]) -> list[PlanRow]:
    """The best quant of each model of the catalogue; the rows are sorted."""
    seen: set[str] = set()
    kept = []
    for row in rows:
        model = row.name.partition(":")[0] if not row.is_installed else row.name
        if model not in seen:
            seen.add(model)
            kept.append(row)
    return kept


def plan_lines(made: LoadPlan) -> list[str]:
    """What a plan takes of memory, and why everything is as it is."""
    lines = ["Memory"]
    for name, _, words in MEMORY_PARTS:
        count = int(getattr(made.estimate, name))
        if count:
            lines.append(f"  {words:<32}{size(count):>10}")
    lines.append(f"  {'together':<32}{size(made.estimate.total):>10}")
    if made.concessions:
        lines += ["", "Given up so that it fits", *(f"  {trade}" for trade in made.concessions)]
    lines += ["", "Why so"]
    values: dict[str, Any] = {"n_threads": made.n_threads, "n_batch": made.n_batch}
    for name, reason in made.reasons.items():
        value = getattr(made.options, name, values.get(name))
        lines.append(f"  {name}{'' if value is None else f' = {value}'}: {reason}")
    return lines


def row_lines(row: PlanRow, available: int) -> list[str]:
    """A candidate in a few lines: verdict, memory against what there is, speed and quality."""
    lines = [f"{row.name}  {row.quant}", row.verdict]
    if available:
        lines.append(f"[{memory_bar(row.memory, available):<24}] {size(row.total_bytes)} of {size(available)}")
    facts = [f"context {row.n_ctx}" if row.n_ctx else ""]
    facts.append(f"about {row.decode_tps:.0f} tokens/s" if row.decode_tps else "speed not known")
    if row.ttft_1000_s:
        facts.append(f"{row.ttft_1000_s:.0f} s to read 1,000 tokens")
    if row.quality is not None:
        facts.append(f"quality {max(0.0, row.quality):.1f}{'' if row.quality_is_measured else ' (a guess)'}")
    lines.append(", ".join(fact for fact in facts if fact))
    return lines
