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
from edgechat.tui.workers import thread_worker

if TYPE_CHECKING:
    from textual.app import ComposeResult

    from edgechat.chat.session import Session
    from edgechat.config import Settings


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
            box.border_subtitle = self.format_keys({"text.leave": "close"})
            yield Static(Text(escape_controls(self._text)), id="text")

    def action_leave(self) -> None:
        self.dismiss()


class PlanScreen(TextScreen):
    """The plan of the loaded model: why it was chosen, load options, memory, and the reasons for them."""

    def __init__(self, session: Session | None, settings: Settings) -> None:
        """Create the screen; `settings` are those of all conversations."""
        super().__init__("How this model runs", "No model is loaded yet.")
        self._session, self._settings = session, settings

    def on_mount(self) -> None:
        if self._session is not None and self._session.source.is_remote:
            from edgechat.chat.reply_source import describe_remote_plan

            text = describe_remote_plan(self._session.source.description)
            self.query_one("#text", Static).update(Text(escape_controls(text)))
        elif self._session is not None and self._session.model.plan is not None:
            self._show_choice("Comparing the installed models ...")
            self._explain_choice()

    def _show_choice(self, explanation: str) -> None:
        """Show the plan, and above it an explanation of the automatic choice."""
        if self._session is not None and self._session.model.plan is not None:
            lines = _describe_origin(self._session, self._settings.model), explanation
            hint = f"{self.key_label('chat.models')} shows the other models, with the memory that each needs."
            text = "\n".join([*lines, hint, "", *format_plan_lines(self._session.model.plan)])
            self.query_one("#text", Static).update(Text(escape_controls(text)))

    @thread_worker(_show_choice, group="choice")
    def _explain_choice(self) -> None:
        """Compare the installed models in a thread, because this reads the headers of their files."""
        from edgechat.models.selection import explain_automatic_choice

        settings = self._session.settings if self._session is not None else self._settings
        self.app.call_from_thread(self._show_choice, explain_automatic_choice(settings))


def _describe_origin(session: Session, model_setting: str) -> str:
    """Return a line with the model's name, and whether the user chose it. `model_setting` is a name or `auto`."""
    name = session.model_name
    is_named = model_setting != config.AUTO and session.conversation.model in {name, session.model_path.stem, ""}
    return f"Model: {name}.{' You chose it by name.' if is_named else ''}"
