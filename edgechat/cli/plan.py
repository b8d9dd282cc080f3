"""`edgechat plan`: compare models by memory, speed and quality, and show the automatic choice."""

from __future__ import annotations

import os
import shutil
import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from edgechat.cli.json_output import echo_json
from edgechat.cli.options import FilePath, FloatRange, IntRange, complete_draft_model, complete_model
from edgechat.cli.progress import StderrStatus, echo_note
from edgechat.decode_errors import describe_decode_error
from edgechat.humanize import format_size
from edgechat.terminal import escape_controls

if TYPE_CHECKING:
    from edgechat.config import Settings
    from edgechat.engine.client import EngineClient
    from edgechat.hardware.profile import HardwareProfile
    from edgechat.planner.machine import Machine
    from edgechat.planner.picks import Pick
    from edgechat.planner.ranking import Candidate, Evaluation
    from edgechat.planner.report import PlanRow
    from edgechat.planner.throughput import KernelSpeeds

# Width in characters of all table columns except the name of the model.
_FIXED_COLUMNS_WIDTH: Final = 61
_MAX_PROFILE_BYTES: Final = 1 << 20
# Maximum number of installed models whose memory llama.cpp computes exactly; for more models, formulas estimate it.
_MAX_EXACT_MODELS: Final = 8


