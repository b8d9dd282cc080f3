"""The first-run screen: describes the machine, and offers recommended downloads and the installed model."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, Literal, NamedTuple

from rich.text import Text
from textual import on
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.message import Message
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from edgechat.engine.cancellation import Cancellation
from edgechat.humanize import format_count, format_size
from edgechat.planner.picks import BALANCED
from edgechat.planner.report import format_summary
from edgechat.terminal import escape_controls
from edgechat.tui.messages import MeasurementProgressed
from edgechat.tui.screens.modal import Modal
from edgechat.tui.widgets.entry_list import EntryList
from edgechat.tui.workers import thread_worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from textual.app import ComposeResult
    from textual.events import Key, Paste

    from edgechat.config import Settings
    from edgechat.planner.picks import Pick
    from edgechat.planner.ranking import Evaluation
    from edgechat.tui.downloads import DownloadRunner


# Interval at which the elapsed time of the measurement is updated.
_TICK_S: Final = 0.5


_STARTER_NOTE: Final = "This is the starter model, which knows little. {models} offers better ones.\n"
# Lines of at most 76 columns with the default keys, so that they fit on a narrow screen.
_TOUR: Final = (
    "{send} sends a message, {stop} stops the reply, @NAME attaches a file.\n"
    "In the conversation ({stop}): {copy} copies a message, {code} code, {edit} edits, {retry} retries.\n"
    "{help} shows all keys and commands. Everything stays on this machine."
)
_TOUR_KEYS: Final = {
    "models": "chat.models", "send": "prompt.send", "stop": "chat.stop", "copy": "message.copy",
    "code": "message.copy_code", "edit": "message.edit", "retry": "message.retry", "help": "chat.help",
}  # fmt: skip
"""IDs of the bindings whose keys the tour names."""


class Offer(NamedTuple):
    """Content of the first-run screen: the machine, and the models that the user can choose."""

    machine_text: str
    """Processor, threads, free memory and GPU of the machine, in one line."""
    installed_model: Evaluation | None
    """The best installed model; None if no installed model fits into memory."""
    picks: list[Pick] | None
    """Recommended downloads that are better than `installed_model`; None before the measurement."""
    problem: str = ""
    """Error message; empty if the evaluation succeeded."""


class FirstRunScreen(Modal[Literal["chat", "models"]]):
    """Welcome screen. Its result is "chat" to start the chat, or "models" to open the list of models first."""

    DEFAULT_CSS = """
    FirstRunScreen { background: $background 60%; align: center middle; }
    FirstRunScreen > Vertical {
        width: 100%; max-width: 90; height: auto; max-height: 100%;
        border: round $border; padding: 1 2; background: $surface;
    }
    FirstRunScreen OptionList { height: auto; }
    FirstRunScreen Static { height: auto; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", "Start the chat", id="first.leave")]

    @dataclass
    class OfferReady(Message):
        """The worker thread has evaluated the machine and the models."""

        offer: Offer

    @dataclass
    class EvaluationFailed(Message):
        """The worker thread could not evaluate the machine and the models."""

        problem: str

    def __init__(
        self, settings: Settings, downloads: DownloadRunner, type_text: Callable[[str], object],
        get_key_label: Callable[[str], str],
    ) -> None:  # fmt: skip
        """Create the screen. If the user types or pastes text, the chat starts, and `type_text` receives the text.

        `get_key_label` returns the label of the key of a binding of the chat.
        """
        super().__init__()
        self._get_key_label = get_key_label
        self._type_text = type_text
        self._settings = settings
        self._downloads = downloads
        self._download_names: dict[str, str] = {}
        """Names of the recommended models by option ID."""
        self._offer = Offer("", None, [])
        self._measurement = Cancellation()
        self._is_downloaded = False
        """True after a download from this screen has succeeded."""
        self._progress = ""
        """Description of the current part of the measurement."""
        self._started_at = time.monotonic()

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = "Welcome to edgechat"
            yield Static("", id="about", markup=False)
            yield Static("", id="progress", markup=False)
            yield EntryList(markup=False)
            yield Static("", id="pull", markup=False)

    def on_mount(self) -> None:
        self.query_one("#progress", Static).display = False
        self.set_interval(_TICK_S, self._show_progress)
        self._evaluate()

    def on_key(self, event: Key) -> None:
        if event.is_printable and event.character is not None and event.character != " ":
            self._start_typing(event.character)

    def on_paste(self, event: Paste) -> None:
        self._start_typing(event.text)

    def _start_typing(self, text: str) -> None:
        self._type_text(text)
        self.dismiss("chat")

    def on_unmount(self) -> None:
        self._measurement.cancel()

    def _show_error(self, text: str) -> None:
        self.post_message(self.EvaluationFailed(text))  # a message, so that it is handled after an earlier OfferReady

    @thread_worker(_show_error, group="rate")
    def _evaluate(self) -> None:
        from edgechat.models import selection

        self.post_message(self.OfferReady(make_offer(self._settings, with_picks=False)))
        selection.measure_speeds(self._measurement, lambda text: self.post_message(MeasurementProgressed(text)))
        self._measurement.check()
        self.post_message(self.OfferReady(make_offer(self._settings, with_picks=True)))

    def on_first_run_screen_offer_ready(self, message: OfferReady) -> None:
        self._show_offer(message.offer)

    def on_measurement_progressed(self, message: MeasurementProgressed) -> None:
        self._progress = message.text
        self._show_progress()

    def _show_progress(self) -> None:
        """Show the progress of the measurement with the elapsed time, until the recommendations are known."""
        field = self.query_one("#progress", Static)
        field.display = self._offer.picks is None
        elapsed = f"({time.monotonic() - self._started_at:.0f} s)"
        lines = ["Measuring the speed of this machine, to recommend models ...", f"{self._progress} {elapsed}".lstrip()]
        field.update(Text(escape_controls("\n".join([*lines, ""]))))

    def on_first_run_screen_evaluation_failed(self, message: EvaluationFailed) -> None:
        self._show_offer(self._offer._replace(picks=self._offer.picks or [], problem=message.problem))

    def _show_offer(self, offer: Offer) -> None:
        self._offer, options = offer, self.query_one(OptionList)
        lines = [offer.machine_text] if offer.machine_text else []
        if offer.installed_model is not None:
            name, summary = offer.installed_model.candidate.name, format_summary(offer.installed_model)
            lines += ["", f"Installed: {name}, {summary}"]
        if offer.picks:
            lines += ["", "Recommended downloads (need internet access):"]
        if offer.problem:
            lines += ["", offer.problem]
        highlighted_option = options.highlighted_option
        options.clear_options()
        self._download_names = {}
        for pick in offer.picks or ():
            option_id = f"get {pick.objectives[0].label}"
            self._download_names[option_id] = pick.evaluation.candidate.name
            text = f"{pick.label}: {pick.evaluation.candidate.name}\n  {format_summary(pick.evaluation)}"
            options.add_option(Option(text, id=option_id))
        if offer.installed_model is not None:
            options.add_option(
                Option(f"Chat now with {offer.installed_model.candidate.name} (no internet needed)", id="local")
            )
        options.add_option(Option("Show all models", id="all"))
        self._show_progress()
        self.query_one("#about", Static).update(Text(escape_controls("\n".join([*lines, ""]))))
        # The Balanced download is highlighted by default. If the user sees the list already, the highlight does not
        # move, so that Enter never starts another download than intended.
        options.highlighted = next((i for i, pick in enumerate(offer.picks or ()) if BALANCED in pick.objectives), 0)
        if highlighted_option is not None and highlighted_option.id is not None:
            options.highlighted = options.get_option_index(highlighted_option.id)
        options.focus()

    @on(OptionList.OptionSelected)
    def _on_chosen(self, message: OptionList.OptionSelected) -> None:
        message.stop()
        download_name = self._download_names.get(message.option_id or "")
        if download_name is not None:
            self.query_one(OptionList).disabled = True
            self._downloads.start(download_name)
        else:
            self.dismiss("models" if message.option_id == "all" else "chat")

    def show_download(self, status: str) -> None:
        """Show the progress of the download; an empty `status` removes the text."""
        hint = f"  ({self.key_label('first.leave')}: chat while downloading)"
        self.query_one("#pull", Static).update(f"{status}{hint}" if status else "")

    def show_download_result(self, problem: str) -> None:
        """Start the chat if the download succeeded; otherwise show `problem` and let the user choose again."""
        if not problem:
            self._is_downloaded = True
            self.dismiss("chat")
            return
        self.query_one("#pull", Static).update(escape_controls(problem))
        self.query_one(OptionList).disabled = False
        self.query_one(OptionList).focus()

    @property
    def tour(self) -> str:
        """Note for the first conversation, in short lines: the starter model, if it is in use, and the main keys."""
        from edgechat.catalogue.library import STARTER

        is_starter = self._offer.installed_model is not None and self._offer.installed_model.candidate.name == STARTER
        text = f"{_STARTER_NOTE if is_starter and not self._is_downloaded else ''}{_TOUR}"
        return text.format_map({name: self._get_key_label(binding_id) for name, binding_id in _TOUR_KEYS.items()})

    def action_leave(self) -> None:
        """Start the chat without a download; a running download continues in the background."""
        self.dismiss("chat")


def make_offer(settings: Settings, *, with_picks: bool) -> Offer:
    """Evaluate the machine and the models without network access. Raises EdgechatError.

    Without `with_picks`, only the installed models are evaluated.
    """
    from edgechat.hardware.cpu import read_cpu
    from edgechat.models import selection
    from edgechat.models.resources import current_machine
    from edgechat.planner.picks import choose_evaluation, choose_picks, is_improvement

    machine = current_machine(settings)
    machine_text = (
        f"This machine: {read_cpu().model}, {format_count(machine.n_threads, 'thread')}, "
        f"{format_size(machine.available_bytes)} of memory free"
    )
    if machine.gpu_name:
        machine_text += f", {machine.gpu_name}"
    installed_model = choose_evaluation(selection.evaluate_all(selection.list_installed_candidates(), settings))
    if not with_picks:
        return Offer(machine_text, installed_model, None)
    downloads = selection.evaluate_all(selection.list_catalogue_candidates(), settings)
    picks = choose_picks(downloads, defaults_only=True)
    problem = "" if picks else (
        "No download is recommended: the speed of this machine is not known, or no model fits."
    )  # fmt: skip
    if installed_model is not None:
        picks = [pick for pick in picks if is_improvement(pick.evaluation, installed_model)]
    return Offer(machine_text, installed_model, picks, problem)
