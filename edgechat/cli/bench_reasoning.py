"""`edgechat bench reasoning`: compare single replies with replies that are picked from several."""

from __future__ import annotations

import click

from edgechat.cli.bench_options import count_option, json_option, model_option, threads_option
from edgechat.cli.json_output import echo_json
from edgechat.cli.options import FloatRange, IntRange
from edgechat.cli.progress import StderrStatus


@click.command()
@model_option
@threads_option
@count_option("--tasks", "n_tasks", "Number of tasks.", default=100, metavar="N")
@click.option(
    "--method",
    "methods",
    multiple=True,
    metavar="METHOD",
    help="single; agree, likely or judge with a number of replies, such as agree5; think with a number of tokens of "
    "reasoning, such as think256. May be repeated.",
)
@click.option(
    "--temperature", type=FloatRange(0.01, 2), default=0.7, show_default=True, metavar="T", help="Sampling temperature."
)
@count_option("--max-tokens", "max_tokens", "Maximum length of a reply.", default=300, metavar="N")
@click.option("--seed", type=IntRange(0), default=1, show_default=True, metavar="N", help="Seed of tasks and replies.")
@count_option("--parallel", "n_parallel", "Tasks at a time; with more than one, no times.", default=1, metavar="N")
@click.option(
    "--time-limit", "time_limit_s", type=FloatRange(1), metavar="SECONDS", help="Start no further task after this time."
)
@json_option
def reasoning(
    model: str, n_threads: int | None, n_tasks: int, methods: tuple[str, ...], temperature: float, *, max_tokens: int,
    seed: int, n_parallel: int, time_limit_s: float | None, as_json: bool,
) -> None:  # fmt: skip
    """Measure how often single and picked replies are correct.

    Asks arithmetic word problems, multiple-choice questions and JSON extractions with known answers, which are made
    from templates. Compares a single reply with a vote of several replies (agree), the most likely one (likely), and
    the one that the model itself prefers (judge), or, for models that can, reasoning of limited length (think): correct
    answers with their 95 % interval, the difference to single replies, tokens and seconds for each question.
    """
    from edgechat.bench.reasoning import DEFAULT_METHODS, ReasoningWorkload, parse_method, run
    from edgechat.bench.reasoning_report import format_table
    from edgechat.catalogue.resolve import find_model

    parsed_methods = [parse_method(name) for name in methods or DEFAULT_METHODS]
    workload = ReasoningWorkload(
        model=find_model(model), methods=list(dict.fromkeys(parsed_methods)), n_tasks=n_tasks, temperature=temperature,
        max_tokens=max_tokens, seed=seed, n_threads=n_threads, n_parallel=n_parallel,
    )  # fmt: skip
    status = StderrStatus()
    report = run(workload, status.show, time_limit_s)
    status.clear()
    echo_json(report) if as_json else click.echo(format_table(report))
