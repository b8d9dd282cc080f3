"""`edgechat bench routing`: compare a small model, a large one, and routes between them."""

from __future__ import annotations

import click

from edgechat.cli.bench_options import count_option, json_option, threads_option
from edgechat.cli.json_output import echo_json
from edgechat.cli.options import FloatRange, IntRange
from edgechat.cli.progress import StderrStatus


@click.command()
@click.option("--small", default="starter", show_default=True, metavar="NAME", help="Small model name or .gguf file.")
@click.option("--large", required=True, metavar="NAME", help="Large model name or .gguf file.")
@threads_option
@count_option("--tasks", "n_tasks", "Number of tasks.", default=100, metavar="N")
@click.option(
    "--min-logprob",
    "min_logprobs",
    type=FloatRange(-100, 0),
    multiple=True,
    metavar="LOGPROB",
    help="Threshold to compare. May be repeated; default: those that escalate 10, 25, 50 and 75 %.",
)
@click.option("--agree", is_flag=True, help="Also compare two replies of the small model.")
@click.option(
    "--temperature", type=FloatRange(0, 2), default=0.7, show_default=True, metavar="T", help="Sampling temperature."
)
@count_option("--max-tokens", "max_tokens", "Maximum length of a reply.", default=300, metavar="N")
@click.option("--seed", type=IntRange(0), default=1, show_default=True, metavar="N", help="Seed of tasks and replies.")
@json_option
def routing(
    small: str, large: str, n_threads: int | None, n_tasks: int, min_logprobs: tuple[float, ...], temperature: float,
    *, agree: bool, max_tokens: int, seed: int, as_json: bool,
) -> None:  # fmt: skip
    """Measure a route from a small model to a large one.

    Both models answer the tasks of `edgechat bench reasoning`. The table shows how often each of them and each route is
    correct, which share of the replies the route escalates, and how many tokens that takes. It shows which min_logprob
    suits the setting `route`.
    """
    from edgechat.bench.routing import RoutingWorkload, run
    from edgechat.bench.routing_report import format_table
    from edgechat.catalogue.resolve import find_model

    workload = RoutingWorkload(
        small=find_model(small), large=find_model(large), n_tasks=n_tasks, temperature=temperature,
        max_tokens=max_tokens, seed=seed, n_threads=n_threads, min_logprobs=tuple(sorted(set(min_logprobs))),
        agree=agree,
    )  # fmt: skip
    status = StderrStatus()
    report = run(workload, status.show)
    status.clear()
    echo_json(report) if as_json else click.echo(format_table(report))
