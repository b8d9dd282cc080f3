"""Rows of the models screen: models with their quants, before and after their plans for this machine are made."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.text import Text
from textual.widgets.option_list import Option

from edgechat.humanize import format_duration, format_size
from edgechat.terminal import escape_controls

if TYPE_CHECKING:
    from pathlib import Path

    from edgechat.catalogue.library import InstalledModel
    from edgechat.config import Settings
    from edgechat.planner.report import PlanRow
    from edgechat.tui.downloads import Download

LABEL_WIDTH: Final = 14
"""Minimum width in columns of the label at the end of a row."""
# Width of the columns for file size, memory, tokens per second and the time of a reply, with the space before each.
_NUMBER_WIDTHS: Final = (10, 10, 6, 7)
MARK_WIDTH: Final = 2
"""Width in columns of the mark at the start of a row."""
_SLOW_TPS: Final = 9.5
# Labels of the characters in a memory bar, shorter than those of the planner, so that they fit into one row.
_BAR_LABELS: Final = {
    "#": "weights", "+": "copied weights", "k": "KV cache", "c": "compute", "s": "speculation", "d": "drafter",
    "p": "processes",
}  # fmt: skip


class ModelFile(NamedTuple):
    """One quant of a model: an installed file, or a file to download."""

    name: str
    """Name of an installed model, or the reference of a download."""
    quant: str
    file_bytes: int
    is_installed: bool = False
    is_size_known: bool = True
    row: PlanRow | None = None
    """Plan for this machine; None before the model was planned."""
    installed_name: str = ""
    """Name of the installed model with the same weights, or "" if it is not installed."""


class ModelGroup(NamedTuple):
    """Model with all of its quants, largest first."""

    name: str
    files: Sequence[ModelFile]
    recommended: ModelFile
    """Quant that is used if the user chooses the model."""

    @property
    def is_installed(self) -> bool:
        """True if the group is an installed file, and False for a model of the catalogue or of the hub."""
        return self.recommended.is_installed


def list_unplanned(installed: Iterable[InstalledModel]) -> list[ModelGroup]:
    """List the installed models and the catalogue with file sizes only, which takes less time than planning them."""
    from edgechat.catalogue import curated
    from edgechat.catalogue.hub import PREFERRED_QUANTS
    from edgechat.planner.synthetic_profile import compute_file_sizes

    entries = [entry for entry in installed if entry.is_usable]
    installed_names = find_installed_quants(entries)
    files = [ModelFile(e.name, e.facts.quant, e.facts.size_bytes, is_installed=True) for e in entries]
    groups = [ModelGroup(file.name, [file], file) for file in files]
    for model in curated.load_catalogue().values():
        if model.dimensions.n_layers:  # models of unknown dimensions cannot be planned, and are not listed
            quants = [
                ModelFile(
                    f"{model.id}:{quant}", quant, n_bytes, is_size_known=is_known,
                    installed_name=installed_names.get(f"{model.id}:{quant}", ""),
                )
                for quant, (n_bytes, is_known) in compute_file_sizes(model).items()
            ]  # fmt: skip
            order = {quant: number for number, quant in enumerate(PREFERRED_QUANTS)}
            recommended = min(quants, key=lambda file: order.get(file.quant, len(order)), default=None)
            if recommended is not None:
                groups.append(ModelGroup(model.id, _sort_by_size(quants), recommended))
    return groups


def find_installed_quants(entries: Iterable[InstalledModel]) -> dict[str, str]:
    """Return the names of the installed models by catalogue name with quant, such as `qwen3.5-4b:Q4_K_M`."""
    from edgechat.catalogue import curated
    from edgechat.catalogue.hub import parse_quant

    ids_by_repo = {repo.lower(): model.id for model in curated.load_catalogue().values() for repo in model.repos}
    return {
        f"{ids_by_repo[entry.repo.lower()]}:{parse_quant(entry.path.name) or entry.facts.quant}": entry.name
        for entry in entries
        if entry.repo.lower() in ids_by_repo
    }


def plan_models(settings: Settings, installed: Sequence[InstalledModel]) -> tuple[list[ModelGroup], int]:
    """Plan the `installed` models and the catalogue with the saved speed of this machine.

    Returns the models and the available memory in bytes.
    """
    from edgechat.models import draft_models, selection
    from edgechat.models.resources import current_machine
    from edgechat.planner.picks import choose_evaluation, choose_picks
    from edgechat.planner.report import make_plan_rows

    candidates = draft_models.add_drafters(selection.list_installed_candidates(installed), settings, installed)
    installed_evaluations = selection.evaluate_all(candidates, settings)
    evaluations = installed_evaluations + selection.evaluate_all(selection.list_catalogue_candidates(), settings)
    choice, picks = choose_evaluation(installed_evaluations), choose_picks(evaluations, defaults_only=True)
    groups = group_rows(make_plan_rows(evaluations, choice, picks), find_installed_quants(installed))
    return groups, current_machine(settings).available_bytes


def group_rows(rows: Iterable[PlanRow], installed_names: dict[str, str]) -> list[ModelGroup]:
    """Group planned models by name, in the order of their recommended quants in `rows`."""
    files_by_model: dict[str, list[ModelFile]] = {}
    for row in rows:
        name = row.name if row.is_installed else row.name.partition(":")[0]
        files_by_model.setdefault(f"{row.is_installed} {name}", []).append(
            ModelFile(
                row.name, row.quant, row.file_bytes, row.is_installed, row.size_is_known, row,
                "" if row.is_installed else installed_names.get(row.name, ""),
            )
        )  # fmt: skip
    groups = []
    for key, files in files_by_model.items():
        recommended = next((file for file in files if file.row is not None and file.row.is_recommended), files[0])
        groups.append(ModelGroup(key.partition(" ")[2], _sort_by_size(files), recommended))
    return groups


def _sort_by_size(files: Sequence[ModelFile]) -> list[ModelFile]:
    return sorted(files, key=lambda file: -file.file_bytes)


# Text of the rows


def format_heading(title: str, width: int) -> str:
    """Return the heading of a section, with the names of the columns; `width` is the width of the list in columns."""
    columns = "".join(
        f"{name:>{n}}" for name, n in zip(("file", "memory", "tok/s", "reply"), _NUMBER_WIDTHS, strict=True)
    )
    return f"{title:<{MARK_WIDTH + get_name_width(width)}}{columns}"


def format_file(file: ModelFile, name: str, mark: str, label: str, width: int) -> str:
    """Return the row of a model or a quant: mark, name, file size, memory, speed, time of a reply and label."""
    row = file.row
    tps = reply = memory = ""
    if row is not None:
        memory = format_size(row.total_bytes)
        tps = "?" if row.decode_tps is None else f"{row.decode_tps:.{0 if row.decode_tps >= _SLOW_TPS else 1}f}"
        reply = format_duration(max(1.0, row.turn_s)) if row.turn_s else "?"
    size = ("" if file.is_size_known else "~") + format_size(file.file_bytes)
    numbers = "".join(f"{text:>{n}}" for text, n in zip((size, memory, tps, reply), _NUMBER_WIDTHS, strict=True))
    name_width = get_name_width(width)
    return f"{mark:<{MARK_WIDTH}}{fit_name(name, name_width)}{numbers}  {label}"


def choose_label(file: ModelFile, download: Download | None, *, is_quant: bool) -> str:
    """Choose a short label for a model: state of its download, purpose of a recommendation, or why it is unsuitable."""
    if download is not None or file.installed_name:
        return download.state if download is not None else "installed"
    row = file.row
    if row is None or row.picks:
        return ", ".join(row.picks) if row is not None else ""
    labels = {  # in the order of their importance
        "too large": not row.fits, "too slow": not row.is_fast_enough, "automatic": row.is_chosen,
        "tight": row.uses_reserve, "recommended": is_quant and row.is_recommended,
    }  # fmt: skip
    return next((label for label, applies in labels.items() if applies), "")


def get_name_width(width: int) -> int:
    """Return the width of the names in a list of `width` columns."""
    return max(16, min(44, width - MARK_WIDTH - sum(_NUMBER_WIDTHS) - 2 - LABEL_WIDTH))


def fit_name(name: str, width: int) -> str:
    """Shorten or pad a name to exactly `width` columns; the quant at its end stays visible."""
    name = escape_controls(name)
    if cell_len(name) > width:
        model, separator, quant = name.partition(":")
        end = f"…{separator}{quant}" if separator else "…"
        name = f"{set_cell_size(model, max(0, width - cell_len(end)))}{end}"
    return set_cell_size(name, width)


def make_heading(text: str) -> Option:
    """Return a row of the list that cannot be highlighted."""
    return Option(Text(text, style="dim", no_wrap=True, overflow="ellipsis"), disabled=True)


def make_option(text: str, option_id: str | None = None, style: str = "") -> Option:
    """Return a row of the list that shows `text`, with escaped control characters."""
    return Option(Text(escape_controls(text), style=style, no_wrap=True, overflow="ellipsis"), id=option_id)


def describe_file(file: ModelFile, available_bytes: int, marks: str = "", *, fold_keys: str = "") -> str:
    """Describe a model or quant: its plan, a legend that includes the `marks` of the list, and the effect of keys.

    `fold_keys` are the keys that show and hide the quants of a model; "" for a quant.
    """
    from edgechat.planner.report import format_memory_bar, format_row_lines

    key = "Enter uses this model" if file.is_installed or file.installed_name else "Enter downloads this model"
    if fold_keys:
        key = f"Enter downloads {file.quant}, the recommended quant (*); {fold_keys} show and hide all"
    if file.row is None:
        lines, bar = [file.name, f"file {format_size(file.file_bytes)}"], ""
    else:
        lines = format_row_lines(file.row, available_bytes)
        bar = format_memory_bar(file.row.memory, available_bytes) if available_bytes else ""
    legend = ", ".join(f"{character} {label}" for character, label in _BAR_LABELS.items() if character in bar)
    legend = "; ".join(text for text in (legend, marks) if text)
    return "\n".join([*lines, *([legend] if legend else []), key])


def list_marks(groups: Iterable[ModelGroup]) -> str:
    """Return the legend of the marks before the sizes in the list; "" if no size has a mark."""
    files = [file for group in groups for file in group.files]
    return "~ about" if any(not file.is_size_known for file in files) else ""


def find_installed_name(path: Path | None, installed: Iterable[InstalledModel]) -> str:
    """Return the name of the model of `installed` with the file `path`; "" if there is none."""
    return next((model.name for model in installed if path in (model.path, *model.other_paths)), "")


def find_row(ids: Sequence[str], files: Mapping[str, ModelFile], old_id: str, old_file: ModelFile | None) -> str:
    """Return the ID of the row in a changed list that corresponds to row `old_id` with `old_file`; "" if there is none.

    `files` are the models by row ID. If a model now recommends another quant, the row of the old quant corresponds.
    """
    same_ids = [i for i in ids if old_file is not None and i in files and files[i].name == old_file.name]
    return old_id if old_id in (same_ids or ids) else next(iter(same_ids), "")


def find_unfolded(groups: Iterable[ModelGroup], name: str, file: ModelFile | None) -> set[str]:
    """Return the names of models whose quants must be shown: several quants are picks, or the recommendation changed.

    `name` is the highlighted model, and `file` the quant that it recommended before.
    """
    return {
        g.name
        for g in groups
        if sum(bool(f.row and f.row.picks) for f in g.files) > 1
        or (file is not None and g.name == name and g.recommended.name != file.name)
    }


def find_foldable_name(file: ModelFile, groups: Iterable[ModelGroup], hub_names: Container[str]) -> str:
    """Return the name of the model or repository of `file` if it has several quants to show, or else ""."""
    name = file.name.partition(":")[0]
    has_quants = name in hub_names or any(g.name == name and len(g.files) > 1 for g in groups)
    return name if has_quants and not file.is_installed else ""
