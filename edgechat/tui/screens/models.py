"""The models screen: models that are installed, in the catalogue or on the hub, with memory, speed and quality."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from rich.text import Text
from textual import on
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.message import Message
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from edgechat.engine.cancellation import Cancellation
from edgechat.humanize import format_duration, format_size
from edgechat.terminal import escape_controls
from edgechat.tui.screens.filter_list import FilterListScreen
from edgechat.tui.widgets.entry_list import EntryList
from edgechat.tui.workers import thread_worker

if TYPE_CHECKING:
    from textual.app import ComposeResult

    from edgechat.config import Settings
    from edgechat.planner.ranking import Evaluation
    from edgechat.planner.report import PlanRow
    from edgechat.tui.downloads import DownloadRunner

_LOADING_TEXT: Final = "Estimating memory and speed on this machine ..."
_HUB_PREFIX: Final = "hub:"
# Width in columns of a list row without the name and the verdict.
_FIXED_COLUMNS: Final = 28
# Character that separates model and quant. A filter with it shows all quants of the catalogue.
_QUANT_SEPARATOR: Final = ":"


class ModelsScreen(FilterListScreen[str | None]):
    """List of models. Enter starts a download, or closes the screen with the name of an installed model as result."""

    DEFAULT_CSS = """
    ModelsScreen { background: $background 60%; align: center middle; }
    ModelsScreen > Vertical {
        width: 100%; max-width: 120; height: 100%;
        border: round $border; padding: 0 1; background: $surface;
    }
    ModelsScreen OptionList { height: 1fr; }
    ModelsScreen #details { height: auto; max-height: 9; border-top: solid $border-blurred; }
    ModelsScreen #pull { height: auto; color: $text-muted; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+s", "hub", "Search the hub for the typed words", id="models.hub", priority=True),
        Binding("ctrl+x", "cancel", "Stop the download", id="models.cancel", priority=True),
    ]

    @dataclass
    class EvaluationsReady(Message):
        """The worker thread has planned the models."""

        rows: list[PlanRow]
        available_bytes: int

    def __init__(
        self, settings: Settings, downloads: DownloadRunner, download_status: str, is_generating: Callable[[], bool]
    ) -> None:
        """If `is_generating` returns True, the speed of the machine is not measured."""
        super().__init__()
        self._settings = settings
        self._downloads = downloads
        self._download_status = download_status
        self._is_generating = is_generating
        self._rows: dict[str, PlanRow] = {}
        self._hub_results: dict[str, str] = {}
        self._available_bytes = 0
        self._measurement = Cancellation()

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = "Models"
            box.border_subtitle = "Enter: use or download   Ctrl+S: search the hub   Esc: close"
            yield Input(placeholder="Filter, or words to search the hub for", compact=True)
            yield EntryList(markup=False)
            yield Static(_LOADING_TEXT, id="details", markup=False)
            yield Static(self._download_status, id="pull", markup=False)

    def on_mount(self) -> None:
        self._evaluate()

    def on_unmount(self) -> None:
        self._measurement.cancel()

    def _show_details(self, text: str) -> None:
        self.query_one("#details", Static).update(Text(escape_controls(text)))

    @thread_worker(_show_details, group="rate")
    def _evaluate(self) -> None:
        """Plan the installed models first, because planning the catalogue takes about half a second more."""
        from edgechat.models import selection

        if not self._is_generating():  # during a reply, the measured speed would be too low
            selection.measure_speeds(self._measurement)
        evaluations = selection.evaluate_all(selection.list_installed_candidates(), self._settings)
        self._post_rows(evaluations)
        self._post_rows(evaluations + selection.evaluate_all(selection.list_catalogue_candidates(), self._settings))

    def _post_rows(self, evaluations: list[Evaluation]) -> None:
        from edgechat.models.resources import current_machine
        from edgechat.planner.picks import choose_evaluation, choose_picks
        from edgechat.planner.report import make_plan_rows

        choice = choose_evaluation([e for e in evaluations if e.candidate.is_installed])
        rows = make_plan_rows(evaluations, choice, choose_picks(evaluations, defaults_only=True))
        self.post_message(self.EvaluationsReady(rows, current_machine(self._settings).available_bytes))

    def on_models_screen_evaluations_ready(self, message: EvaluationsReady) -> None:
        self._available_bytes = message.available_bytes or self._available_bytes
        self._rows = {row.name: row for row in message.rows}
        self._fill_list()

    # List of models

    @on(Input.Changed)
    def _fill_list(self) -> None:
        terms = self.filter_text.lower().split()
        with_all_quants = _QUANT_SEPARATOR in self.filter_text
        matches = [
            row for row in self._rows.values()
            if all(term in row.name.lower() for term in terms) and (row.is_recommended or with_all_quants)
        ]  # fmt: skip
        options = self.options
        index = options.highlighted
        previous_id = (
            options.get_option_at_index(index).id if index is not None and index < options.option_count else None
        )
        options.clear_options()
        for title, is_installed in (("Installed", True), ("Available", False)):
            rows = [row for row in matches if row.is_installed is is_installed]
            if rows:
                heading = f"{title:<{self._name_width + 2}} {'file':>8} {'reply':>8}"
                options.add_option(Option(Text(heading, style="dim", no_wrap=True), disabled=True))
                options.add_options([Option(self._format_row(row), id=row.name) for row in rows])
        if self._hub_results:
            options.add_option(Option(Text("On the hub", style="dim"), disabled=True))
            for name, details in self._hub_results.items():
                line = Text(escape_controls(f"  {name}  {details}"), no_wrap=True, overflow="ellipsis")
                options.add_option(Option(line, id=f"{_HUB_PREFIX}{name}"))
        ids = [option.id for option in options.options if not option.disabled]
        highlighted_id = previous_id if previous_id in ids else next(iter(ids), None)
        if highlighted_id is not None:
            options.highlighted = options.get_option_index(highlighted_id)

    @property
    def _name_width(self) -> int:
        return min(34, max(12, self.size.width - _FIXED_COLUMNS))

    def _format_row(self, row: PlanRow) -> Text:
        name = escape_controls(row.name)
        mark = "*" if row.is_chosen else " "
        reply = f"{format_duration(max(1.0, row.turn_s))}" if row.turn_s else "?"
        width = self._name_width
        verdict = ", ".join(row.picks) or row.verdict
        text = f"{mark} {name:<{width}.{width}} {format_size(row.file_bytes):>8} {reply:>8}  {verdict}"
        return Text(text, style="" if row.fits else "dim", no_wrap=True, overflow="ellipsis")

    # Details of the highlighted model

    @on(OptionList.OptionHighlighted)
    def _on_highlighted(self, message: OptionList.OptionHighlighted) -> None:
        message.stop()
        row = self._rows.get(message.option_id or "")
        if row is not None:
            self._show_details(self._format_details(row))
        elif message.option_id is not None:
            self._plan_repository(message.option_id.removeprefix(_HUB_PREFIX))

    @thread_worker(_show_details, group="look")
    def _plan_repository(self, repo: str) -> None:
        """Plan a model of the hub from the header of its remote file, and show the details."""
        from textual.worker import get_current_worker

        from edgechat.catalogue import remote_header
        from edgechat.models import selection
        from edgechat.planner.report import make_plan_row

        worker = get_current_worker()
        remote_model = remote_header.find_remote_model(repo)
        if remote_model is not None:
            candidate = selection.make_candidate(repo, remote_model[1], repo=repo, is_installed=False)
            [evaluation] = selection.evaluate_all([candidate], self._settings)
            text = self._format_details(make_plan_row(evaluation, None))
            if not worker.is_cancelled:
                self.app.call_from_thread(self._show_details, text)

    def _format_details(self, row: PlanRow) -> str:
        from edgechat.planner.report import format_row_lines

        key = "Enter uses this model" if row.is_installed else "Enter downloads this model"
        model = row.name.partition(_QUANT_SEPARATOR)[0]
        quants = [r.quant for r in self._rows.values() if r.name.startswith(f"{model}{_QUANT_SEPARATOR}")]
        if len(quants) > 1:
            key += f"; type {model}{_QUANT_SEPARATOR} for its {len(quants)} quants"
        return "\n".join([*format_row_lines(row, self._available_bytes), key])

    # Choice, download and search

    def choose(self, index: int | None, option_id: str | None) -> None:  # noqa: ARG002
        if option_id is None:  # no model in the list matches the filter: search the hub
            self.action_hub()
            return
        row = self._rows.get(option_id)
        if row is not None and row.is_installed:
            self.dismiss(row.name)
        else:
            self._downloads.start(option_id.removeprefix(_HUB_PREFIX))

    def action_hub(self) -> None:
        """Search the hub for the words in the filter."""
        query = self.filter_text.strip()
        if query:
            self.show_download(f"Searching the hub for {query!r} ...")
            self._search_hub(query)

    def _show_hub_error(self, text: str) -> None:
        self._show_hub_results({}, text)

    @thread_worker(_show_hub_error, group="hub")
    def _search_hub(self, query: str) -> None:
        from edgechat.catalogue.hub import Hub

        results = Hub().search(query)
        details = {r.id: f"{r.downloads:,} downloads  {r.licence}{'  gated' if r.is_gated else ''}" for r in results}
        problem = "" if details else f"No model on the hub matches {query!r}"
        self.app.call_from_thread(self._show_hub_results, details, problem)

    def _show_hub_results(self, details: dict[str, str], problem: str) -> None:
        self._hub_results = details
        if details:
            self.query_one(Input).value = ""
        self._fill_list()
        self.query_one("#pull", Static).update(escape_controls(problem))
        if details:
            options = self.options
            options.highlighted = options.get_option_index(f"{_HUB_PREFIX}{next(iter(details))}")

    def action_cancel(self) -> None:
        """Stop the download. Choosing the model again resumes it."""
        self._downloads.cancel()

    def show_download(self, status: str) -> None:
        """Show `status`, such as the progress of a download; an empty string leaves the current text."""
        if status:
            self.query_one("#pull", Static).update(escape_controls(status))

    def show_download_result(self, problem: str) -> None:
        """Show `problem`, or "Installed" if the download succeeded, and plan the models again."""
        self.show_download(problem or "Installed")
        self._evaluate()
