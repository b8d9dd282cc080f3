"""The models: what is here, the catalogue, and the hub, each with what it would take, how fast and how good it would be."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from rich.text import Text
from textual import on, work
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.message import Message
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from edgechat.errors import EdgechatError
from edgechat.humanize import size
from edgechat.terminal import escape_controls
from edgechat.tui.screens.filter_list import FilterListScreen

if TYPE_CHECKING:
    from textual.app import ComposeResult

    from edgechat.planner.report import PlanRow
    from edgechat.tui.app import ChatApp

_LOADING: Final = "looking at what is here, and how fast this machine is ..."
_HUB: Final = "hub"
# What a line takes beside the name, without the verdict.
_COLUMNS: Final = 28


class ModelsScreen(FilterListScreen[None]):
    """A list that is narrowed by what is typed; Enter uses a model, or gets it."""

    app: ChatApp
    DEFAULT_CSS = """
    ModelsScreen { background: $background 60%; align: center middle; }
    ModelsScreen > Vertical { width: 100%; max-width: 120; height: 100%; border: round $border; padding: 0 1; background: $surface; }
    ModelsScreen OptionList { height: 1fr; }
    ModelsScreen #details { height: auto; max-height: 9; border-top: solid $border-blurred; }
    ModelsScreen #pull { height: auto; color: $text-muted; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+s", "hub", "Search the hub for these words", id="models.hub", priority=True),
        Binding("ctrl+x", "cancel", "Stop the download", id="models.cancel", priority=True),
    ]

    class EvaluationsReady(Message):
        """Plans were made."""

        def __init__(self, rows: list[PlanRow], available: int, problem: str = "") -> None:
            super().__init__()
            self.rows = rows
            self.available = available
            self.problem = problem

    def __init__(self) -> None:
        super().__init__()
        self._rows: dict[str, PlanRow] = {}
        self._hub: dict[str, str] = {}
        self._available = 0

    def compose(self) -> ComposeResult:
        """Words, list, what the chosen one would be."""
        with Vertical() as box:
            box.border_title = "Models"
            box.border_subtitle = "Enter: use it or get it   Ctrl+S: search the hub   Esc: back"
            yield Input(placeholder="filter, or words for the hub", compact=True)
            yield OptionList(markup=False)
            yield Static(_LOADING, id="details", markup=False)
            yield Static(self.app.download_status, id="pull", markup=False)

    def on_mount(self) -> None:
        """Look at what there is."""
        self._rate()

    @work(thread=True, exclusive=True, group="rate", exit_on_error=False)
    def _rate(self) -> None:
        from edgechat.models import selection
        from edgechat.models.resources import current_machine
        from edgechat.planner.ranking import choose
        from edgechat.planner.report import best_quants, plan_row, sort_key

        settings = self.app.settings
        if not self.app.chat.is_generating:  # it would be measured beside that
            selection.measure_speeds()
        try:
            candidates = selection.installed_candidates()
            rated = selection.evaluate_all([*candidates, *selection.catalogue_candidates()], settings)
            chosen = choose([r for r in rated if r.candidate.is_installed])
            rows = best_quants(sorted((plan_row(each, chosen) for each in rated), key=sort_key))
            rows.sort(key=lambda r: not (r.fits and r.is_fast_enough))
            self.post_message(self.EvaluationsReady(rows, current_machine(settings).available_bytes))
        except EdgechatError as error:
            self.post_message(self.EvaluationsReady([], 0, str(error)))

    def on_models_screen_evaluations_ready(self, message: EvaluationsReady) -> None:
        """Show them."""
        self._available = message.available or self._available
        self._rows = {row.name: row for row in message.rows}
        self._fill()
        if message.problem:
            self.query_one("#details", Static).update(escape_controls(message.problem))

    @on(Input.Changed)
    def _fill(self) -> None:
        wanted = self.typed.lower().split()
        rows = [r for r in self._rows.values() if all(word in r.name.lower() for word in wanted)]
        options = self.options
        at = options.highlighted
        before = options.get_option_at_index(at).id if at is not None and at < options.option_count else None
        options.clear_options()
        for title, kind in (("on this machine", True), ("to be had", False)):
            some = [row for row in rows if row.is_installed is kind]
            if some:
                options.add_option(Option(Text(title, style="dim"), disabled=True))
                options.add_options([Option(self._line(row), id=row.name) for row in some])
        if self._hub:
            options.add_option(Option(Text("on the hub", style="dim"), disabled=True))
            options.add_options([
                Option(Text(escape_controls(f"  {name}  {words}"), no_wrap=True, overflow="ellipsis"), id=f"{_HUB}:{name}")
                for name, words in self._hub.items()
            ])  # fmt: skip
        known = [option.id for option in options.options if not option.disabled]
        chosen = before if before in known else next(iter(known), None)
        if chosen is not None:
            options.highlighted = options.get_option_index(chosen)

    def _line(self, row: PlanRow) -> Text:
        name = escape_controls(row.name)
        mark = "*" if row.is_chosen else " "
        speed = f"{row.decode_tps:.0f} tok/s" if row.decode_tps else "? tok/s"
        width = min(34, max(12, self.size.width - _COLUMNS))
        words = f"{mark} {name:<{width}.{width}} {size(row.total_bytes):>8} {speed:>10}  {row.verdict}"
        return Text(words, style="" if row.fits else "dim", no_wrap=True, overflow="ellipsis")

    @on(OptionList.OptionHighlighted)
    def _on_highlighted(self, message: OptionList.OptionHighlighted) -> None:
        message.stop()
        row = self._rows.get(message.option_id or "")
        if row is not None:
            self._show_details(self._words(row))
        elif message.option_id is not None:
            self._look(message.option_id.removeprefix(f"{_HUB}:"))

    @work(thread=True, exclusive=True, group="look", exit_on_error=False)
    def _look(self, repo: str) -> None:
        """Plan what the hub has, from its header alone."""
        from textual.worker import get_current_worker

        from edgechat.catalogue import remote_header
        from edgechat.models import selection
        from edgechat.planner.report import plan_row

        worker = get_current_worker()
        said = ""
        try:
            found = remote_header.find_remote_model(repo)
            if found is not None:
                candidate = selection.make_candidate(repo, found[1], repo=repo, is_installed=False)
                [rated] = selection.evaluate_all([candidate], self.app.settings)
                said = self._words(plan_row(rated, None))
        except EdgechatError as error:
            said = str(error)
        if not worker.is_cancelled and said:
            self.app.call_from_thread(self._show_details, said)

    def _words(self, row: PlanRow) -> str:
        from edgechat.planner.report import row_lines

        key = "Enter uses it" if row.is_installed else "Enter gets it"
        return "\n".join([*row_lines(row, self._available), key])

    def _show_details(self, words: str) -> None:
        self.query_one("#details", Static).update(Text(escape_controls(words)))

    # What is done

    def choose(self, at: int | None, option_id: str | None) -> None:  # noqa: ARG002
        """Use it, or get it; words that fit nothing here are looked for on the hub."""
        if option_id is not None:
            self._use(option_id)
        elif self.typed.strip():
            self.action_hub()

    def _use(self, chosen: str) -> None:
        row = self._rows.get(chosen)
        if row is not None and row.is_installed:
            self.app.use_model(row.name)
            self.dismiss()
        else:
            self.app.downloads.start(chosen.removeprefix(f"{_HUB}:"))

    def action_hub(self) -> None:
        """Search the hub."""
        words = self.typed.strip()
        if words:
            self._say(f"asking the hub for {words!r} ...")
            self._search(words)

    @work(thread=True, exclusive=True, group="hub", exit_on_error=False)
    def _search(self, words: str) -> None:
        from edgechat.catalogue.hub import Hub

        try:
            found = Hub().search(words)
            said = {r.id: f"{r.downloads:,} downloads  {r.licence}{'  gated' if r.is_gated else ''}" for r in found}
            self.app.call_from_thread(self._take_hub, said, "" if said else f"the hub has nothing for {words!r}")
        except EdgechatError as error:
            self.app.call_from_thread(self._take_hub, {}, str(error))

    def _take_hub(self, found: dict[str, str], problem: str) -> None:
        self._hub = found
        if found:
            self.query_one(Input).value = ""
        self._fill()
        self._say(problem)
        if found:
            options = self.options
            options.highlighted = options.get_option_index(f"{_HUB}:{next(iter(found))}")

    def _say(self, words: str) -> None:
        self.query_one("#pull", Static).update(escape_controls(words))

    def action_cancel(self) -> None:
        """Stop the download; it can be gone on with."""
        self.app.downloads.cancel()

    def download_ended(self, problem: str) -> None:
        """A download ended."""
        self._say(problem or "it is here")
        self._rate()

    def show_download(self, words: str) -> None:
        """How far a download is."""
        if words:
            self.query_one("#pull", Static).update(words)
