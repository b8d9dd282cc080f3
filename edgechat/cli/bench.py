"""`edgechat bench`: run benchmarks."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import click

_Command = Callable[..., None]
_model = click.option(
    "-m", "--model", default="starter", show_default=True, metavar="NAME", help="Model name or .gguf file."
)
_threads = click.option(
    "--threads", "n_threads", type=click.IntRange(1, 512), metavar="N", help="Number of compute threads."
)
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def _rounds(default: int) -> Callable[[_Command], _Command]:
    return click.option(
        "--rounds",
        type=click.IntRange(1),
        default=default,
        show_default=True,
        help="Number of rounds; medians are reported.",
    )


def _peer(tool: str) -> Callable[[_Command], _Command]:
    return click.option(
        "--peer",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        metavar=tool.replace("-", "_").upper(),
        help=f"Path of a {tool} to compare with (`make peers` builds one).",
    )


def _print_progress(text: str) -> None:
    if sys.stderr.isatty():
        click.echo(text, err=True)


def _update_progress_line(text: str) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[2K{text}", nl=False, err=True)


@click.group()
def bench() -> None:
    """Benchmark edgechat, alone or against llama.cpp's tools."""


@bench.command()
@_model
@_peer("llama-bench")
@_threads
@click.option("--prompt", "n_prompt", type=click.IntRange(1), default=256, show_default=True, help="Tokens to prefill.")
@click.option("--gen", "n_gen", type=click.IntRange(2), default=64, show_default=True, help="Tokens to decode.")
@click.option(
    "--depth", "n_depth", type=click.IntRange(0), default=0, show_default=True, help="Context depth in tokens."
)
@_rounds(5)
@_json
def speed(
    model: str, peer: Path | None, n_threads: int | None, n_prompt: int, n_gen: int, n_depth: int, rounds: int,
    as_json: bool,
) -> None:  # fmt: skip
    """Measure prefill and decode speed.

    With --peer, alternates with llama-bench. Compare ratios, not absolute figures: those vary with the machine's load.
    """
    import msgspec

    from edgechat.bench.speed import compare, table, workload_for
    from edgechat.catalogue.resolve import find_model

    workload = workload_for(
        find_model(model), n_threads, n_prompt=n_prompt, n_gen=n_gen, n_depth=n_depth, rounds=rounds
    )
    report = compare(workload, peer, _print_progress)
    click.echo(msgspec.json.encode(report).decode() if as_json else table(report))


@bench.command()
@click.argument("files", nargs=-1, metavar="", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "-m", "--model", "models", multiple=True, metavar="NAME", help="Model name or .gguf file; may be repeated."
)
@click.option("--quants", "with_quants", is_flag=True, help="Add the first model in every quant from Q2_K to F16.")
@click.option("--ladder", "with_ladder", is_flag=True, hidden=True)
@_rounds(3)
@_json
def memory(
    files: tuple[Path, ...],
    *,
    models: tuple[str, ...],
    with_quants: bool,
    with_ladder: bool,
    rounds: int,
    as_json: bool,
) -> None:
    """Compare planned with used memory and predicted speeds.

    Default: the starter model. Each case is a conversation in fresh processes and takes a few seconds.
    """
    import tempfile

    import msgspec

    from edgechat.bench.memory import run, table
    from edgechat.bench.quants import write_quants
    from edgechat.catalogue.library import starter_model
    from edgechat.catalogue.resolve import find_model

    paths = [*(find_model(model) for model in models), *files] or [starter_model()]
    with tempfile.TemporaryDirectory() as scratch:
        if with_quants or with_ladder:
            _print_progress("writing the first model in other quants")
            paths += write_quants(paths[0], Path(scratch))
        report = run(paths, rounds, _print_progress)
    click.echo(msgspec.json.encode(report).decode() if as_json else table(report))


@bench.command()
@_model
@_peer("llama-server")
@_threads
@_rounds(5)
@_json
def serve(model: str, peer: Path | None, n_threads: int | None, rounds: int, *, as_json: bool) -> None:
    """Measure the server, optionally against llama-server.

    The same client asks both servers in alternating order: turns of a conversation, and four clients at a time.
    """
    import msgspec

    from edgechat.bench.serve import ServeWorkload, run, table
    from edgechat.catalogue.resolve import find_model
    from edgechat.hardware.cpu import usable_threads

    workload = ServeWorkload(model=str(find_model(model)), n_threads=n_threads or usable_threads(), rounds=rounds)
    report = run(workload, peer, _print_progress)
    click.echo(msgspec.json.encode(report).decode() if as_json else table(report))


