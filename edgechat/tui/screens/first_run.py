"""The first start: what this machine is, which model would be best on it, and one key to get it or to go on without."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, NamedTuple

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

    from edgechat.planner.ranking import Evaluation
    from edgechat.tui.app import ChatApp


class Offer(NamedTuple):
    """What there is to choose from."""

    machine: str
    local: Evaluation | None
    best: Evaluation | None
    """Of the catalogue, if it is better than what is here."""
    problem: str = ""


class FirstRunScreen(ModalScreen[None]):
    """Ends when the chat can go on."""

    app: ChatApp
    DEFAULT_CSS = """
    FirstRunScreen { background: $background 60%; align: center middle; }
    FirstRunScreen > Vertical { width: 100%; max-width: 90; height: auto; max-height: 100%; border: round $border; padding: 1 2; background: $surface; }
    FirstRunScreen OptionList { height: auto; }
    FirstRunScreen Static { height: auto; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", "To the chat", id="first.leave")]

    class Looked(Message):
        """The machine is known."""

        def __init__(self, offer: Offer) -> None:
            super().__init__()
            self.offer = offer

    def __init__(self) -> None:
        super().__init__()
        self._best = ""

    def compose(self) -> ComposeResult:
        """What is known, and what to do."""
        with Vertical() as box:
            box.border_title = "Welcome to edgechat"
            yield Static("looking at this machine, and how fast it is ...", id="about", markup=False)
            yield OptionList(markup=False)
            yield Static("", id="pull", markup=False)

    def on_mount(self) -> None:
        """Look."""
        self._look()

    @work(thread=True, exit_on_error=False)
    def _look(self) -> None:
        try:
            self.post_message(self.Looked(offer(self.app)))
        except EdgechatError as error:
            self.post_message(self.Looked(Offer("", None, None, str(error))))

    def on_first_run_screen_looked(self, message: Looked) -> None:
        """Show it."""
        found = message.offer
        lines = [found.machine] if found.machine else []
        options = self.query_one(OptionList)
        if found.local is not None:
            lines += ["", f"Here already: {words(found.local)}"]
        if found.best is not None:
            self._best = found.best.candidate.name
            lines += ["", f"Best for this machine: {words(found.best)}"]
            file_words = size(found.best.candidate.profile.tensor_bytes)
            options.add_option(Option(f"Get {self._best}, {file_words} (needs a network, once)", id="get"))
        if found.problem:
            lines += ["", found.problem]
        if found.local is not None:
            options.add_option(Option(f"Chat now with {found.local.candidate.name}, offline", id="local"))
        options.add_option(Option("See all models", id="all"))
        self.query_one("#about", Static).update(Text(escape_controls("\n".join([*lines, ""]))))
        options.highlighted = 0
        options.focus()

    @on(OptionList.OptionSelected)
    def _on_chosen(self, message: OptionList.OptionSelected) -> None:
        message.stop()
        if message.option_id == "get":
            self.query_one(OptionList).disabled = True
            self.app.downloads.start(self._best)
        elif message.option_id == "all":
            self.dismiss()
            self.app.actions.run("model", "")
        else:
            self.dismiss()

    def show_download(self, said: str) -> None:
        """How far the download is."""
        self.query_one("#pull", Static).update(f"{said}  (Esc: chat meanwhile)" if said else "")

    def download_ended(self, problem: str) -> None:
        """It ended."""
        if not problem:
            self.dismiss()
            return
        self.query_one("#pull", Static).update(escape_controls(problem))
        self.query_one(OptionList).disabled = False
        self.query_one(OptionList).focus()

    def action_leave(self) -> None:
        """To the chat, with what is here; a download goes on."""
        self.dismiss()


def offer(app: ChatApp) -> Offer:
    """Look at the machine and at what could answer on it. Asks no network. Raises EdgechatError."""
    from edgechat.hardware.cpu import read_cpu
    from edgechat.models import selection
    from edgechat.models.resources import current_machine
    from edgechat.planner.ranking import choose

    selection.measure_speeds()
    here = current_machine(app.settings)
    about = f"This machine: {read_cpu().model}, {here.n_threads} threads, {size(here.available_bytes)} of memory free"
    if here.gpu_name:
        about += f", {here.gpu_name}"
    local = choose(selection.evaluate_all(selection.installed_candidates(), app.settings))
    best = choose(selection.evaluate_all(selection.catalogue_candidates(), app.settings), unasked=True)
    if best is not None and local is not None and best.points <= local.points:
        best = None
    return Offer(about, local, best)


def words(rated: Evaluation) -> str:
    """A candidate in a line."""
    file_bytes = rated.candidate.profile.tensor_bytes
    said = f"{rated.candidate.name}, a file of {size(file_bytes)}, {size(rated.memory.total)} in memory"
    return f"{said}, about {rated.speed.decode_tps:.0f} tokens/s" if rated.speed is not None else said
