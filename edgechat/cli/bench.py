"""`edgechat bench`: measurements."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edgechat.bench.memory import MemoryBenchReport
    from edgechat.bench.prefix import PrefixReport
    from edgechat.bench.speculation import SpeculationReport
    from edgechat.bench.speed import SpeedReport

_Command = Callable[..., None]
_model = click.option(
    "-m", "--model", default="starter", show_default=True, metavar="NAME", help="A .gguf file or a name."
)
_threads = click.option("--threads", "n_threads", type=click.IntRange(1, 512), metavar="N", help="Compute threads.")
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def _rounds(default: int) -> Callable[[_Command], _Command]:
    return click.option(
        "--rounds", type=click.IntRange(1), default=default, show_default=True, help="Measurements; medians count."
    )


def _peer(tool: str) -> Callable[[_Command], _Command]:
    return click.option(
        "--peer",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        metavar=tool.replace("-", "_").upper(),
        help=f"A {tool} to take turns with (`make peers` builds one).",
    )


@click.group()
def bench() -> None:
    """Measure this machine, and edgechat against llama.cpp's own tools."""


@bench.command()
@_model
@_peer("llama-bench")
@_threads
@click.option("--prompt", "n_prompt", type=click.IntRange(1), default=256, show_default=True, help="Tokens to prefill.")
@click.option("--gen", "n_gen", type=click.IntRange(2), default=64, show_default=True, help="Tokens to decode.")
@click.option("--depth", "n_depth", type=click.IntRange(0), default=0, show_default=True, help="Tokens before both.")
@_rounds(5)
@_json
def speed(
    model: str, peer: Path | None, n_threads: int | None, n_prompt: int, n_gen: int, n_depth: int, rounds: int,
    as_json: bool,
) -> None:  # fmt: skip
    """Measure prefill and decode speed, in turn with llama-bench if --peer names one.

    Absolute figures hold for this moment of this machine; the ratios are what can be compared.
    """
    import msgspec

    from edgechat.bench.speed import compare, workload_for
    from edgechat.catalogue.resolve import find_model

    workload = workload_for(
        find_model(model), n_threads, n_prompt=n_prompt, n_gen=n_gen, n_depth=n_depth, rounds=rounds
    )
    report = compare(workload, peer, lambda words: click.echo(words, err=True) if sys.stderr.isatty() else None)
    click.echo(msgspec.json.encode(report).decode() if as_json else _table(report))


