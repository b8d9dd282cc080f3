"""The models screen: downloads, installed models, and models of the catalogue and the hub, with their quants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from rich.text import Text
from textual import on
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.message import Message
from textual.widgets import Input, OptionList, Static

from edgechat.engine.cancellation import Cancellation
from edgechat.humanize import format_size
from edgechat.remote_settings import ROUTE
from edgechat.route_settings import describe_route
from edgechat.terminal import escape_controls
from edgechat.tui.messages import MeasurementProgressed
from edgechat.tui.screens import download_rows, hub_models, model_groups
from edgechat.tui.screens.download_rows import DOWNLOAD_PREFIX, DownloadLine, find_current, make_download_rows
from edgechat.tui.screens.model_groups import ModelFile, ModelGroup
from edgechat.tui.screens.model_list import HUB_PREFIX, MODEL_PREFIX, REMOTE_PREFIX, ROUTE_ID, ModelListScreen
from edgechat.tui.widgets.entry_list import EntryList
from edgechat.tui.widgets.filter_input import FilterInput
from edgechat.tui.workers import thread_worker

if TYPE_CHECKING:
    from pathlib import Path

    from textual.app import ComposeResult

    from edgechat.catalogue.hub import SearchResult
    from edgechat.catalogue.library import InstalledModel
    from edgechat.config import Settings
    from edgechat.tui.downloads import Download, DownloadRunner

_KEYS: Final = {
    "enter": "use or get", "models.unfold": "quants", "models.hub": "Hugging Face", "listing.leave": "close"
}  # fmt: skip
"""Labels of keys by binding ID, while there are no downloads."""
_DOWNLOAD_KEYS: Final = {
    "models.pause": "pause", "models.cancel": "cancel", "enter": "use or get", "listing.leave": "close"
}  # fmt: skip


class ModelsScreen(ModelListScreen):
    """List of models. Enter starts a download, or closes the screen with the name of an installed model as result."""

    DEFAULT_CSS = """
    ModelsScreen > Vertical { max-width: 120; }
    ModelsScreen #details { height: auto; max-height: 9; border-top: solid $border-blurred; }
    ModelsScreen #pull { height: auto; color: $text-accent; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+s", "hub", "Search Hugging Face for the typed words", id="models.hub", priority=True),
        Binding("ctrl+t", "pause", "Pause or resume the download", id="models.pause", priority=True),
        Binding("ctrl+x", "cancel", "Cancel the download", id="models.cancel", priority=True),
        Binding("right", "unfold", "Show the quants of the model", id="models.unfold", priority=True),
        Binding("left", "fold", "Hide the quants of the model", id="models.fold", priority=True),
    ]

    @dataclass
    class GroupsReady(Message):
        """The worker thread has listed or planned the models."""

        groups: list[ModelGroup]
        available_bytes: int = 0

    def __init__(
        self, settings: Settings, downloads: DownloadRunner, is_generating: Callable[[], bool],
        model_path: Path | None = None,
    ) -> None:  # fmt: skip
        """`model_path` is the model in use. If `is_generating` returns True, the speed is not measured."""
        super().__init__(downloads)
        self._model_path = model_path
        self._settings, self._is_generating = settings, is_generating
        self._hub_plans: dict[str, ModelFile] = {}
        """Cached plans by repository; each plan needs a request to the hub."""
        self._planned_repository, self._available_bytes = "", 0
        self._measurement = Cancellation()

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = "Models"
            yield FilterInput(placeholder="Filter, or words to search Hugging Face for")
            yield EntryList(markup=False)
            yield Static("Listing the models ...", id="details", markup=False)
            yield Static("", id="pull", markup=False)
            yield DownloadLine("", markup=False)

    def on_mount(self) -> None:
        self._show_notice("")
        self.show_download("")
        self._evaluate()

    def on_unmount(self) -> None:
        self._measurement.cancel()

    def _show_notice(self, text: str) -> None:
        field = self.query_one("#pull", Static)
        field.display = bool(text)
        field.update(Text(escape_controls(text)))

    # Plans

    @thread_worker(_show_notice, group="rate")
    def _evaluate(self) -> None:
        """List the models with sizes at once, then with the plans for this machine, and measure its speed if needed."""
        from edgechat.catalogue import library

        installed = library.scan()
        if self._settings.remotes:
            from edgechat.remote.model_lists import find_hosts

            self._remote_models = find_hosts(self._settings.remotes)
        self._route = describe_route(self._settings.route)
        if not self._groups:  # before the imports, which take time
            self._name_in_use = model_groups.find_installed_name(self._model_path, installed)
            self.post_message(self.GroupsReady(model_groups.list_unplanned(installed)))
        from edgechat.models import selection
        from edgechat.models.resources import load_measured_speeds

        self._post_plans(installed)
        if not self._is_generating():  # during a reply, the measured speed would be too low
            speeds = load_measured_speeds()
            selection.measure_speeds(self._measurement, lambda text: self.post_message(MeasurementProgressed(text)))
            self.post_message(MeasurementProgressed(""))
            if load_measured_speeds() != speeds:
                self._post_plans(installed)

    def _post_plans(self, installed: Sequence[InstalledModel]) -> None:
        groups, available_bytes = model_groups.plan_models(self._settings, installed)
        self.post_message(self.GroupsReady(groups, available_bytes))

    def on_models_screen_groups_ready(self, message: GroupsReady) -> None:
        self._available_bytes = message.available_bytes or self._available_bytes
        self._groups = message.groups
        name, file = self.highlighted_id.removeprefix(MODEL_PREFIX), self._files.get(self.highlighted_id)
        self._unfolded |= model_groups.find_unfolded(self._groups, name, file)
        self._fill_list()

    def on_measurement_progressed(self, message: MeasurementProgressed) -> None:
        self._show_notice(f"{message.text} (speeds follow)" if message.text else "")

    # Downloads in the list

    def show_download(self, _status: str) -> None:
        """Show the progress of the downloads."""
        downloads, width, ascii_only = self._downloads.list_downloads(), self.row_width, self.app.has_class("ascii")
        self.query_one(DownloadLine).show(downloads, width, ascii_only=ascii_only)
        self.query_one(Vertical).border_subtitle = self.format_keys(_DOWNLOAD_KEYS if downloads else _KEYS)
        if [(d.reference, d.state) for d in downloads] != self._shown_downloads:
            self._fill_list()
        shown_ids = {f"{DOWNLOAD_PREFIX}{reference}" for reference, _ in self._shown_downloads}
        for row in make_download_rows(downloads, width, ascii_only=ascii_only)[1:]:
            if row.id in shown_ids:  # a download may have ended since `downloads` was read
                self.options.replace_option_prompt(row.id or "", row.prompt)

    def show_download_result(self, problem: str) -> None:
        """Show `problem`, or "Installed" if the download succeeded, and plan the models again."""
        self._show_notice(problem or "Installed")
        if not problem:
            self._evaluate()

    # Details of the highlighted model

    @on(OptionList.OptionHighlighted)
    def _on_highlighted(self, message: OptionList.OptionHighlighted) -> None:
        message.stop()
        option_id = message.option_id or ""
        file, repo = self._files.get(option_id), ""
        if option_id.startswith(DOWNLOAD_PREFIX):
            download = self._downloads.find(option_id.removeprefix(DOWNLOAD_PREFIX))
            labels = self.key_label("models.pause"), self.key_label("models.cancel")
            self.show_details(download_rows.describe_download(download, *labels) if download is not None else "")
        elif option_id.startswith(REMOTE_PREFIX):
            name = option_id.removeprefix(REMOTE_PREFIX)
            self.show_details(
                f"{name}\nRemote model: messages are sent to {self._remote_models.get(name, 'its host')}."
            )
        elif option_id == ROUTE_ID:
            self.show_details(
                f"{ROUTE}\nChooses a model for each message, by the rules and checks of [route] in the settings: "
                f"{self._route}."
            )
        elif file is not None and (file.row is not None or not file.name.count("/")):
            is_model, marks = option_id.startswith(MODEL_PREFIX), model_groups.list_marks(self._groups)
            fold_keys = f"{self.key_label('models.unfold')} and {self.key_label('models.fold')}" if is_model else ""
            self.show_details(model_groups.describe_file(file, self._available_bytes, marks, fold_keys=fold_keys))
        elif option_id:
            repo = file.name if file is not None else option_id.removeprefix(HUB_PREFIX)
            if repo in self._hub_plans:
                self._show_hub_plan(repo)
            elif repo != self._planned_repository:
                self.show_details(f"{repo}\nReading the header of the model ...")
                self._plan_repository(repo)
        self._planned_repository = repo

    @thread_worker(ModelListScreen.show_details, group="look")
    def _plan_repository(self, repo: str) -> None:
        """Compute the plan of a hub model from the header of its remote file, and show it below the list."""
        from textual.worker import get_current_worker

        worker, file = get_current_worker(), hub_models.plan(repo, self._settings)
        if file is not None:
            self._hub_plans[repo] = file
            if not worker.is_cancelled:
                self.app.call_from_thread(self._show_hub_plan, repo)

    def _show_hub_plan(self, repo: str) -> None:
        self.show_details(model_groups.describe_file(self._hub_plans[repo], self._available_bytes))

    # Folding

    def action_unfold(self) -> None:
        """Show the quants of the highlighted model; if there are none to show, move the cursor in the filter right."""
        if self._filled_text != self.filter_text:  # the key arrived before the change of the filter
            self._fill_list()
        name = self._find_foldable_name()
        if not name or name in self._unfolded:
            self.query_one(Input).action_cursor_right()
            return
        self._unfolded.add(name)
        self._fill_list()
        if "/" in name and name not in self._hub_quants:
            self._show_notice(f"Listing the quants of {name} ...")
            self._list_hub_quants(name)

    def action_fold(self) -> None:
        """Hide the quants of the highlighted model; if none are shown, move the cursor in the filter left."""
        name = self._find_foldable_name()
        if name not in self._unfolded:
            self.query_one(Input).action_cursor_left()
            return
        self._unfolded.discard(name)
        option_id = f"{HUB_PREFIX if '/' in name else MODEL_PREFIX}{name}"
        self.options.highlighted = self.options.get_option_index(option_id)
        self._fill_list()

    @thread_worker(_show_notice, group="quants")
    def _list_hub_quants(self, repo: str) -> None:
        self.app.call_from_thread(self._show_hub_quants, repo, hub_models.list_quants(repo))

    def _show_hub_quants(self, repo: str, files: list[ModelFile]) -> None:
        self._hub_quants[repo] = files
        self._show_notice("" if files else f"{repo} has no models in the format GGUF")
        self._fill_list()

    # Choice, download and search

    def choose(self, index: int | None, option_id: str | None) -> None:  # noqa: ARG002
        if option_id is None:  # no model in the list matches the filter: search the hub
            self.action_hub()
            return
        file = self._files.get(option_id)
        if option_id.startswith(DOWNLOAD_PREFIX):
            self.action_pause()
        elif option_id.startswith(REMOTE_PREFIX):
            self.dismiss(option_id.removeprefix(REMOTE_PREFIX))
        elif option_id == ROUTE_ID:
            self.dismiss(ROUTE)
        elif file is not None and (file.is_installed or file.installed_name):
            self.dismiss(file.installed_name or file.name)
        else:
            reference = file.name if file is not None else option_id.removeprefix(HUB_PREFIX)
            self._show_notice("")
            self._downloads.start(reference)

    def _find_download(self) -> Download | None:
        """Return the download of the highlighted row, or else the running download, or else the first one."""
        option_id = self.highlighted_id
        file = self._files.get(option_id)
        reference = file.name if file is not None else option_id.removeprefix(DOWNLOAD_PREFIX).removeprefix(HUB_PREFIX)
        downloads = self._downloads.list_downloads()
        default = find_current(downloads) if downloads else None
        return next((d for d in downloads if d.reference == reference), default)

    def action_pause(self) -> None:
        """Pause the download, or resume it if it is paused or failed."""
        download = self._find_download()
        if download is None:
            return
        self._show_notice("")
        if download.state in ("waiting", "downloading"):
            self._downloads.pause(download.reference)
        else:
            self._downloads.start(download.reference)

    def action_cancel(self) -> None:
        """Remove the download from the list. Choosing the model again resumes it."""
        download = self._find_download()
        if download is not None:
            self._downloads.cancel(download.reference)
            saved = f" The received {format_size(download.done_bytes)} are saved." if download.done_bytes else ""
            self._show_notice(f"Cancelled the download of {download.reference}.{saved} Enter on the model resumes it.")

    def action_hub(self) -> None:
        """Search the hub for the words in the filter."""
        query = self.filter_text.strip()
        if query:
            self._show_notice(f"Searching Hugging Face for {query!r} ...")
            self._search_hub(query)

    @thread_worker(_show_notice, group="hub")
    def _search_hub(self, query: str) -> None:
        results = hub_models.search(query)
        problem = "" if results else f"No model on Hugging Face matches {query!r}"
        self.app.call_from_thread(self._show_hub_results, results, problem)

    def _show_hub_results(self, results: list[SearchResult], problem: str) -> None:
        self._hub_results = results
        if results:
            self.query_one(Input).value = ""
        self._fill_list()
        self._show_notice(problem)
        if results:
            self.options.highlighted = self.options.get_option_index(f"{HUB_PREFIX}{results[0].id}")
