"""`edgechat bench`: run benchmarks."""

from __future__ import annotations

import os
from pathlib import Path

import click

from edgechat.cli.bench_agent import agent
from edgechat.cli.bench_documents import documents
from edgechat.cli.bench_options import (
    count_option,
    gpu_option,
    json_option,
    model_option,
    peer_option,
    print_progress,
    rounds_option,
    threads_option,
)
from edgechat.cli.bench_reasoning import reasoning
from edgechat.cli.bench_routing import routing
from edgechat.cli.bench_serve import serve
from edgechat.cli.bench_speculation import draft_model_option, speculation
from edgechat.cli.json_output import echo_json
from edgechat.cli.options import FloatRange, IntRange
from edgechat.cli.progress import StderrStatus


@click.group()
def bench() -> None:
    """Benchmark edgechat, alone or against llama.cpp's tools."""
    os.environ["EDGECHAT_ENGINE"] = "private"  # a measured engine has no other clients, and has loaded nothing before


@bench.command()
@model_option
@peer_option("llama-bench")
@threads_option
@count_option("--prompt", "n_prompt", "Number of tokens to prefill.", default=256)
@count_option("--gen", "n_gen", "Number of tokens to decode.", default=64, minimum=2)
@count_option("--depth", "n_depth", "Number of tokens in the context before the measurement.", default=0, minimum=0)
@rounds_option(5)
@gpu_option
@json_option
def speed(
    model: str, peer: Path | None, n_threads: int | None, n_prompt: int, n_gen: int, n_depth: int, rounds: int,
    *, uses_gpu: bool, as_json: bool,
) -> None:  # fmt: skip
    """Measure prefill and decode speed.

    With --peer, runs of edgechat and llama-bench alternate. Compare only their ratios, because absolute speeds vary
    with the load of the machine. With --gpu, both compute every layer on the GPU.
    """
    from edgechat.bench.speed import compare, format_table, make_workload
    from edgechat.catalogue.resolve import find_model

    workload = make_workload(
        find_model(model), n_threads, n_prompt=n_prompt, n_gen=n_gen, n_depth=n_depth, rounds=rounds,
        uses_gpu=uses_gpu,
    )  # fmt: skip
    report = compare(workload, peer, print_progress)
    echo_json(report) if as_json else click.echo(format_table(report))


@bench.command()
@model_option
@peer_option("llama-bench")
@click.option(
    "--peer-module",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Also run llama-bench with this CPU module of llama.cpp.",
)
@threads_option
@count_option("--prompt", "n_prompt", "Number of tokens to prefill.", default=256)
@count_option("--gen", "n_gen", "Number of tokens to decode.", default=32, minimum=2)
@rounds_option(9)
@json_option
def busy(
    model: str, peer: Path | None, peer_module: Path | None, n_threads: int | None, n_prompt: int, n_gen: int,
    rounds: int, *, as_json: bool,
) -> None:  # fmt: skip
    """Measure the speed while other processes are busy.

    Measures prefill and decode on the idle machine, with one busy process, and with one busy process per core. With
    --peer, runs of edgechat and llama-bench alternate. llama-bench uses edgechat's CPU module; with --peer-module, it
    also runs with that module. A module with llama.cpp's own barrier can take minutes for each run.
    """
    from edgechat.bench.busy import Peer, format_table, run
    from edgechat.bench.speed import make_workload
    from edgechat.catalogue.resolve import find_model
    from edgechat.errors import UsageError

    if peer_module is not None and peer is None:
        raise UsageError("--peer-module is the module of llama-bench. Add --peer LLAMA_BENCH.")
    peers = [Peer("llama-bench", peer)] if peer is not None else []
    if peer is not None and peer_module is not None:
        peers.append(Peer("llama-bench, other module", peer, str(peer_module.resolve())))
    workload = make_workload(find_model(model), n_threads, n_prompt=n_prompt, n_gen=n_gen, rounds=rounds)
    report = run(workload, peers, print_progress)
    echo_json(report) if as_json else click.echo(format_table(report))


@bench.command()
@click.argument("files", nargs=-1, metavar="", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "-m", "--model", "models", multiple=True, metavar="NAME", help="Model name or .gguf file; may be repeated."
)
@click.option(
    "--quants",
    "with_quants",
    is_flag=True,
    help="Also measure the first model in all quants from Q2_K to F16.",
)
@click.option("--ladder", "with_ladder", is_flag=True, hidden=True)
@draft_model_option("Measure only the memory with this draft model or these heads; auto chooses as for a chat.")
@rounds_option(3)
@json_option
def memory(
    files: tuple[Path, ...],
    *,
    models: tuple[str, ...],
    with_quants: bool,
    with_ladder: bool,
    draft_model: str | None,
    rounds: int,
    as_json: bool,
) -> None:
    """Compare planned and measured memory and speed.

    Without a model, measures the starter model. Each case runs a conversation in new processes and takes a few seconds.
    """
    import tempfile

    from edgechat.bench.memory import format_table, run
    from edgechat.bench.quants import write_quants
    from edgechat.catalogue.library import starter_model
    from edgechat.catalogue.resolve import find_model

    paths = [*(find_model(model) for model in models), *files] or [starter_model()]
    with tempfile.TemporaryDirectory() as scratch_dir:
        if with_quants or with_ladder:
            print_progress("Converting the first model to other quants")
            paths += write_quants(paths[0], Path(scratch_dir))
        report = run(paths, rounds, print_progress, draft_model)
    echo_json(report) if as_json else click.echo(format_table(report))


