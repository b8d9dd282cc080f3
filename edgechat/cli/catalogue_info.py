"""Print models of the catalogue: the list, and the properties of one model with the speed of its quants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import click

from edgechat.humanize import format_size
from edgechat.terminal import escape_controls

if TYPE_CHECKING:
    from edgechat.catalogue.curated import CatalogueModel
    from edgechat.planner.ranking import Candidate, Evaluation

REASONING_LABELS: Final = {"no": "no", "always": "always", "toggle": "optional", None: "?"}
"""Labels of the values of `CatalogueModel.thinking`."""
_YES_NO_LABELS: Final = {True: "yes", False: "no", None: "?"}
_LABEL_WIDTH: Final = 22


def print_rows(models: Sequence[CatalogueModel], width: int | None) -> None:
    """Print one row for each model, with the speed of its recommended quant on this machine if it is known.

    The last columns, licence and strengths, are left out if they do not fit in `width` columns; None for no limit.
    """
    evaluations = _evaluate_recommended()
    id_width = max((len(model.id) for model in models), default=2)
    licence_width = max((len(model.licence or "?") for model in models), default=7)
    head = f"{'name':<{id_width}} {'params':>8} {'smallest':>9} {'tok/s':>6}  {'reasoning':<10}{'tools':<6}"
    max_strengths_width = max((len(", ".join(model.strengths)) for model in models), default=0)
    show_licence = width is None or len(head) + licence_width <= width
    show_strengths = width is None or len(head) + licence_width + 2 + max_strengths_width <= width

    def format_row(start: str, licence: str, strengths: str) -> str:
        cells = [start, f"{licence:<{licence_width}}" * show_licence, f"  {strengths}" * show_strengths]
        return escape_controls("".join(cells)).rstrip()

    click.echo(format_row(head, "licence", "strengths"))
    for model in models:
        sizes = list(model.sizes().values())
        start = (
            f"{model.id:<{id_width}} {_format_params(model.dimensions.n_params):>8} "
            f"{format_size(sizes[0]) if sizes else '':>9} {_format_speed(evaluations.get(model.id)):>6}  "
            f"{REASONING_LABELS[model.thinking]:<10}{_YES_NO_LABELS[model.supports_tools]:<6}"
        )
        click.echo(format_row(start, model.licence or "?", ", ".join(model.strengths)))
    if evaluations:
        click.echo("tok/s = predicted decode speed of the recommended quant on this machine")
    if not show_strengths:
        hidden_columns = "Strengths" if show_licence else "Licences and strengths"
        click.echo(f"{hidden_columns}: in a wider terminal, or `edgechat models info NAME`")


def print_properties(model: CatalogueModel) -> None:
    """Print the properties of a model, and its quants with size, memory and speed."""
    dimensions = model.dimensions
    params = _format_params(dimensions.n_params)
    if params and dimensions.n_params_active and dimensions.n_params_active != dimensions.n_params:
        params += f", {_format_params(dimensions.n_params_active)} of them used for each token"
    quality = f"{model.aa_index:g} (Artificial Analysis Intelligence Index)" if model.aa_index is not None else ""
    properties = {
        "name": f"{model.name} ({model.id})",
        "family": model.family,
        "parameters": params,
        "context length": f"{model.n_ctx_train:,} tokens" if model.n_ctx_train else "",
        "strengths": ", ".join(model.strengths),
        "languages": ", ".join(model.languages),
        "reasoning": REASONING_LABELS[model.thinking],
        "tools": _YES_NO_LABELS[model.supports_tools],
        "vision": "" if model.supports_vision is None else _YES_NO_LABELS[model.supports_vision],
        "heads for drafts": "MTP, if the file kept them" if model.has_mtp_heads else "",
        "quality": quality,
        "MMLU-Pro": f"{model.mmlu_pro:g} %" if model.mmlu_pro is not None else "",
        "licence": model.licence or "?",
        "automatic choice": "yes" if model.is_default else "no, because of its licence",
        "source": ", ".join(source.repo or source.url or source.package or "" for source in model.sources),
        "installed": f"no. To download it: edgechat models pull {model.id}",
    }
    for label, text in properties.items():
        if text:
            click.echo(escape_controls(f"{label:<{_LABEL_WIDTH}}{text}"))
    _print_quants(model)


def _print_quants(model: CatalogueModel) -> None:
    from edgechat.models.selection import find_catalogue_candidates

    candidates = find_catalogue_candidates(model.id, with_quants=True)
    if not candidates:
        return
    click.echo(f"\n{'quant':<14}{'size':>10}{'memory':>11}{'tok/s':>8}")
    sizes = model.sizes()
    for evaluation in sorted(_evaluate(candidates), key=lambda e: -e.candidate.profile.tensor_bytes):
        quant = evaluation.candidate.quant
        size, mark = sizes.get(quant, evaluation.candidate.profile.tensor_bytes), "" if quant in sizes else "~"
        fits = evaluation.plan is not None
        click.echo(
            f"{quant:<14}{mark + format_size(size):>10}{'~' + format_size(evaluation.memory.total):>11}"
            f"{_format_speed(evaluation):>8}" + ("" if fits else f"  {evaluation.verdict}")
        )
    click.echo("~ estimated   tok/s = predicted decode speed on this machine; `edgechat plan` measures it")


def _evaluate_recommended() -> dict[str, Evaluation]:
    """Return the evaluations of the recommended quants by model; empty if the machine's speed was not measured."""
    from edgechat.models.resources import load_measured_speeds
    from edgechat.models.selection import list_catalogue_candidates
    from edgechat.planner.picks import choose_quants

    if load_measured_speeds() is None:
        return {}
    recommended_evaluations = choose_quants(_evaluate(list_catalogue_candidates()))
    return {e.candidate.name.partition(":")[0]: e for e in recommended_evaluations}


def _evaluate(candidates: Sequence[Candidate]) -> list[Evaluation]:
    from edgechat.cli.session_factory import load_settings
    from edgechat.models.selection import evaluate_all

    return evaluate_all(candidates, load_settings())


def _format_params(n_params: int | None) -> str:
    return f"{n_params / 1e9:.2f} B" if n_params else ""


def _format_speed(evaluation: Evaluation | None) -> str:
    if evaluation is None or evaluation.speed is None:
        return "?"
    tps = evaluation.speed.decode_tps
    return f"{tps:.0f}" if tps >= 10 else f"{tps:.1f}"  # noqa: PLR2004  (two digits)
