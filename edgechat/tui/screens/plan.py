"""Why this model, and what it takes: the plan in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from edgechat.planner.report import plan_lines
from edgechat.terminal import escape_controls

if TYPE_CHECKING:
    from textual.app import ComposeResult

    from edgechat.tui.app import ChatApp


class TextScreen(ModalScreen[None]):
    """Something to read; Esc goes back."""

    app: ChatApp
    DEFAULT_CSS = """
    TextScreen { background: $background 60%; align: center middle; }
    TextScreen > VerticalScroll { width: 100%; max-width: 100; height: 100%; border: round $border; padding: 0 1; background: $surface; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,f1", "leave", "Back", id="text.leave"),
    ]
    HEADING = ""

    def compose(self) -> ComposeResult:
        """The text."""
        with VerticalScroll() as box:
            box.border_title = self.HEADING
            box.border_subtitle = "Esc: back"
            yield Static(Text(escape_controls(self.text())), id="text")

    def text(self) -> str:
        """What there is to read."""
        raise NotImplementedError

    def action_leave(self) -> None:
        """Back."""
        self.dismiss()


class PlanScreen(TextScreen):
    """How the model that answers was loaded, and why."""

    HEADING = "Why this model"

    def text(self) -> str:
        """The plan of what is loaded."""
        session = self.app.worker.session
        made = session.model.plan if session is not None else None
        if session is None or made is None:
            return "No model is loaded yet."
        lines = [f"{session.model_path.stem} answers."]
        if session.conversation.model in {session.model_path.stem, ""} and self.app.settings.model != "auto":
            lines.append("It was named; Ctrl+O shows what else there is, with what each would take.")
        else:
            lines.append("Ctrl+O shows what else there is, with what each would take.")
        return "\n".join([*lines, "", *plan_lines(made)])
