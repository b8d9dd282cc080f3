"""The first-run screen: this machine, the best model for it, and a choice to download it or to chat offline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from rich.text import Text
from textual import on, work
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.message import Message
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from edgechat.errors import EdgechatError
from edgechat.humanize import size
from edgechat.terminal import escape_controls

if TYPE_CHECKING:
    from textual.app import ComposeResult

    from edgechat.config import Settings
    from edgechat.planner.ranking import Evaluation
    from edgechat.tui.downloads import DownloadRunner


class Offer(NamedTuple):
    """This machine and the models to choose from."""

    machine: str
    local: Evaluation | None
    """The best installed model."""
    best: Evaluation | None
    """The best model of the catalogue, if it is better than the installed one."""
    problem: str = ""


class FirstRunScreen(ModalScreen[Literal["chat", "models"]]):
    """Dismisses when the chat can start: with "models" if the user wants to see all models first."""

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
        """The machine and the models were evaluated."""

        offer: Offer

    def __init__(self, settings: Settings, downloads: DownloadRunner) -> None:
        super().__init__()
        self._settings = settings
        self._downloads = downloads
        self._best = ""

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = "Welcome to edgechat"
            yield Static("Measuring the speed of this machine ...", id="about", markup=False)
            yield OptionList(markup=False)
            yield Static("", id="pull", markup=False)

    def on_mount(self) -> None:
        self._evaluate()

    @work(thread=True, exit_on_error=False)
    def _evaluate(self) -> None:
        try:
            self.post_message(self.OfferReady(make_offer(self._settings)))
        except EdgechatError as error:
            self.post_message(self.OfferReady(Offer("", None, None, str(error))))

    def on_first_run_screen_offer_ready(self, message: OfferReady) -> None:
        offer = message.offer
        lines = [offer.machine] if offer.machine else []
        options = self.query_one(OptionList)
        if offer.local is not None:
            lines += ["", f"Installed: {_summary(offer.local)}"]
        if offer.best is not None:
            self._best = offer.best.candidate.name
            lines += ["", f"Best for this machine: {_summary(offer.best)}"]
            file_size = size(offer.best.candidate.profile.tensor_bytes)
            options.add_option(Option(f"Download {self._best}, {file_size} (needs a network once)", id="get"))
        if offer.problem:
            lines += ["", offer.problem]
        if offer.local is not None:
            options.add_option(Option(f"Chat now with {offer.local.candidate.name}, offline", id="local"))
        options.add_option(Option("Show all models", id="all"))
        self.query_one("#about", Static).update(Text(escape_controls("\n".join([*lines, ""]))))
        options.highlighted = 0
        options.focus()

    @on(OptionList.OptionSelected)
    def _on_chosen(self, message: OptionList.OptionSelected) -> None:
        message.stop()
        if message.option_id == "get":
            self.query_one(OptionList).disabled = True
            self._downloads.start(self._best)
        else:
            self.dismiss("models" if message.option_id == "all" else "chat")

    def show_download(self, status: str) -> None:
        """Show the progress of the download."""
        self.query_one("#pull", Static).update(f"{status}  (Esc: chat meanwhile)" if status else "")

    def download_ended(self, problem: str) -> None:
        """Start the chat after a download, or show the problem and let the user choose again."""
        if not problem:
            self.dismiss("chat")
            return
        self.query_one("#pull", Static).update(escape_controls(problem))
        self.query_one(OptionList).disabled = False
        self.query_one(OptionList).focus()

    def action_leave(self) -> None:
        """Start the chat with an installed model; a running download continues."""
        self.dismiss("chat")


def make_offer(settings: Settings) -> Offer:
    """Evaluate this machine and the models for it, without a network. Raises EdgechatError."""
    from edgechat.hardware.cpu import read_cpu
    from edgechat.models import selection
    from edgechat.models.resources import current_machine
    from edgechat.planner.ranking import choose

    selection.measure_speeds()
    resources = current_machine(settings)
    about = (
        f"This machine: {read_cpu().model}, {resources.n_threads} threads, "
        f"{size(resources.available_bytes)} of memory free"
    )
    if resources.gpu_name:
        about += f", {resources.gpu_name}"
    local = choose(selection.evaluate_all(selection.installed_candidates(), settings))
    best = choose(selection.evaluate_all(selection.catalogue_candidates(), settings), defaults_only=True)
    if best is not None and local is not None and best.points <= local.points:
        best = None
    return Offer(about, local, best)


def _summary(evaluation: Evaluation) -> str:
    file_bytes = evaluation.candidate.profile.tensor_bytes
    text = f"{evaluation.candidate.name}, {size(file_bytes)} file, {size(evaluation.memory.total)} in memory"
    return f"{text}, about {evaluation.speed.decode_tps:.0f} tokens/s" if evaluation.speed is not None else text
