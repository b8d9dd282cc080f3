"""Thread workers of the terminal interface."""

from __future__ import annotations

from pathlib import Path

from textual.app import App, ComposeResult
from textual.widgets import Static

import edgechat.tui
from edgechat.errors import HubError
from edgechat.tui.workers import thread_worker
from tests.waiting import until_async


class _Label(Static):
    def show_error(self, text: str) -> None:
        self.update(f"error: {text}")

    @thread_worker(show_error, group="test")
    def fail(self, error: Exception) -> None:
        raise error


class _App(App[None]):
    def compose(self) -> ComposeResult:
        yield _Label("")


async def test_any_exception_in_a_worker_is_shown() -> None:
    app = _App()
    async with app.run_test():
        label = app.query_one(_Label)
        for error, text in (
            (HubError("The hub is closed."), "error: The hub is closed."),
            (ImportError("no module named x"), "error: Unexpected ImportError: no module named x"),
        ):
            label.fail(error)
            await until_async(lambda text=text: str(label.content) == text)  # type: ignore[misc]


def test_only_thread_worker_hides_exceptions_from_textual() -> None:
    """The workers in chat.py and compare.py highlight code; `highlight_block` handles their exceptions."""
    root = Path(edgechat.tui.__file__).parent
    users = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if "exit_on_error=False" in path.read_text(encoding="utf-8")
    }
    assert users == {"workers.py", "screens/chat.py", "screens/compare.py"}
