"""`edgechat plan`: what models take of this machine's memory, before they are loaded or even here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from edgechat.chat.visible import visible
from edgechat.cli.model_info import size
from edgechat.cli.models import complete_model

if TYPE_CHECKING:
    from edgechat.modelfile.header import ModelHeader
    from edgechat.planner.plan import MemoryEstimate
    from edgechat.planner.report import Row

_BAR: Final = 24
# Of a bar: what each part of the memory is drawn with.
_PARTS: Final = (
    ("weights", "#"),
    ("repacked", "+"),
    ("kv_cache", "k"),
    ("compute", "c"),
    ("speculation", "s"),
    ("process", "p"),
)


@click.command()
@click.argument("models", nargs=-1, shell_complete=complete_model)
@click.option("--budget", metavar="SIZE", help="Memory that may be used, such as 4GB, instead of what is available.")
@click.option("--ctx", "n_ctx", type=click.IntRange(16, 1 << 24), metavar="N", help="Context in tokens.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plan(models: tuple[str, ...], *, budget: str | None, n_ctx: int | None, as_json: bool) -> None:
    """Say what models would take of memory, and whether they fit: all that are here, or those that are named.

    `owner/repo[:QUANT]` is looked at on the hub, without its weights. With --budget, also for another machine.
    """
    import msgspec

    from edgechat import config
    from edgechat.chat.loading import available_bytes
    from edgechat.hardware.cpu import usable_threads
    from edgechat.planner.report import report

    settings, _ = config.load()
    if budget:  # it may be another machine's
        available = config.size_bytes(budget)
        if available is None:
            raise click.BadParameter(config.check("budget", budget), param_hint="--budget")
    else:
        available = available_bytes(settings)
    wanted, n_threads = n_ctx or settings.n_ctx, usable_threads()
    rows = [report(name, header, available, wanted, n_threads) for name, header in _headers(models)]
    rows.sort(key=lambda row: (not row.fits, -row.memory.weights))
    if as_json:
        click.echo(msgspec.json.encode({"available_bytes": available, "models": rows}).decode())
    else:
        _print(rows, available)


def _headers(names_given: tuple[str, ...]) -> list[tuple[str, ModelHeader]]:
    """Raises EdgechatError for a name that stands for nothing."""
    from edgechat.catalogue import library, names, remote
    from edgechat.errors import ModelFileError
    from edgechat.modelfile.split import read_header

    if not names_given:
        return [(entry.name, read_header(entry.path)) for entry in library.scan() if entry.is_usable]
    found = []
    for name in names_given:
        try:
            found.append((name, read_header(names.find_model(name))))
        except ModelFileError:  # noqa: PERF203  (a few names)
            far = None if library.looks_like_a_path(name) else remote.look(name)
            if far is None:
                raise
            found.append((name, far[1]))
    return found


def _print(rows: list[Row], available: int) -> None:
    click.echo(f"{size(available)} of memory may be used")
    if not rows:
        click.echo("no models here; name one, as in `edgechat plan owner/repo:Q4_K_M`")
        return
    width = min(34, max(len(row.name) for row in rows))
    click.echo(f"{'':<{width}}  {'quant':<9}{'memory':>9}{'context':>9}  {'of what may be used':<{_BAR}}")
    for row in rows:
        bar = _bar(row.memory, available)
        click.echo(
            visible(f"{row.name:<{width}}  {row.quant:<9}{size(row.total_bytes):>9}{row.n_ctx:>9}  {bar:<{_BAR}}")
        )
        click.echo(visible(f"{'':<{width}}  {row.verdict}"))
    click.echo("# weights  + their copies for faster kernels  k keys and values  c computing  s drafts  p programs")


def _bar(memory: MemoryEstimate, available: int) -> str:
    """One character for each part of the budget that is used, a > where it is too small."""
    bar, done = "", 0
    for name, sign in _PARTS:
        done += int(getattr(memory, name))
        bar += sign * (round(_BAR * done / max(1, available)) - len(bar))
        if len(bar) >= _BAR:
            return bar[: _BAR - 1] + (">" if memory.total > available else bar[_BAR - 1])
    return bar
