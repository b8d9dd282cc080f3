"""`edgechat bench serve`: measure the OpenAI-compatible server, and drafts for several clients."""

from __future__ import annotations

from pathlib import Path

import click

from edgechat.cli.bench_options import (
    json_option,
    model_option,
    peer_option,
    print_progress,
    rounds_option,
    threads_option,
)
from edgechat.cli.bench_speculation import draft_model_option, kinds_option
from edgechat.cli.json_output import echo_json
from edgechat.errors import UsageError


@click.command()
@model_option
@peer_option("llama-server")
@threads_option
@click.option("--drafts", "with_drafts", is_flag=True, help="Compare four clients with and without drafts instead.")
@draft_model_option("Draft model or heads for --drafts; auto (default), or off for drafts from the text only.")
@kinds_option("Kind of conversation for --drafts; may be repeated. Default: reprint, edit and open chat.")
@rounds_option(5)
@json_option
def serve(
    model: str, peer: Path | None, n_threads: int | None, draft_model: str | None, kinds: tuple[str, ...], rounds: int,
    *, with_drafts: bool, as_json: bool,
) -> None:  # fmt: skip
    """Measure the speed of the OpenAI-compatible server.

    Measures the turns of one conversation, and four concurrent clients. With --peer, the same requests are also sent to
    llama-server, in alternating order. With --drafts, measures the total speed of four clients of a server with drafts
    and of one without, in turn.
    """
    if with_drafts:
        if peer is not None:
            raise UsageError("--drafts measures two servers of edgechat. Leave out --peer, or --drafts.")
        _measure_serve_drafts(model, n_threads, draft_model or "auto", kinds, rounds, as_json=as_json)
        return
    if draft_model is not None or kinds:
        flag = "--draft-model" if draft_model is not None else "--kinds"
        raise UsageError(f"{flag} chooses what --drafts measures. Add --drafts, or leave out {flag}.")
    from edgechat.bench.serve import ServeWorkload, format_table, run
    from edgechat.catalogue.resolve import find_model
    from edgechat.hardware.cpu import count_usable_threads

    workload = ServeWorkload(model=str(find_model(model)), n_threads=n_threads or count_usable_threads(), rounds=rounds)
    report = run(workload, peer, print_progress)
    echo_json(report) if as_json else click.echo(format_table(report))


def _measure_serve_drafts(
    model: str, n_threads: int | None, draft_model: str, kinds: tuple[str, ...], rounds: int, *, as_json: bool
) -> None:
    from edgechat.bench.serve_drafts import DEFAULT_KINDS, ServeDraftsOptions, format_table, run
    from edgechat.bench.workloads import read_workloads
    from edgechat.catalogue.resolve import find_model
    from edgechat.hardware.cpu import count_usable_threads

    options = ServeDraftsOptions(
        model=str(find_model(model)), n_threads=n_threads or count_usable_threads(), draft_model=draft_model,
        rounds=rounds,
    )  # fmt: skip
    report = run(options, read_workloads(), kinds or DEFAULT_KINDS, print_progress)
    echo_json(report) if as_json else click.echo(format_table(report))