@bench.command()
@click.argument("models", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--ladder", is_flag=True, help="Also the first model in every quant from Q2_K to F16.")
@_rounds(3)
@_json
def memory(models: tuple[Path, ...], *, ladder: bool, rounds: int, as_json: bool) -> None:
    """Measure what models really take, and how fast they decode, against what is planned for them.

    The starter model if none is named. Each case is a conversation in processes of its own: a few seconds.
    """
    import tempfile

    import msgspec

    from edgechat.bench.memory import run
    from edgechat.bench.quants import write_ladder
    from edgechat.catalogue.library import starter_model

    def tell(words: str) -> None:
        if sys.stderr.isatty():
            click.echo(words, err=True)

    files = list(models) or [starter_model()]
    with tempfile.TemporaryDirectory() as scratch:
        if ladder:
            tell("writing the first model in other quants")
            files += write_ladder(files[0], Path(scratch))
        report = run(files, rounds, tell)
    click.echo(msgspec.json.encode(report).decode() if as_json else _memory_table(report))


@bench.command()
@_model
@_peer("llama-server")
@_threads
@_rounds(5)
@_json
def serve(model: str, peer: Path | None, n_threads: int | None, rounds: int, *, as_json: bool) -> None:
    """Measure what serving costs, against the engine without HTTP, and against llama-server if --peer names one.

    The same client asks both servers, in turn: turns of a conversation, and four at a time.
    """
    import msgspec

    from edgechat.bench.serve import ServeWorkload, run, table
    from edgechat.catalogue.resolve import find_model
    from edgechat.hardware.cpu import usable_threads

    workload = ServeWorkload(model=str(find_model(model)), n_threads=n_threads or usable_threads(), rounds=rounds)
    report = run(workload, peer, lambda words: click.echo(words, err=True) if sys.stderr.isatty() else None)
    click.echo(msgspec.json.encode(report).decode() if as_json else table(report))


@bench.command()
@_rounds(5)
@click.option("--idle", "idle_s", type=click.FloatRange(1), default=60.0, show_default=True, help="Seconds of idling.")
@_json
def tui(*, rounds: int, idle_s: float, as_json: bool) -> None:
    """Measure how the chat feels, in turn with the smallest Textual programs: some minutes.

    First frame, keys while an answer comes into a long conversation, opening it, memory, what idling costs, and what
    the screen costs decoding.
    """
    import msgspec

    from edgechat.bench.tui import run, table

    report = run(rounds, lambda words: click.echo(words, err=True) if sys.stderr.isatty() else None, idle_s)
    click.echo(msgspec.json.encode(report).decode() if as_json else table(report))


@bench.command()
@click.option(
    "--conversations", type=click.IntRange(1), default=10_000, show_default=True, metavar="N", help="How many."
)
@click.option(
    "--messages", type=click.IntRange(1), default=500_000, show_default=True, metavar="N", help="In all of them."
)
@click.option(
    "--directory", type=click.Path(file_okay=False, path_type=Path), metavar="DIR", help="Where to make the database."
)
@_json
def store(conversations: int, messages: int, directory: Path | None, as_json: bool) -> None:
    """Measure the store of conversations: a new one, filled with random words, on the disk of your data.

    Takes minutes and some gigabytes, which it gives back.
    """
    import tempfile

    import msgspec

    from edgechat import paths
    from edgechat.bench.store import run
    from edgechat.errors import UsageError

    if messages < conversations:
        raise UsageError(f"{messages} messages are too few for {conversations} conversations")
    parent = directory or paths.cache_dir()
    parent.mkdir(parents=True, exist_ok=True)
    tell = sys.stderr.isatty()
    with tempfile.TemporaryDirectory(dir=parent) as scratch:
        report = run(
            Path(scratch), conversations, messages,
            lambda words: click.echo(f"\r\x1b[2K{words}", nl=False, err=True) if tell else None,
        )  # fmt: skip
    if tell:
        click.echo("\r\x1b[2K", nl=False, err=True)
    if as_json:
        click.echo(msgspec.json.encode(report).decode())
        return
    click.echo(
        f"{report.n_conversations} conversations, {report.n_messages} messages, {report.size_bytes / 1e6:.0f} MB, "
        f"filled in {report.build_s:.0f} s"
    )
    click.echo(f"{'':<36}{'median':>10}{'p99':>10}  ms")
    for timing in report.timings:
        click.echo(f"{timing.name:<36}{timing.median_ms:10.2f}{timing.p99_ms:10.2f}")
    click.echo(f"{'write and fsync 32 KiB':<36}{'':10}{report.fsync_p99_ms:10.2f}")
    click.echo(f"{'append over that':<36}{'':10}{report.append_over_fsync_p99_ms:10.2f}")


@bench.command()
@_model
@_peer("llama-server")
@_threads
@click.option(
    "--history", "n_history", type=click.IntRange(200), default=2000, show_default=True, help="Tokens said before."
)
@click.option("--new", "n_new", type=click.IntRange(1), default=60, show_default=True, help="Tokens of a message.")
@_rounds(5)
@_json
def prefix(
    model: str, peer: Path | None, n_threads: int | None, n_history: int, n_new: int, rounds: int, *, as_json: bool
) -> None:
    """Measure the time to the first token where a conversation goes on, is edited, switched, or opened again."""
    import msgspec

    from edgechat.bench.prefix import PrefixWorkload, run
    from edgechat.catalogue.resolve import find_model
    from edgechat.hardware.cpu import usable_threads

    work = PrefixWorkload(
        model=str(find_model(model)), n_threads=n_threads or usable_threads(), n_history=n_history, n_new=n_new,
        rounds=rounds,
    )  # fmt: skip
    report = run(work, peer, lambda words: click.echo(words, err=True) if sys.stderr.isatty() else None)
    click.echo(msgspec.json.encode(report).decode() if as_json else _prefix_table(report))


@bench.command()
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_model
@_peer("llama-server")
@_threads
@_rounds(3)
@_json
def speculation(
    file: Path | None, model: str, peer: Path | None, n_threads: int | None, rounds: int, *, as_json: bool
) -> None:
    """Measure what drafts are worth, in conversations of several kinds; FILE holds others (TOML, like ours).

    "forced" are the written answers and "free" the model's own, on the clock, with drafts and without in turn.
    "length" is how many tokens a step with a draft brings, "fresh" the same replays by a program that has learned nothing.
    "noise" is without drafts against without: what this machine makes of 1.
    "replayed" goes through the written ones without the model, by the measured costs of steps, as do the fixed settings
    beside it.
    """
    import msgspec

    from edgechat.bench import workloads
    from edgechat.bench.speculation import Options, run
    from edgechat.catalogue.resolve import find_model
    from edgechat.hardware.cpu import usable_threads

    options = Options(
        model=str(find_model(model)), n_threads=n_threads or usable_threads(), rounds=rounds, peer=peer
    )  # fmt: skip
    tell = sys.stderr.isatty()
    report = run(
        options, workloads.read(file),
        lambda words: click.echo(f"\r\x1b[2K{words}", nl=False, err=True) if tell else None,
    )  # fmt: skip
    if tell:
        click.echo("\r\x1b[2K", nl=False, err=True)
    click.echo(msgspec.json.encode(report).decode() if as_json else _speculation_table(report))


def _speculation_table(report: SpeculationReport) -> str:
    fixed, peers = list(report.rows[0].fixed), list(report.rows[0].peers)
    heads = ["forced", "noise", "free", "length", "replayed", "fresh", *fixed, *peers]
    costs = ", ".join(f"{n}: {ratio:.2f}" for n, ratio in report.step_costs.items())
    lines = [
        (
            f"{Path(report.model).name}, {report.backend}, {report.n_threads} threads, {report.rounds} rounds (medians); "
            "speeds in times of decoding token by token"
        ),
        f"cost of a step of n tokens: {costs}; ceiling {report.ceiling:.1f}",
        f"{'':<18}" + "".join(f"{head:>{max(9, len(head) + 2)}}" for head in heads),
    ]
    for row in report.rows:
        values = [
            row.forced, row.noise, row.free, row.mean_acceptance_length, row.replayed, row.replayed_fresh,
            *row.fixed.values(), *(row.peers.get(name) for name in peers),
        ]  # fmt: skip
        lines.append(
            f"{row.kind:<18}"
            + "".join(
                f"{'' if value is None else format(value, '.3f'):>{max(9, len(head) + 2)}}"
                for head, value in zip(heads, values, strict=True)
            )
        )
    lines.append(
        f"replayed answers, the model's own among them: 5th percentile {report.fifth_percentile:.3f}, "
        f"worst of 100 tokens or more {report.worst_reply:.3f}"
    )
    same = report.agreement
    lines.append(
        f"the model's own answers with drafts and without: {same.n_different} of {same.n_answers} differ, "
        f"in {same.n_tokens} tokens"
    )
    return "\n".join(lines)


def _prefix_table(report: PrefixReport) -> str:
    from statistics import median

    work = report.workload
    head = ("ms", "beside", "cached", "cold/ours", "llama-server ms", "cached", "its/ours")
    sizes = f"{work.n_history} tokens and {work.n_new} new ones, {work.rounds} rounds (medians)"
    lines = [
        f"{Path(work.model).name}, {report.backend}, {work.n_threads} threads, {sizes}",
        f"cold: {median(report.cold_ttft_s) * 1000:.0f} ms to the first token, {report.prefill_tps:.0f} tokens/s",
        "{:<26}{:>8}{:>8}{:>8}{:>11}{:>17}{:>8}{:>10}".format("", *head),
    ]
    for row in report.rows:
        line = (
            f"{row.name:<26}{median(row.ttft_s) * 1000:8.1f}{median(row.beside_s) * 1000:8.1f}{row.cached_tokens:8}"
            f"{row.times_faster_than_cold:11.1f}"
        )
        if row.times_faster_than_peer is not None:
            line += (
                f"{median(row.peer_ttft_s) * 1000:17.1f}{row.peer_cached_tokens:8}{row.times_faster_than_peer:10.2f}"
            )
        lines.append(line)
    lines.append(f"four answers side by side: {median(report.four_answers_cost):.2f} times the time of one")
    return "\n".join(lines)


def _table(report: SpeedReport) -> str:
    import statistics

    work = report.workload
    lines = [
        (
            f"{Path(work.model).name}, {report.backend}, {work.n_threads} threads, depth {work.n_depth}, "
            f"{work.rounds} rounds (medians)"
        ),
        f"{'':<12}{'edgechat':>12}{'llama-bench':>14}{'ratio':>8}",
    ]
    for name, size, field, ratio in (
        ("prefill", work.n_prompt, "prefill_tps", report.prefill_ratio),
        ("decode", work.n_gen, "decode_tps", report.decode_ratio),
    ):
        ours, theirs = ([getattr(s, field) for s in samples] for samples in (report.ours, report.peer))
        peer = f"{statistics.median(theirs):14.1f}{ratio:8.3f}" if theirs else ""
        lines.append(f"{name} {size:<{11 - len(name)}}{statistics.median(ours):12.1f}{peer}")
    return "\n".join(lines)


def _memory_table(report: MemoryBenchReport) -> str:
    mb = 1e6
    lines = [
        "| model | context, K/V, weights | planned MB | by formulas | taken | error |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for each in report.memory:
        options = each.options
        how = f"{'mapped' if options.use_mmap else 'read'}{'' if options.use_extra_bufts else ', plain'}"
        lines.append(
            f"| {each.model} | {options.n_ctx}, {options.kv_type}, {how} | {each.predicted.total / mb:.0f} "
            f"| {each.by_formulas_bytes / mb:.0f} | {each.peak_bytes / mb:.0f} "
            f"| {each.error_bytes / mb:+.1f} ({each.error_bytes / each.peak_bytes:+.1%}){'' if each.is_close else ' !'} |"
        )
    lines += ["", "| model | predicted tokens/s | measured | ratio |", "|---|--:|--:|--:|"]
    lines += [
        f"| {each.model} | {each.predicted_tps:.1f} | {each.measured_tps:.1f} | {each.ratio:.2f} |"
        for each in sorted(report.speed, key=lambda s: -s.measured_tps)
    ]
    return "\n".join(lines)
