"""`edgechat bench speculation`: measure speculative decoding with drafts from the text and of a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from edgechat.cli.bench_options import gpu_option, json_option, model_option, peer_option, rounds_option, threads_option
from edgechat.cli.json_output import echo_json
from edgechat.cli.options import complete_draft_model
from edgechat.cli.progress import StderrStatus

Command = Callable[..., None]


def draft_model_option(help_text: str) -> Callable[[Command], Command]:
    """Return an option for the draft model or heads of a measurement."""
    return click.option("--draft-model", metavar="NAME", shell_complete=complete_draft_model, help=help_text)


def kinds_option(help_text: str) -> Callable[[Command], Command]:
    """Return an option for the kinds of conversations to measure."""
    return click.option("--kinds", multiple=True, metavar="KIND", help=help_text)


@click.command()
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@model_option
@draft_model_option("Measure this draft model or these heads instead; auto chooses as for a chat.")
@kinds_option("Kind of conversation to measure, such as edit; may be repeated. Default: all.")
@peer_option("llama-server")
@threads_option
@rounds_option(3)
@gpu_option
@json_option
def speculation(
    file: Path | None, model: str, draft_model: str | None, kinds: tuple[str, ...], peer: Path | None,
    n_threads: int | None, rounds: int, *, uses_gpu: bool, as_json: bool,
) -> None:  # fmt: skip
    """Measure speculative decoding by kind of conversation.

    FILE is a TOML file with the conversations to measure instead of the built-in ones. The table shows speeds relative
    to decoding without drafts.

    \b
    forced    measured speed of the scripted replies
    noise     speed of a run without drafts relative to another such run
    free      measured speed of the model's own replies
    length    mean number of tokens that a step with a draft generates
    replayed  speed of the scripted replies, computed from measured step costs
    fresh     same as replayed, but without drafts learned from earlier replies

    The other columns show static draft policies and llama-server.

    With --draft-model, measures the model's own replies with a drafter, in turn with llama-server and the same
    drafter (--peer), and the prompt speed with the drafter loaded.

    \b
    drafts    speed with all drafts
    text      speed with drafts from the text only
    peer      speed of llama-server with the drafter relative to without
    to peer   speed with all drafts relative to llama-server with the drafter
    """  # noqa: D301  (click reads the control character)
    from edgechat.bench import model_drafters, workloads
    from edgechat.bench import speculation as text_drafts
    from edgechat.bench.speculation_report import format_table
    from edgechat.catalogue.resolve import find_model
    from edgechat.errors import UsageError
    from edgechat.hardware.cpu import count_usable_threads

    if uses_gpu and (peer is not None or draft_model is not None):
        raise UsageError("With --gpu, only drafts from the text are measured. Omit --peer and --draft-model.")
    options = text_drafts.SpeculationOptions(
        model=str(find_model(model)), n_threads=n_threads or count_usable_threads(), rounds=rounds, peer=peer,
        uses_gpu=uses_gpu,
    )  # fmt: skip
    status = StderrStatus()
    cases, report, table = workloads.read_workloads(file), None, ""
    if draft_model is not None:
        draft_report = model_drafters.run(options, draft_model, cases, kinds, status.show)
        report, table = _as_any(draft_report), model_drafters.format_table(draft_report)
    else:
        text_report = text_drafts.run(options, model_drafters.select_kinds(cases, kinds), status.show)
        report, table = _as_any(text_report), format_table(text_report)
    status.clear()
    echo_json(report) if as_json else click.echo(table)


def _as_any(report: Any) -> Any:
    """Return a report of either benchmark."""
    return report
