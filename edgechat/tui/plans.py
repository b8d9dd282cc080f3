"""Why this model, and what it takes: the plan in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from edgechat.chat.visible import visible
from edgechat.words import size

if TYPE_CHECKING:
    from textual.app import ComposeResult

    from edgechat.planner.plan import LoadPlan
    from edgechat.planner.report import Row
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
            yield Static(Text(visible(self.text())), id="text")

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
        session = self.app.talker.session
        made = session.plan if session is not None else None
        if session is None or made is None:
            return "No model is loaded yet."
        lines = [f"{session.model_path.stem} answers."]
        if session.conversation.model in {session.model_path.stem, ""} and self.app.settings.model != "auto":
            lines.append("It was named; Ctrl+O shows what else there is, with what each would take.")
        else:
            lines.append("Ctrl+O shows what else there is, with what each would take.")
        return "\n".join([*lines, "", *plan_lines(made)])


def plan_lines(made: LoadPlan) -> list[str]:
    """What a plan takes of memory, and why everything is as it is."""
    from edgechat.planner.report import PARTS

    lines = ["Memory"]
    for name, _, words in PARTS:
        count = int(getattr(made.estimate, name))
        if count:
            lines.append(f"  {words:<32}{size(count):>10}")
    lines.append(f"  {'together':<32}{size(made.estimate.total):>10}")
    if made.trades:
        lines += ["", "Given up so that it fits", *(f"  {trade}" for trade in made.trades)]
    lines += ["", "Why so"]
    values: dict[str, Any] = {"n_threads": made.n_threads, "n_batch": made.n_batch}
    for name, reason in made.reasons.items():
        value = getattr(made.options, name, values.get(name))
        lines.append(f"  {name}{'' if value is None else f' = {value}'}: {reason}")
    return lines


def details(row: Row, available: int) -> str:
    """A candidate in a few lines: verdict, memory against what there is, speed and quality."""
    from edgechat.planner.report import bar

    lines = [f"{row.name}  {row.quant}", row.verdict]
    if available:
        lines.append(f"[{bar(row.memory, available):<24}] {size(row.total_bytes)} of {size(available)}")
    facts = [f"context {row.n_ctx}" if row.n_ctx else ""]
    facts.append(f"about {row.decode_tps:.0f} tokens/s" if row.decode_tps else "speed not known")
    if row.ttft_1000_s:
        facts.append(f"{row.ttft_1000_s:.0f} s to read 1,000 tokens")
    if row.quality is not None:
        facts.append(f"quality {max(0.0, row.quality):.1f}{'' if row.quality_is_measured else ' (a guess)'}")
    lines.append(", ".join(fact for fact in facts if fact))
    lines.append("Enter uses it" if row.is_here else "Enter gets it")
    return "\n".join(lines)