@click.command()
@click.argument("names", nargs=-1, metavar="", shell_complete=complete_model)
@click.option(
    "-m",
    "--model",
    "models",
    metavar="NAME",
    multiple=True,
    shell_complete=complete_model,
    help="Model name, repository or .gguf file; may be repeated. Default: all installed models.",
)
@click.option(
    "--all", "with_catalogue", is_flag=True, help="Also compare all catalogue models; does not use the network."
)
@click.option("--quants", "with_quants", is_flag=True, help="Also compare other quants of the given models.")
@click.option("--budget", metavar="SIZE", help="Memory budget, such as 4GB. Default: available memory.")
@click.option(
    "--machine",
    "machine_file",
    type=FilePath(exists=True, dir_okay=False),
    metavar="FILE",
    help="Plan for another machine; FILE is the output of its `edgechat doctor --json`.",
)
@click.option("--ctx", "n_ctx", type=IntRange(), metavar="N", help="Context length in tokens.")
@click.option(
    "--min-speed",
    type=FloatRange(),
    metavar="T",
    help="Minimum decode speed in tokens per second; 0 for no minimum.",
)
@click.option(
    "--draft-model",
    metavar="NAME",
    shell_complete=complete_draft_model,
    help="Model or heads that draft tokens for speculative decoding; auto (default), or off for none.",
)
@click.option("--explain", is_flag=True, help="Show the memory use and plan of the chosen model, with reasons.")
@click.option(
    "--measure/--no-measure",
    default=True,
    help="Measure the speed of this machine if it has not been measured yet. With --quants, --measure also quantises "
    "each installed model to a temporary file per quant, and compares its predictions.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def plan(
    context: click.Context,
    /,
    names: tuple[str, ...],
    *,
    models: tuple[str, ...],
    explain: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Compare models by memory, speed and quality.

    For `-m owner/repo[:QUANT]`, only the header of the model file is downloaded from the hub.
    """
    from edgechat.engine.client import EngineClient

    models += names
    is_measure_given = context.get_parameter_source("measure") == click.core.ParameterSource.COMMANDLINE
    options["measures_quants"] = options["with_quants"] and options["measure"] and is_measure_given
    engine, status = EngineClient(), StderrStatus(print_lines=True)
    with tempfile.TemporaryDirectory(prefix="edgechat-") as scratch_dir:
        try:
            evaluations, choice, json_facts = _evaluate_candidates(engine, status, models, Path(scratch_dir), **options)
        finally:
            status.clear()
            engine.close()
    from edgechat.planner.picks import choose_picks
    from edgechat.planner.report import make_plan_row, make_plan_rows

    picks = choose_picks(evaluations, defaults_only=not models)
    rows = make_plan_rows(evaluations, choice, picks)
    if as_json:
        pick_names = {o.label: pick.evaluation.candidate.name for pick in picks for o in pick.objectives}
        echo_json(json_facts | {"picks": pick_names, "models": rows})
        return
    _print_memory(json_facts["available_bytes"], json_facts["reserved_bytes"])
    _print_picks(picks, evaluations, explain=explain, defaults_only=not models)
    _print_table([row for row in rows if models or row.is_recommended], json_facts["available_bytes"])
    if explain and choice is not None:
        _print_explanation(make_plan_row(choice, choice, picks))


def _evaluate_candidates(
    engine: EngineClient,
    status: StderrStatus,
    models: tuple[str, ...],
    scratch_dir: Path,
    *,
    with_catalogue: bool,
    with_quants: bool,
    budget: str | None,
    machine_file: Path | None,
    n_ctx: int | None,
    min_speed: float | None,
    draft_model: str | None,
    measure: bool,
    measures_quants: bool,
) -> tuple[list[Evaluation], Evaluation | None, dict[str, Any]]:
    """Evaluate all candidates. Return the evaluations, the automatic choice, and other fields for the JSON output."""
    from edgechat import config
    from edgechat.cli.session_factory import load_settings, settings_from_flags
    from edgechat.models import selection
    from edgechat.models.draft_models import add_drafters, find_draft_file
    from edgechat.planner.machine import speeds_from_profile
    from edgechat.planner.picks import choose_evaluation

    settings_from_flags(budget=budget)
    flags = settings_from_flags(n_ctx=n_ctx, min_speed=min_speed, draft_model=draft_model)
    settings = config.with_overrides(load_settings(), flags)
    if settings.draft_model not in {config.AUTO, config.OFF}:
        find_draft_file(settings.draft_model)  # raises an error for an unknown name, before anything is measured
    profile = _read_profile(machine_file) if machine_file is not None else None
    if models:
        status.show("Reading the headers of the models ...")
        candidates = selection.make_named_candidates(engine, models, scratch_dir, with_quants=with_quants)
        if measures_quants:
            candidates = _measure_quants(engine, candidates, scratch_dir, status)
    else:
        candidates = selection.list_installed_candidates()
    named = {candidate.name for candidate in candidates} if models else set()
    candidates = add_drafters(candidates, settings)
    if profile is None and settings.gpu and _has_gpu_modules():
        _find_gpus(engine, candidates if measure and len(candidates) <= _MAX_EXACT_MODELS else [], status)
    machine = _make_target_machine(settings, budget, profile)
    if with_catalogue:
        candidates += selection.list_catalogue_candidates()
    if profile is None:
        speeds = _load_or_measure_speeds(engine, status, measure=measure)
        candidates = selection.add_observed_speeds(candidates, machine, speeds)
    else:
        speeds = speeds_from_profile(profile)
    is_exact = profile is None and (bool(models) or len(candidates) <= _MAX_EXACT_MODELS)
    evaluations = selection.evaluate_for_machine(
        candidates, machine, settings, speeds, engine if is_exact else None,
        on_candidate=lambda name: status.show(f"Computing the memory of {name} ..."),
    )  # fmt: skip
    status.clear()
    _note_missing_drafters([e for e in evaluations if e.candidate.name in named], settings.draft_model)
    choice = choose_evaluation(evaluations, defaults_only=not models)
    json_facts = {
        "available_bytes": machine.available_bytes, "reserved_bytes": machine.reserved_bytes,
        "backend": speeds.backend if speeds else None,
        "choice": choice.candidate.name if choice else None,
    }  # fmt: skip
    return evaluations, choice, json_facts


def _note_missing_drafters(evaluations: Sequence[Evaluation], draft_model: str) -> None:
    """Print, for each planned model that would not use the named drafter, the reason."""
    from edgechat.config import AUTO, OFF

    if draft_model in {AUTO, OFF}:
        return
    for evaluation in evaluations:
        load_plan = evaluation.plan
        if load_plan is None or (load_plan.drafter is not None and load_plan.drafter.is_named):
            continue
        name = evaluation.candidate.name
        reason = load_plan.reasons.get("draft_model") or load_plan.reasons.get("drafter", "its file is not installed")
        if load_plan.drafter is not None:
            text = f"{name} drafts with {load_plan.drafter.name} of the model, not with the named drafter: {reason}."
        else:
            text = f"{name} decodes without the drafter: {reason}."
        echo_note(escape_controls(f"edgechat: {text}"))


def _find_gpus(engine: EngineClient, candidates: list[Candidate], status: StderrStatus) -> None:
    """Save the GPUs of this machine, after they were tested and measured with the types of the candidates' weights."""
    from edgechat.engine import protocol
    from edgechat.models.loading import count_weights
    from edgechat.models.resources import save_gpus

    n_weights: dict[int, int] = {}
    for candidate in candidates:
        for type_id, count in count_weights(candidate.profile).items():
            n_weights[type_id] = n_weights.get(type_id, 0) + count
    # A driver can compile a kernel for seconds to minutes.
    with status.announce_wait(), status.show_elapsed():
        devices = engine.list_devices(
            benchmark=False, n_weights=n_weights,
            on_event=lambda event: status.show(event.message) if isinstance(event, protocol.BackendTesting) else None,
        )  # fmt: skip
    save_gpus(devices.gpus)
    for reason in devices.slow_gpus:
        status.note(reason)


def _measure_quants(
    engine: EngineClient, candidates: list[Candidate], scratch_dir: Path, status: StderrStatus
) -> list[Candidate]:
    """Return the candidates; for quants of an installed file, with the loss that was measured against this file."""
    import msgspec

    from edgechat.bench import quant_divergence
    from edgechat.planner.quality import compute_divergence_loss

    measured: dict[str, Candidate] = {}
    for source in candidates:
        prefix = f"{source.name} in "
        quants = {c.quant: c for c in candidates if source.is_installed and c.name.startswith(prefix)}
        path = Path(source.profile.path)
        for quant, result in quant_divergence.measure(engine, path, list(quants), scratch_dir, status.show):
            loss = source.quality.loss + compute_divergence_loss(result.divergence)
            status.note(
                f"{quants[quant].name}: KL divergence {result.divergence:.4f}, "
                f"the same most likely token at {result.agreement:.1%} of the positions"
            )
            measured[quants[quant].name] = msgspec.structs.replace(
                quants[quant], measured_divergence=result.divergence,
                quality=msgspec.structs.replace(source.quality, loss=loss),
            )  # fmt: skip
    return [measured.get(candidate.name, candidate) for candidate in candidates]


def _has_gpu_modules() -> bool:
    from edgechat.errors import EdgechatError
    from edgechat.runtime.backends.bundle import find_bundle

    try:
        return bool(find_bundle().gpu_modules)
    except EdgechatError:
        return False


def _make_target_machine(settings: Settings, budget: str | None, profile: HardwareProfile | None) -> Machine:
    import msgspec

    from edgechat import config
    from edgechat.models.resources import current_machine
    from edgechat.planner.machine import machine_from_profile

    machine = current_machine(settings) if profile is None else machine_from_profile(profile)
    # The budget may exceed this machine's memory, to plan for a larger machine.
    budget_bytes = config.parse_size(budget) if budget is not None else None
    if budget_bytes is None:
        return machine
    return msgspec.structs.replace(machine, available_bytes=budget_bytes, is_budget_set=True, reserved_bytes=0)


def _read_profile(file: Path) -> HardwareProfile:
    """Read the hardware profile of a machine from a JSON file. Raises UsageError for an invalid file."""
    import msgspec

    from edgechat import files
    from edgechat.errors import UsageError
    from edgechat.hardware.profile import HardwareProfile

    try:
        content = msgspec.json.decode(files.read_bytes(file, _MAX_PROFILE_BYTES), type=dict[str, Any])
        return msgspec.convert(content.get("profile", content), HardwareProfile, strict=False)
    except msgspec.MsgspecError as error:
        reason = describe_decode_error(error)
        raise UsageError(
            f"{file} is not a hardware profile: {reason}. `edgechat doctor --json` prints a hardware profile."
        ) from None


def _load_or_measure_speeds(engine: EngineClient, status: StderrStatus, *, measure: bool) -> KernelSpeeds | None:
    from edgechat.errors import EdgechatError
    from edgechat.models import selection
    from edgechat.models.resources import load_measured_speeds

    if not measure:
        return load_measured_speeds()
    status.show("Measuring the speed of this machine")
    try:
        with status.show_elapsed():
            return selection.load_or_measure_speeds(engine, status.show)
    except EdgechatError as error:  # without speeds, models can still be compared by memory and quality
        status.note(f"Cannot measure the speed of this machine: {error}")
        return None
    finally:
        status.clear()


def _print_memory(available_bytes: int, reserved_bytes: int) -> None:
    reserve_text = f", {format_size(reserved_bytes)} of it left to other programs" if reserved_bytes else ""
    click.echo(f"{format_size(available_bytes)} of memory available{reserve_text}")


def _print_picks(picks: list[Pick], evaluations: list[Evaluation], *, explain: bool, defaults_only: bool) -> None:
    """Print the recommended models, each with size, memory and the time of a typical reply."""
    from edgechat.planner.report import explain_pick, format_summary

    columns = shutil.get_terminal_size().columns
    for pick in picks:
        name = pick.evaluation.candidate.name
        state = "" if pick.evaluation.candidate.is_installed else " (not installed)"
        click.echo(escape_controls(f"{pick.label}: {name}{state}"))
        _echo_wrapped("  ", format_summary(pick.evaluation), columns)
        for line in explain_pick(pick, evaluations, defaults_only=defaults_only) if explain else ():
            _echo_wrapped("  ", line, columns)
    if picks:
        click.echo()
    elif any(e.plan is not None and e.speed is None for e in evaluations):
        click.echo("No recommendation: the speed of this machine has not been measured.\n")


def _print_table(rows: list[PlanRow], available_bytes: int) -> None:
    from edgechat.planner.report import BAR_LABELS, BAR_WIDTH, format_memory_bar, format_verdict
    from edgechat.planner.turn import PROMPT_TOKENS, REPLY_TOKENS

    if not rows:
        click.echo("No models installed. Try `edgechat plan --all`, or `edgechat plan -m owner/repo:Q4_K_M`.")
        return
    columns = shutil.get_terminal_size().columns
    max_width = max(12, columns - _FIXED_COLUMNS_WIDTH)
    width = min(max(len(name) for name in ["model", *(row.name for row in rows)]), max_width)
    click.echo(
        f"  {'model':<{width}}  {'quant':<10}{'memory':>10}{'context':>8}{'tok/s':>6}{'reply':>7}"
        f"{'quality':>9}{'loss':>6}"
    )
    bars = ""
    for row in rows:
        mark = "*" if row.is_chosen else " "
        memory = ("" if row.size_is_known else "~") + format_size(row.total_bytes)
        estimate_mark = "" if row.quality_is_measured else "?"
        quality_text = "?" if row.quality is None else f"{max(0.0, row.quality):.1f}{estimate_mark}"
        loss_text = "?" if row.quality_loss is None else f"{row.quality_loss:.1f}"
        name = _shorten_name(row.name, width)
        click.echo(escape_controls(
            f"{mark} {name:<{width}}  {row.quant:<10}{memory:>10}{row.n_ctx or '':>8}"
            f"{_format_number(row.decode_tps):>6}{_format_number(row.turn_s, ' s'):>7}"
            f"{quality_text:>9}{loss_text:>6}"
        ))  # fmt: skip
        bar = format_memory_bar(row.memory, available_bytes)
        bars += bar
        _echo_wrapped(f"  {bar:<{BAR_WIDTH}}  ", format_verdict(row), columns)
    marks = {
        "* automatic choice": any(row.is_chosen for row in rows),
        "? estimated quality": any(not row.quality_is_measured for row in rows),
        "~ estimated size": any(not row.size_is_known for row in rows),
    }
    headings = [
        "tok/s = decode speed",
        f"reply = time of a typical reply: {PROMPT_TOKENS} prompt tokens and {REPLY_TOKENS} tokens of reply",
        "quality = Artificial Analysis Intelligence Index", "loss = points lost to quantisation and concessions",
    ]  # fmt: skip
    parts = [f"{character} {label}" for character, label in BAR_LABELS.items() if character in bars]
    for entries in ([mark for mark, is_used in marks.items() if is_used], headings, parts):
        click.echo("".join(f"{line}\n" for line in _join_entries(entries, columns)), nl=False)


def _shorten_name(name: str, width: int) -> str:
    """Shorten the name of a model, or its path from the left, to `width` columns."""
    if len(name) <= width:
        return name
    return f"…{name[1 - width :]}" if "/" in name or os.sep in name else f"{name[: width - 1]}…"


def _join_entries(entries: list[str], columns: int) -> list[str]:
    """Join the entries of a legend into lines of at most `columns` columns."""
    lines: list[str] = []
    for entry in entries:
        if lines and len(lines[-1]) + 3 + len(entry) <= columns:
            lines[-1] += f"   {entry}"
        else:
            lines.append(entry)
    return lines


def _echo_wrapped(start: str, text: str, columns: int) -> None:
    """Print `text` after `start`, wrapped to `columns` columns; later lines are indented like the text."""
    lines = textwrap.wrap(text, max(20, columns - len(start))) or [""]
    for number, line in enumerate(lines):
        click.echo(escape_controls(f"{start if number == 0 else ' ' * len(start)}{line}").rstrip())


def _format_number(value: float | None, unit: str = "") -> str:
    if value is None:
        return "?"
    return f"{value:.0f}{unit}" if value >= 10 else f"{value:.1f}{unit}"  # noqa: PLR2004  (two digits)


def _print_explanation(row: PlanRow) -> None:
    from edgechat.planner.report import FILE_CACHE_LABEL, MEMORY_PARTS

    columns = shutil.get_terminal_size().columns
    click.echo()
    _echo_wrapped("", f"{row.name}: {row.verdict}", columns)
    for name, _, label in MEMORY_PARTS:
        n_bytes = getattr(row.memory, name)
        if n_bytes:
            click.echo(f"  {label:<32}{format_size(n_bytes):>10}")
    click.echo(f"  {'total':<32}{format_size(row.total_bytes):>10}{'' if row.memory.is_exact else '  (estimated)'}")
    if row.memory.file_cache:
        click.echo(f"  {FILE_CACHE_LABEL:<32}{format_size(row.memory.file_cache):>10}")
    for field, reason in row.reasons.items():
        value = row.plan.get(field) if row.plan is not None else None
        is_shown = value is not None and not isinstance(value, dict)
        _echo_wrapped("  ", f"{field}{f' = {value}' if is_shown else ''}: {reason}", columns)