@bench.command()
@_rounds(5)
@click.option(
    "--idle",
    "idle_s",
    type=click.FloatRange(1),
    default=60.0,
    show_default=True,
    help="Seconds of the idle measurement.",
)
@_json
def tui(*, rounds: int, idle_s: float, as_json: bool) -> None:
    """Measure the terminal interface.

    Compares with minimal Textual programs: first frame, key latency during a reply in a long conversation, opening it,
    memory, idle CPU, and the effect of the screen on decode speed. Takes some minutes.
    """
    import msgspec

    from edgechat.bench.tui import run, table

    report = run(rounds, _print_progress, idle_s)
    click.echo(msgspec.json.encode(report).decode() if as_json else table(report))


@bench.command()
@click.option(
    "--conversations",
    type=click.IntRange(1),
    default=10_000,
    show_default=True,
    metavar="N",
    help="Number of conversations.",
)
@click.option(
    "--messages",
    type=click.IntRange(1),
    default=500_000,
    show_default=True,
    metavar="N",
    help="Number of messages in total.",
)
@click.option(
    "--directory", type=click.Path(file_okay=False, path_type=Path), metavar="DIR", help="Directory for the database."
)
@_json
def store(conversations: int, messages: int, directory: Path | None, as_json: bool) -> None:
    """Measure the conversation store with random messages.

    Writes a temporary database of a few gigabytes to the cache directory, or to --directory. Takes several minutes.
    """
    import tempfile

    import msgspec

    from edgechat import paths
    from edgechat.bench.store import run, table
    from edgechat.errors import UsageError

    if messages < conversations:
        raise UsageError(f"--messages must be at least the number of conversations ({conversations}); got {messages}.")
    parent = directory or paths.cache_dir()
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent) as scratch:
        report = run(Path(scratch), conversations, messages, _update_progress_line)
    _update_progress_line("")
    click.echo(msgspec.json.encode(report).decode() if as_json else table(report))


@bench.command()
@_model
@_peer("llama-server")
@_threads
@click.option(
    "--history",
    "n_history",
    type=click.IntRange(200),
    default=2000,
    show_default=True,
    help="Tokens of the conversation.",
)
@click.option(
    "--new", "n_new", type=click.IntRange(1), default=60, show_default=True, help="Tokens of the next message."
)
@_rounds(5)
@_json
def prefix(
    model: str, peer: Path | None, n_threads: int | None, n_history: int, n_new: int, rounds: int, *, as_json: bool
) -> None:
    """Measure the prompt cache: time to the first token.

    Scenarios: next turn, edited message, alternative reply, branch switch, reopened conversation.
    """
    import msgspec

    from edgechat.bench.prefix import PrefixWorkload, run, table
    from edgechat.catalogue.resolve import find_model
    from edgechat.hardware.cpu import usable_threads

    work = PrefixWorkload(
        model=str(find_model(model)), n_threads=n_threads or usable_threads(), n_history=n_history, n_new=n_new,
        rounds=rounds,
    )  # fmt: skip
    report = run(work, peer, _print_progress)
    click.echo(msgspec.json.encode(report).decode() if as_json else table(report))


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
    """Measure speculative decoding by kind of conversation.

    FILE is a TOML file with other conversations. Columns: "forced" are scripted replies and "free" the model's own,
    measured with and without drafts in turn; "noise" compares two runs without drafts; "length" is the number of
    tokens per step with a draft; "replayed" is the speed of the scripted replies in a simulation with measured step
    costs, "fresh" the same without learning from earlier replies; the other columns are fixed policies and
    llama-server.
    """
    import msgspec

    from edgechat.bench import workloads
    from edgechat.bench.speculation import SpeculationOptions, run, table
    from edgechat.catalogue.resolve import find_model
    from edgechat.hardware.cpu import usable_threads

    options = SpeculationOptions(
        model=str(find_model(model)), n_threads=n_threads or usable_threads(), rounds=rounds, peer=peer
    )  # fmt: skip
    report = run(options, workloads.read_workloads(file), _update_progress_line)
    _update_progress_line("")
    click.echo(msgspec.json.encode(report).decode() if as_json else table(report))
