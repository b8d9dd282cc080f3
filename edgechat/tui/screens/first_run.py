"""The first-run screen: describes the machine, and offers to download the best model or to use an installed one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from rich.text import Text
from textual import on
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.message import Message
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from edgechat.humanize import format_size
from edgechat.terminal import escape_controls
from edgechat.tui.workers import thread_worker

if TYPE_CHECKING:
    from textual.app import ComposeResult

    from edgechat.config import Settings
    from edgechat.planner.ranking import Evaluation
    from edgechat.tui.downloads import DownloadRunner


class Offer(NamedTuple):
    """Content of the first-run screen: the machine, and the models that the user can choose."""

    machine_text: str
    """Processor, threads, free memory and GPU of the machine, in one line."""
    installed_model: Evaluation | None
    """The best installed model; None if no installed model fits into memory."""
    catalogue_model: Evaluation | None
    """The best model of the catalogue that fits; None if `installed_model` is at least as good."""
    problem: str = ""
    """Error message; empty if the evaluation succeeded."""


class FirstRunScreen(ModalScreen[Literal["chat", "models"]]):
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

    def __init__(self, settings: Settings, downloads: DownloadRunner) -> None:
        super().__init__()
        self._settings = settings
        self._downloads = downloads
        self._download_name = ""

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = "Welcome to edgechat"
            yield Static("Measuring the speed of this machine ...", id="about", markup=False)
            yield OptionList(markup=False)
            yield Static("", id="pull", markup=False)

    def on_mount(self) -> None:
        self._evaluate()

    def _show_error(self, text: str) -> None:
        self.post_message(self.OfferReady(Offer("", None, None, text)))

    @thread_worker(_show_error, group="rate")
    def _evaluate(self) -> None:
        self.post_message(self.OfferReady(make_offer(self._settings)))

    def on_first_run_screen_offer_ready(self, message: OfferReady) -> None:
        offer = message.offer
        lines = [offer.machine_text] if offer.machine_text else []
        options = self.query_one(OptionList)
        if offer.installed_model is not None:
            lines += ["", f"Installed: {_format_summary(offer.installed_model)}"]
        if offer.catalogue_model is not None:
            self._download_name = offer.catalogue_model.candidate.name
            lines += ["", f"Best for this machine: {_format_summary(offer.catalogue_model)}"]
            file_size = format_size(offer.catalogue_model.candidate.profile.tensor_bytes)
            options.add_option(Option(f"Download {self._download_name}, {file_size} (needs internet access)", id="get"))
        if offer.problem:
            lines += ["", offer.problem]
        if offer.installed_model is not None:
            options.add_option(Option(f"Chat now with {offer.installed_model.candidate.name}, offline", id="local"))
        options.add_option(Option("Show all models", id="all"))
        self.query_one("#about", Static).update(Text(escape_controls("\n".join([*lines, ""]))))
        options.highlighted = 0
        options.focus()

    @on(OptionList.OptionSelected)
    def _on_chosen(self, message: OptionList.OptionSelected) -> None:
        message.stop()
        if message.option_id == "get":
            self.query_one(OptionList).disabled = True
            self._downloads.start(self._download_name)
        else:
            self.dismiss("models" if message.option_id == "all" else "chat")

    def show_download(self, status: str) -> None:
        """Show the progress of the download; an empty `status` removes the text."""
        self.query_one("#pull", Static).update(f"{status}  (Esc: chat while downloading)" if status else "")

    def show_download_result(self, problem: str) -> None:
        """Start the chat if the download succeeded; otherwise show `problem` and let the user choose again."""
        if not problem:
            self.dismiss("chat")
            return
        self.query_one("#pull", Static).update(escape_controls(problem))
        self.query_one(OptionList).disabled = False
        self.query_one(OptionList).focus()

    def action_leave(self) -> None:
        """Start the chat without a download; a running download continues in the background."""
        self.dismiss("chat")


def make_offer(settings: Settings) -> Offer:
    """Evaluate the machine and the models without network access. Raises EdgechatError."""
    from edgechat.hardware.cpu import read_cpu
    from edgechat.models import selection
    from edgechat.models.resources import current_machine
    from edgechat.planner.ranking import choose_evaluation

    selection.measure_speeds()
    machine = current_machine(settings)
    machine_text = (
        f"This machine: {read_cpu().model}, {machine.n_threads} threads, "
        f"{format_size(machine.available_bytes)} of memory free"
    )
    if machine.gpu_name:
        machine_text += f", {machine.gpu_name}"
    installed_model = choose_evaluation(selection.evaluate_all(selection.list_installed_candidates(), settings))
    catalogue_model = choose_evaluation(
        selection.evaluate_all(selection.list_catalogue_candidates(), settings), defaults_only=True
    )
    if catalogue_model is not None and installed_model is not None and catalogue_model.points <= installed_model.points:
        catalogue_model = None
    return Offer(machine_text, installed_model, catalogue_model)


def _format_summary(evaluation: Evaluation) -> str:
    file_bytes = evaluation.candidate.profile.tensor_bytes
    text = (
        f"{evaluation.candidate.name}, {format_size(file_bytes)} file, {format_size(evaluation.memory.total)} in memory"
    )
    return f"{text}, about {evaluation.speed.decode_tps:.0f} tokens/s" if evaluation.speed is not None else text
