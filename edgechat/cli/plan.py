"""`edgechat plan`: compare models by memory, speed and quality, and show the automatic choice."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from edgechat.cli.options import complete_model
from edgechat.humanize import size
from edgechat.terminal import escape_controls

if TYPE_CHECKING:
    from edgechat.config import Settings
    from edgechat.engine.client import EngineClient
    from edgechat.planner.machine import Machine
    from edgechat.planner.ranking import Evaluation
    from edgechat.planner.report import PlanRow
    from edgechat.planner.throughput import KernelSpeeds

# Width of a table row without the model's name.
_COLUMNS: Final = 60
_MAX_PROFILE_BYTES: Final = 1 << 20
# Up to this number of models, llama.cpp itself computes the memory.
_MAX_EXACT: Final = 8


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
@click.option("--all", "with_catalogue", is_flag=True, help="Compare the whole catalogue; uses no network.")
@click.option("--quants", "with_quants", is_flag=True, help="Also compare other quants of the given models.")
@click.option("--budget", metavar="SIZE", help="Memory budget, such as 4GB; default: available memory.")
@click.option(
    "--machine",
    "described",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Plan for another machine, described by its `edgechat doctor --json`.",
)
@click.option("--ctx", "n_ctx", type=click.IntRange(16, 1 << 24), metavar="N", help="Context length in tokens.")
@click.option("--min-speed", type=click.FloatRange(0, 1e6), metavar="T", help="Minimum tokens per second; 0 for any.")
@click.option("--explain", is_flag=True, help="Show memory use and reasons for the chosen model.")
@click.option("--measure/--no-measure", default=True, help="Measure this machine's speed if no measurement exists.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plan(names: tuple[str, ...], *, models: tuple[str, ...], explain: bool, as_json: bool, **options: Any) -> None:
    """Compare models by memory, speed and quality.

    For `-m owner/repo[:QUANT]` the header is read from the hub, without downloading the weights.
    """
    import msgspec

    from edgechat.engine.client import EngineClient

    models += names
    engine = EngineClient()
    with tempfile.TemporaryDirectory(prefix="edgechat-") as scratch:
        try:
            rated, chosen, about = _rate(engine, models, Path(scratch), **options)
        finally:
            engine.close()
    from edgechat.planner.report import best_quants, plan_row, sort_key

    rows = sorted((plan_row(each, chosen) for each in rated), key=sort_key)
    if as_json:
        click.echo(msgspec.json.encode(about | {"models": rows}).decode())
        return
    shown = rows if models else best_quants(rows)
    _print(shown, about["available_bytes"])
    if explain and chosen is not None:
        _explain(plan_row(chosen, chosen))


def _rate(
    engine: EngineClient,
    models: tuple[str, ...],
    scratch: Path,
    *,
    with_catalogue: bool,
    with_quants: bool,
    budget: str | None,
    described: Path | None,
    n_ctx: int | None,
    min_speed: float | None,
    measure: bool,
) -> tuple[list[Evaluation], Evaluation | None, dict[str, Any]]:
    """Evaluate all candidates. Return them, the automatic choice, and facts for the JSON output."""
    from edgechat import config
    from edgechat.models import selection
    from edgechat.models.resources import save_gpus
    from edgechat.planner.ranking import choose

    settings, _ = config.load()
    flags = {"n_ctx": n_ctx, "min_speed": min_speed}
    settings = config.with_overrides(settings, {name: value for name, value in flags.items() if value is not None})
    if described is None and settings.gpu and _has_gpu_modules():
        save_gpus(engine.list_devices(benchmark=False).gpus)
    machine = _machine(settings, budget, described)
    if models:
        candidates = selection.named_candidates(engine, models, scratch, with_quants=with_quants)
    else:
        candidates = selection.installed_candidates()
    if with_catalogue:
        candidates += selection.catalogue_candidates()
    speeds = _speeds(engine, measure=measure) if described is None else None
    is_exact = described is None and (bool(models) or len(candidates) <= _MAX_EXACT)
    evaluations = selection.evaluate_on(candidates, machine, settings, speeds, engine if is_exact else None)
    chosen = choose(evaluations, defaults_only=not models)
    about = {
        "available_bytes": machine.available_bytes, "backend": speeds.backend if speeds else None,
        "choice": chosen.candidate.name if chosen else None,
    }  # fmt: skip
    return evaluations, chosen, about


def _has_gpu_modules() -> bool:
    from edgechat.errors import EdgechatError
    from edgechat.runtime.backends.bundle import find_bundle

    try:
        return bool(find_bundle().gpu_modules)
    except EdgechatError:
        return False


def _machine(settings: Settings, budget: str | None, described: Path | None) -> Machine:
    import msgspec

    from edgechat import config
    from edgechat.models.resources import current_machine

    here = current_machine(settings) if described is None else _read_machine(described)
    if not budget:
        return here
    available = config.parse_size(budget)  # may exceed this machine's memory
    if available is None:
        raise click.BadParameter(config.check("budget", budget), param_hint="--budget")
    return msgspec.structs.replace(here, available_bytes=available)


def _read_machine(file: Path) -> Machine:
    """Read a machine from a file with a hardware profile. Raises UsageError if the file has none."""
    import msgspec

    from edgechat import files
    from edgechat.errors import UsageError
    from edgechat.hardware.profile import HardwareProfile
    from edgechat.planner.machine import machine_from_profile

    try:
        raw = msgspec.json.decode(files.read_bytes(file, _MAX_PROFILE_BYTES), type=dict[str, Any])
        return machine_from_profile(msgspec.convert(raw.get("profile", raw), HardwareProfile))
    except msgspec.MsgspecError as error:
        raise UsageError(f"{file} is not a hardware profile: {error}") from None


def _speeds(engine: EngineClient, *, measure: bool) -> KernelSpeeds | None:
    from edgechat.engine import protocol
    from edgechat.errors import EdgechatError
    from edgechat.models import selection
    from edgechat.models.resources import measured_speeds

    if not measure:
        return measured_speeds()

    def on_event(event: protocol.AnyEvent) -> None:
        if isinstance(event, protocol.BackendTesting) and sys.stderr.isatty():
            click.echo(f"\r\x1b[2K{event.message} ...", nl=False, err=True)

    try:
        return selection.load_or_measure_speeds(engine, on_event)
    except EdgechatError as error:  # memory and quality do not depend on speeds
        click.echo(f"edgechat: No speed measurement: {escape_controls(str(error))}", err=True)
        return None
    finally:
        if sys.stderr.isatty():
            click.echo("\r\x1b[2K", nl=False, err=True)


def _print(rows: list[PlanRow], available: int) -> None:
    from edgechat.planner.report import BAR_WIDTH, memory_bar

    click.echo(f"{size(available)} of memory available")
    if not rows:
        click.echo("No models installed. Try `edgechat plan --all`, or `edgechat plan -m owner/repo:Q4_K_M`.")
        return
    width = min(max(len(row.name) for row in rows), max(12, shutil.get_terminal_size().columns - _COLUMNS))
    click.echo(
        f"  {'':<{width}}  {'quant':<9}{'memory':>9}{'context':>8}{'tok/s':>7}{'1k in':>7}{'quality':>9}{'loss':>6}"
    )
    for row in rows:
        mark = "*" if row.is_chosen else " "
        memory = ("" if row.size_is_known else "~") + size(row.total_bytes)
        quality = "?" if row.quality is None else f"{max(0.0, row.quality):.1f}{'' if row.quality_is_measured else '?'}"
        loss = "?" if row.quality_loss is None else f"{row.quality_loss:.1f}"
        name = row.name if len(row.name) <= width else row.name[: width - 1] + "…"
        click.echo(escape_controls(
            f"{mark} {name:<{width}}  {row.quant:<9}{memory:>9}{row.n_ctx or '':>8}"
            f"{_number(row.decode_tps):>7}{_number(row.ttft_1000_s, ' s'):>7}{quality:>9}{loss:>6}"
        ))  # fmt: skip
        click.echo(escape_controls(f"  {memory_bar(row.memory, available):<{BAR_WIDTH}}  {row.verdict}"))
    click.echo("* automatic choice   ? estimated quality   ~ estimated size")
    click.echo("# weights  + repacked weights  k KV cache  c compute buffers  s speculation  p processes")


def _number(value: float | None, unit: str = "") -> str:
    if value is None:
        return "?"
    return f"{value:.0f}{unit}" if value >= 10 else f"{value:.1f}{unit}"  # noqa: PLR2004  (two digits)


def _explain(row: PlanRow) -> None:
    from edgechat.planner.report import MEMORY_PARTS

    click.echo(escape_controls(f"\n{row.name}: {row.verdict}"))
    for name, _, words in MEMORY_PARTS:
        count = getattr(row.memory, name)
        if count:
            click.echo(f"  {words:<32}{size(count):>10}")
    click.echo(f"  {'total':<32}{size(row.total_bytes):>10}{'' if row.memory.is_exact else '  (estimated)'}")
    for field, reason in row.reasons.items():
        value = "" if row.plan is None or field not in row.plan else f" = {row.plan[field]}"
        click.echo(escape_controls(f"  {field}{value}: {reason}"))
