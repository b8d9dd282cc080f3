"""The screen with the plan of the loaded model, and the base class of screens with static text."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import Static

from edgechat import config
from edgechat.planner.report import format_plan_lines
from edgechat.terminal import escape_controls
from edgechat.tui.screens.modal import Modal

if TYPE_CHECKING:
    from textual.app import ComposeResult

    from edgechat.chat.session import Session


class TextScreen(Modal[None]):
    """Scrollable text with a title; Esc closes the screen."""

    DEFAULT_CSS = """
    TextScreen { background: $background 60%; align: center middle; }
    TextScreen > VerticalScroll {
        width: 100%; max-width: 100; height: 100%;
        border: round $border; padding: 0 1; background: $surface;
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,f1", "leave", "Close", id="text.leave"),
    ]

    def __init__(self, title: str, text: str) -> None:
        super().__init__()
        self._title = title
        self._text = text

    def compose(self) -> ComposeResult:
        with VerticalScroll() as box:
            box.border_title = self._title
            box.border_subtitle = "Esc: close"
            yield Static(Text(escape_controls(self._text)), id="text")

    def action_leave(self) -> None:
        self.dismiss()


class PlanScreen(TextScreen):
    """The plan of the loaded model: load options, memory, and the reasons for them."""

    def __init__(self, session: Session | None, model_setting: str) -> None:
        """`model_setting` is the value of the setting `model`: a model name or `auto`."""
        super().__init__("How this model runs", _format_plan(session, model_setting))


def _format_plan(session: Session | None, model_setting: str) -> str:
    plan = session.model.plan if session is not None else None
    if session is None or plan is None:
        return "No model is loaded yet."
    model = session.model_path.stem
    is_named = model_setting != config.AUTO and session.conversation.model in {model, ""}
    origin = " You chose it by name." if is_named else ""
    lines = [f"Model: {model}.{origin}", "Ctrl+O shows the other models, with the memory that each needs."]
    return "\n".join([*lines, "", *format_plan_lines(plan)])