@bench.command()
@model_option
@threads_option
@click.option(
    "--type",
    "kv_types",
    multiple=True,
    metavar="TYPE",
    help="Type of keys and values, such as q8_0 or q8_0/q4_0; may be repeated. Default: all that the model supports.",
)
@click.option(
    "--depth",
    "depths",
    type=IntRange(1024, 1 << 24),
    multiple=True,
    metavar="N",
    help="Tokens in the context; may be repeated. Default: 2048 and 8192.",
)
@click.option(
    "--yarn", "with_yarn", is_flag=True, help="Compare F16 with and without YaRN, beyond the training length."
)
@json_option
def kv(
    model: str, n_threads: int | None, kv_types: tuple[str, ...], depths: tuple[int, ...], *, with_yarn: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Measure the loss of quality with a smaller KV cache.

    Compares the predictions of each type of keys and values with those of F16 at the end of a fixed text (mean
    Kullback-Leibler divergence, and how often the most likely token is the same), and asks for ten numbers that are
    hidden in the text. With --yarn, measures contexts that are longer than the training length: by default, four times
    as long. Takes minutes for each type.
    """
    from edgechat.bench.kv import format_table, make_workload, run
    from edgechat.catalogue.resolve import find_model

    workload = make_workload(find_model(model), n_threads, list(kv_types), list(depths), with_yarn=with_yarn)
    status = StderrStatus(print_lines=True)
    report = run(workload, status.show)
    status.clear()
    echo_json(report) if as_json else click.echo(format_table(report))


@bench.command()
@rounds_option(5)
@click.option(
    "--idle",
    "idle_s",
    type=FloatRange(1),
    default=60.0,
    show_default=True,
    help="Duration of the idle measurement in seconds.",
)
@json_option
def tui(*, rounds: int, idle_s: float, as_json: bool) -> None:
    """Measure the speed and memory use of the terminal UI.

    Compares edgechat with minimal Textual programs: time to the first frame, key latency during a reply, time to open a
    long conversation, memory use, CPU use when idle, and the effect of the screen on decode speed. Takes a few minutes.
    """
    from edgechat.bench.tui import format_table, run

    report = run(rounds, print_progress, idle_s)
    echo_json(report) if as_json else click.echo(format_table(report))


@bench.command()
@model_option
@rounds_option(9)
@json_option
def attach(model: str, rounds: int, *, as_json: bool) -> None:
    """Measure programs that share an engine.

    Measures the time to the first text of `ask` with a running engine and without one, in turn with a private engine;
    the first token of `ask` beside an open chat; and the memory of one and two chats.
    """
    from edgechat.bench.attach import format_table, run
    from edgechat.catalogue.resolve import find_model

    status = StderrStatus()
    report = run(find_model(model), rounds, status.show)
    status.clear()
    echo_json(report) if as_json else click.echo(format_table(report))


@bench.command()
@count_option("--conversations", "n_conversations", "Number of conversations to create.", default=10_000, metavar="N")
@count_option("--messages", "n_messages", "Total number of messages to create.", default=500_000, metavar="N")
@click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Directory for the temporary database. Default: cache directory.",
)
@json_option
def store(n_conversations: int, n_messages: int, directory: Path | None, as_json: bool) -> None:
    """Measure the conversation store with random messages.

    Writes a temporary database of a few gigabytes. Takes several minutes.
    """
    import tempfile

    from edgechat import paths
    from edgechat.bench.store import format_table, run
    from edgechat.errors import UsageError

    if n_messages < n_conversations:
        raise UsageError(
            f"--messages must be at least the number of conversations ({n_conversations}); got {n_messages}."
        )
    status, parent = StderrStatus(), directory or paths.cache_dir()
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent) as scratch_dir:
        report = run(Path(scratch_dir), n_conversations, n_messages, status.show)
    status.clear()
    echo_json(report) if as_json else click.echo(format_table(report))


@bench.command()
@model_option
@peer_option("llama-server")
@threads_option
@count_option("--history", "n_history", "Length of the conversation in tokens.", default=2000, minimum=200)
@count_option("--new", "n_new", "Length of the next message in tokens.", default=60)
@rounds_option(5)
@json_option
def prefix(
    model: str, peer: Path | None, n_threads: int | None, n_history: int, n_new: int, rounds: int, *, as_json: bool
) -> None:
    """Measure the time to first token with the prompt cache.

    Scenarios: next turn, edited message, alternative reply, switch to another branch, and reopened conversation.
    """
    from edgechat.bench.prefix import PrefixWorkload, format_table, run
    from edgechat.catalogue.resolve import find_model
    from edgechat.hardware.cpu import count_usable_threads

    workload = PrefixWorkload(
        model=str(find_model(model)), n_threads=n_threads or count_usable_threads(), n_history=n_history, n_new=n_new,
        rounds=rounds,
    )  # fmt: skip
    report = run(workload, peer, print_progress)
    echo_json(report) if as_json else click.echo(format_table(report))


bench.add_command(agent)
bench.add_command(documents)
bench.add_command(reasoning)
bench.add_command(routing)
bench.add_command(serve)
bench.add_command(speculation)
