"""Output formats of plans: table rows, JSON and text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from edgechat.humanize import format_duration, format_size
from edgechat.planner import turn
from edgechat.planner.load_plan import LoadPlan
from edgechat.planner.memory import MemoryEstimate
from edgechat.planner.picks import BALANCED, OBJECTIVES, Pick, choose_quants, find_slower_model
from edgechat.planner.ranking import PROMPT_TOKENS, Evaluation

BAR_WIDTH: Final = 24
"""Width of a memory bar in characters."""
MEMORY_PARTS: Final = (
    ("weights", "#", "weights"),
    ("repacked_weights", "+", "repacked weights"),
    ("kv_cache", "k", "KV cache"),
    ("compute", "c", "compute buffers"),
    ("output", "c", "logits"),
    ("vocabulary", "p", "vocabulary and graphs"),
    ("speculation", "s", "speculation"),
    ("drafter", "d", "drafter"),
    ("process", "p", "processes"),
    ("observed_excess", "p", "excess measured in earlier loads"),
    ("loading", "#", "mapped file while loading"),
)
"""Field of MemoryEstimate, character in a memory bar, and label of each part of the memory."""
FILE_CACHE_LABEL: Final = "reclaimable page cache"
"""Label of `MemoryEstimate.file_cache`, which is not part of the total."""
BAR_LABELS: Final = {
    "#": "weights", "+": "repacked weights", "k": "KV cache", "c": "compute buffers", "s": "speculation",
    "d": "drafter", "p": "processes",
}  # fmt: skip
"""Label of each character in a memory bar."""


class PlanRow(msgspec.Struct, frozen=True, kw_only=True):
    """Table row of a candidate in `edgechat plan`. The encoded field names are part of the JSON output."""

    name: str
    quant: str
    is_installed: bool = msgspec.field(name="is_here")
    is_chosen: bool
    picks: tuple[str, ...]
    """Labels of the objectives for which this candidate was picked, such as `Balanced`."""
    is_recommended: bool
    """True for installed models, and for the recommended quant of a catalogue model."""
    fits: bool
    uses_reserve: bool
    """True if the model fits only in memory that plans leave to other programs if possible."""
    is_fast_enough: bool
    """True if the model reaches the minimum speed, or if its speed is unknown."""
    verdict: str
    """Short text for the user that says why the candidate is suitable or not."""
    file_bytes: int
    total_bytes: int
    """Planned memory, or the memory of the smallest load variant if the model does not fit."""
    is_memory_upper_bound: bool = False
    """Always False. Earlier versions counted a second copy of repacked weights, whose maximum size they knew."""
    memory: MemoryEstimate
    n_ctx: int | None
    decode_tps: float | None
    prefill_tps: float | None
    ttft_1000_tokens_s: float | None = msgspec.field(name="ttft_1000_s")
    """Time to first token after a prompt of 1,000 tokens, in seconds; None if unknown."""
    turn_s: float | None
    """Time of a typical turn (600 prompt tokens, reasoning if it is on, 300 tokens of reply), in seconds."""
    thinking_s: float | None
    """Part of `turn_s` that the model spends on reasoning, in seconds."""
    quality: float | None
    """Quality score of the quantised model with the planned options, in points; None if unknown."""
    quality_loss: float | None
    """Part of the quality score lost to quantisation and to the planned options, in points; None if unknown."""
    quality_is_measured: bool
    measured_divergence: float | None = msgspec.field(default=None, name="divergence")
    """KL divergence of a quant from the given file, in nats per token; None if it was not measured."""
    size_is_known: bool
    concessions: tuple[str, ...] = msgspec.field(name="trades")
    plan: dict[str, Any] | None
    """Planned load options, thread counts and cache budgets; None if the model does not fit."""
    reasons: dict[str, str]


def make_plan_row(
    evaluation: Evaluation, choice: Evaluation | None = None, picks: Sequence[Pick] = (), *, is_recommended: bool = True
) -> PlanRow:
    """Return the table row of a candidate; `choice` is the automatically chosen candidate, if any."""
    plan, speed, candidate = evaluation.plan, evaluation.speed, evaluation.candidate
    return PlanRow(
        name=candidate.name, quant=candidate.quant, is_installed=candidate.is_installed,
        is_chosen=evaluation is choice, is_recommended=is_recommended,
        picks=tuple(o.label for pick in picks if pick.evaluation is evaluation for o in pick.objectives),
        fits=plan is not None, uses_reserve=evaluation.uses_reserve, is_fast_enough=evaluation.is_fast_enough,
        verdict=evaluation.verdict,
        file_bytes=candidate.size_bytes, total_bytes=evaluation.memory.total, memory=evaluation.memory,
        n_ctx=plan.options.n_ctx if plan is not None else None,
        decode_tps=_finite_or_none(speed.decode_tps if speed else None),
        prefill_tps=_finite_or_none(speed.prefill_tps if speed else None),
        ttft_1000_tokens_s=_finite_or_none(speed.ttft_s(PROMPT_TOKENS) if speed else None),
        turn_s=_finite_or_none(evaluation.turn.total_s if evaluation.turn else None),
        thinking_s=_finite_or_none(evaluation.turn.thinking_s if evaluation.turn else None),
        quality=_finite_or_none(evaluation.points),
        quality_loss=_finite_or_none(candidate.quality.index - evaluation.points),
        measured_divergence=candidate.measured_divergence,
        quality_is_measured=candidate.quality.is_measured, size_is_known=not candidate.is_size_estimated,
        concessions=plan.concessions if plan is not None else (),
        plan=_make_plan_fields(plan) if plan is not None else None,
        reasons=(plan.reasons if plan is not None else {}) | evaluation.speed_reasons
        | ({"quant": evaluation.quant_advice} if evaluation.quant_advice else {}),
    )  # fmt: skip


def make_plan_rows(
    evaluations: Sequence[Evaluation], choice: Evaluation | None, picks: Sequence[Pick]
) -> list[PlanRow]:
    """Return the table rows: the chosen model, the picks, other models that fit (best quality first), then the rest.

    All installed models are marked as recommended. Of a catalogue model, the quants among the picks are marked, or else
    the quant that `choose_quants` returns.
    """
    downloads = [e for e in evaluations if not e.candidate.is_installed]
    pick_evaluations = [pick.evaluation for pick in picks]
    download_names = {e.model_name for e in pick_evaluations if not e.candidate.is_installed}
    other_quants = [e for e in choose_quants(downloads) if e.model_name not in download_names]
    recommended_ids = {id(e) for e in [*pick_evaluations, *other_quants]}
    rows = [
        make_plan_row(e, choice, picks, is_recommended=e.candidate.is_installed or id(e) in recommended_ids)
        for e in evaluations
    ]
    return sorted(rows, key=_sort_key)


def _sort_key(row: PlanRow) -> tuple[bool, int, bool, float]:
    labels = [objective.label for objective in OBJECTIVES]
    first_pick = min((labels.index(label) for label in row.picks), default=len(labels))
    points = row.quality if row.quality is not None else -1e9
    is_suitable = row.fits and row.is_fast_enough and not row.uses_reserve
    return (not row.is_chosen, first_pick, not is_suitable, -points)


def _make_plan_fields(plan: LoadPlan) -> dict[str, Any]:
    options: dict[str, Any] = msgspec.structs.asdict(plan.options)
    drafter = plan.drafter
    return options | {
        "n_threads": plan.n_threads, "n_threads_batch": plan.n_threads_batch, "n_batch": plan.n_batch,
        "prefix_ram_bytes": plan.prefix_ram_bytes, "prefix_disk_bytes": plan.prefix_disk_bytes,
        "draft_tokens": plan.draft_tokens, "max_n_ctx": plan.max_n_ctx,
        "drafter": msgspec.structs.asdict(drafter) | {"total_bytes": drafter.total} if drafter is not None else None,
    }  # fmt: skip


def format_verdict(row: PlanRow) -> str:
    """Format the verdict of a table row with the drafter of its plan: `fits; drafts with the MTP heads (28 MB)`."""
    drafter = row.plan["drafter"] if row.plan is not None else None
    if drafter is None:
        return row.verdict
    return f"{row.verdict}; drafts with {drafter['name']} ({format_size(drafter['total_bytes'])})"


def _finite_or_none(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 2)


def format_memory_bar(memory: MemoryEstimate, available_bytes: int) -> str:
    """Return a bar that shows the used part of the memory budget by purpose; ends in `>` if the model does not fit."""
    bar, total = "", 0
    for name, character, _ in MEMORY_PARTS:
        total += int(getattr(memory, name))
        bar += character * (min(BAR_WIDTH, BAR_WIDTH * total // max(1, available_bytes)) - len(bar))
        if len(bar) >= BAR_WIDTH:
            return bar[: BAR_WIDTH - 1] + (">" if memory.total > available_bytes else bar[BAR_WIDTH - 1])
    return bar


def format_plan_lines(plan: LoadPlan) -> list[str]:
    """Format a plan as lines of text: memory by purpose, concessions, and the reason for each value."""
    lines = ["Memory"]
    for name, _, label in MEMORY_PARTS:
        n_bytes = int(getattr(plan.estimate, name))
        if n_bytes:
            lines.append(f"  {label:<32}{format_size(n_bytes):>10}")
    lines.append(f"  {'total':<32}{format_size(plan.estimate.total):>10}")
    if plan.estimate.file_cache:
        lines.append(f"  {FILE_CACHE_LABEL:<32}{format_size(plan.estimate.file_cache):>10}")
    if plan.growth is not None:
        lines.append(f"  {f'grows up to {plan.max_n_ctx:,} tokens':<32}{format_size(plan.growth.max_bytes):>10}")
    if plan.concessions:
        lines += ["", "Concessions", *(f"  {concession}" for concession in plan.concessions)]
    lines += ["", "Reasons"]
    values: dict[str, Any] = {"n_threads": plan.n_threads, "n_batch": plan.n_batch, "max_n_ctx": plan.max_n_ctx}
    for name, reason in plan.reasons.items():
        value = getattr(plan.options, name, values.get(name))
        lines.append(f"  {name}{'' if value is None else f' = {value}'}: {reason}")
    return lines


def format_row_lines(row: PlanRow, available_bytes: int) -> list[str]:
    """Format a table row as lines of text: verdict, memory, speed and quality."""
    lines = [row.name if row.name.endswith(row.quant) else f"{row.name}  {row.quant}", format_verdict(row)]
    if available_bytes:
        bar = format_memory_bar(row.memory, available_bytes)
        memory = f"{format_size(row.total_bytes)} of {format_size(available_bytes)}"
        lines.append(f"[{bar:<{BAR_WIDTH}}] {memory}, file {format_size(row.file_bytes)}")
    properties = [f"context {row.n_ctx}" if row.n_ctx else ""]
    properties.append(f"about {row.decode_tps:.0f} tokens/s" if row.decode_tps else "speed unknown")
    if row.quality is not None and (row.quality_is_measured or row.quality > 0):  # estimates below 0 mean nothing
        properties.append(f"quality {max(0.0, row.quality):.1f}{'' if row.quality_is_measured else ' (estimated)'}")
    lines.append(", ".join(text for text in properties if text))
    if row.turn_s:
        lines.append(format_turn(row.turn_s, row.thinking_s or 0.0).capitalize())
    if advice := row.reasons.get("quant"):
        lines.append(advice)
    return lines


def format_turn(turn_s: float, thinking_s: float) -> str:
    """Format the time of a typical turn: `a typical reply takes about 12 s` or `... 12 s, 20 s with reasoning`."""
    text = f"a typical reply takes about {format_duration(max(1.0, turn_s - thinking_s))}"
    return f"{text}, {format_duration(max(1.0, turn_s))} with reasoning" if thinking_s else text


def format_summary(evaluation: Evaluation) -> str:
    """Format file size, memory and the time of a typical turn of a model that fits."""
    sizes = f"{format_size(evaluation.candidate.size_bytes)} file, {format_size(evaluation.memory.total)} in memory"
    if evaluation.turn is None:
        return f"{sizes}, speed unknown"
    return f"{sizes}, {format_turn(evaluation.turn.total_s, evaluation.turn.thinking_s)}"


def explain_automatic_choice(choice: Evaluation, evaluations: Sequence[Evaluation]) -> str:
    """Explain which of the installed models `evaluations` is chosen automatically, and why."""
    name = choice.candidate.name
    if len(evaluations) == 1:
        return f"{name} is the only installed model."
    n_fit = sum(evaluation.plan is not None for evaluation in evaluations)
    facts = [f"quality {max(0.0, choice.points):.1f}"]
    if choice.turn is not None:
        facts.append(format_turn(choice.turn.total_s, choice.turn.thinking_s))
    return (
        f"Of {len(evaluations)} installed models, {n_fit} {'fits' if n_fit == 1 else 'fit'} in memory. The automatic "
        f"choice is {name} ({'; '.join(facts)}). It {BALANCED.format_rule()}."
    )


def explain_pick(pick: Pick, evaluations: Sequence[Evaluation], *, defaults_only: bool = False) -> list[str]:
    """Return the reasons for a pick as lines of text: the times of the parts of a turn, and slower, better models.

    `defaults_only` has the same meaning as in `choose_picks`.
    """
    evaluation = pick.evaluation
    lines = []
    if evaluation.turn is not None:
        parts = [f"{evaluation.turn.prompt_s:.1f} s for a prompt of {turn.PROMPT_TOKENS} tokens"]
        if evaluation.turn.thinking_s:
            parts.append(f"{evaluation.turn.thinking_s:.1f} s for {turn.THINKING_TOKENS} tokens of reasoning")
        parts.append(f"{evaluation.turn.reply_s:.1f} s for a reply of {turn.REPLY_TOKENS} tokens")
        lines.append(f"{', '.join(parts)}; quality {max(0.0, evaluation.points):.1f}")
    lines += evaluation.speed_reasons.values()
    lines += [f"{objective.label}: {objective.format_rule()}" for objective in pick.objectives]
    slower_model = find_slower_model(pick, evaluations, defaults_only=defaults_only)
    if slower_model is not None:
        lines.append(
            f"{slower_model.evaluation.candidate.name} has better quality ({slower_model.evaluation.points:.1f}), but "
            f"a typical reply takes {slower_model.turn_s:.1f} s, above {slower_model.limit_s:.0f} s"
        )
    better_models = [
        e for e in evaluations
        if e.plan is not None and e.points > evaluation.points and (e.ranking_s or 0.0) > (evaluation.ranking_s or 0.0)
    ]  # fmt: skip
    next_model = min(better_models, key=lambda e: e.ranking_s or 0.0, default=None)
    if next_model is not None and next_model.ranking_s is not None:
        lines.append(
            f"next better: {next_model.candidate.name}, quality {next_model.points:.1f}, "
            f"{format_duration(next_model.ranking_s)}"
        )
    return lines
