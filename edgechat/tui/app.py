"""The Textual application: themes, key bindings, clipboard, downloads and screens for one chat session."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, Protocol, runtime_checkable

from textual import events, on
from textual.app import SuspendNotSupported
from textual.binding import Binding, BindingType

from edgechat.errors import EdgechatError
from edgechat.signals import HANGUP_EXIT_CODE
from edgechat.terminal import escape_controls
from edgechat.tui import copying, keys, textual_private, themes
from edgechat.tui.ending import SignalEnding
from edgechat.tui.messages import CopyRequested, DownloadEnded, PassagesRequested, ViewRequested
from edgechat.tui.recent_choices import RecentChoices
from edgechat.tui.screens.chat import ChatScreen
from edgechat.tui.session_worker import Export, SessionWorker
from edgechat.tui.suspending import suspend_job
from edgechat.tui.themed_app import ThemedApp
from edgechat.tui.widgets.prompt import PromptInput
from edgechat.tui.widgets.transcript import Transcript

if TYPE_CHECKING:
    from pathlib import Path

    from textual.screen import Screen

    from edgechat.chat.session import Session
    from edgechat.config import Settings
    from edgechat.tui.actions import Actions
    from edgechat.tui.conversation_pane import ConversationPane
    from edgechat.tui.downloads import DownloadRunner
    from edgechat.tui.driver import TerminalLost
    from edgechat.tui.editor import Editor


# Time after which a thread releases Python's interpreter lock. With the default of 5 ms, a key press can wait several
# times as long while other threads load modules or save replies.
_SWITCH_INTERVAL_S: Final = 0.0005


@runtime_checkable
class _DownloadScreen(Protocol):
    """Screen that shows the progress and the result of downloads."""

    def show_download(self, status: str) -> None: ...
    def show_download_result(self, problem: str) -> None: ...


class ChatApp(ThemedApp):
    """Application with the chat screen and the screens that commands open above it."""

    TITLE = "edgechat"
    CSS = """
    ScrollView, ScrollableContainer {
        scrollbar-size: 1 1; scrollbar-color: $scrollbar; scrollbar-background: $scrollbar-background;
    }
    .ascii * { scrollbar-size: 0 0; }
    .ascii PromptInput, .ascii PromptInput:focus, .ascii ModalScreen > * { border: ascii $border; }
    .ascii Static, .ascii Sidebar { border: none; }
    """
    ENABLE_COMMAND_PALETTE = False  # disables Textual's palette; `action_command_palette` opens edgechat's
    NOTIFICATION_TIMEOUT = 3
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+q", "quit", "Quit", id="app.quit", priority=True),
        Binding("ctrl+p", "command_palette", "Command palette", id="app.palette", priority=True),
        Binding("ctrl+z", "suspend_process", "Suspend; `fg` in the shell resumes", id="app.suspend", priority=True),
    ]

    def __init__(
        self, make_session: Callable[[], Session], problems: Sequence[str], settings: Settings, export: Export,
        *, is_first_run: bool = False,
    ) -> None:  # fmt: skip
        """`make_session` creates the session after the first frame. `problems` describe invalid settings.

        If `is_first_run`, the user chooses a model before one is loaded.
        """
        super().__init__(settings)
        self.animation_level = "none"  # animations cause many repaints, which are slow over a slow connection
        self.is_first_run = is_first_run
        self.is_leaving = False
        self.download_status = ""
        self.ending = SignalEnding(self)
        self.worker = SessionWorker(make_session, self._post_to_pane, export)
        self._exit_code = 0
        self._downloads: DownloadRunner | None = None
        self._recent_choices = RecentChoices()
        self.key_overrides: dict[str, str] = {}
        problems = [*problems, *self.apply_theme(settings.theme), *self._apply_keys(settings)]
        self.chat = ChatScreen(
            self.worker, lambda: self.palette, lambda: self.key_overrides, lambda: self.download_status, self._start,
            problems, figures=settings.figures, footer=settings.footer,
        )  # fmt: skip

    def on_load(self) -> None:
        self.ending.loop = asyncio.get_running_loop()

    def get_default_screen(self) -> Screen[None]:
        return self.chat

    def on_mount(self) -> None:
        self.theme_changed_signal.subscribe(self, lambda _theme: self.redraw())
        self.update_ascii()
        self.ask_terminal()
        self.pane.apply_settings(self.settings)

    def _start(self) -> None:
        """Load the model; on the first run, let the user choose a model first."""
        if not self.is_first_run:
            self.worker.open()
            return
        from edgechat.tui.views import open_first_run

        def start_chat(choice: str | None, tour: str) -> None:
            self.pane.add_note(tour)
            self.worker.open()
            if choice == "models":
                self._open_models()

        open_first_run(
            self, self.settings, self.downloads, self.pane.prompt.type_text, self.pane.footer.key_label, start_chat
        )

    def _post_to_pane(self, message: Any) -> None:
        if not self.is_leaving:
            self.pane.post_message(message)

    @property
    def pane(self) -> ConversationPane:
        return self.chat.pane

    @property
    def actions(self) -> Actions:
        return self.chat.actions

    # Theme and keys

    def _apply_keys(self, settings: Settings) -> list[str]:
        """Apply the key bindings in the settings; return a message for each invalid one."""
        problems: list[str] = []
        self.key_overrides = {}
        if settings.keys or settings.vim_keys:
            self.key_overrides, problems = keys.resolve_key_map(
                settings.keys, self.list_key_bindings(), vim=settings.vim_keys
            )
        self.set_keymap(self.key_overrides)
        return problems

    @classmethod
    def find_appearance_problems(cls, settings: Settings) -> list[str]:
        """Return a message for each problem with the theme and the key bindings in the settings."""
        _, theme_problem = themes.find_theme(settings.theme)
        _, problems = keys.resolve_key_map(settings.keys, cls.list_key_bindings(), vim=settings.vim_keys)
        return [theme_problem, *problems] if theme_problem else problems

    def redraw(self) -> None:
        super().redraw()
        if self.chat.is_mounted:
            self.pane.transcript.discard_layout()
            self.pane.title_line.redraw()
            self.pane.status_line.redraw()

    @staticmethod
    def list_key_bindings() -> list[keys.KeyBinding]:
        """Return all key bindings, including those of screens that are not open."""
        from edgechat.tui.screens.compare import CompareScreen
        from edgechat.tui.screens.documents import DocumentsScreen
        from edgechat.tui.screens.filter_list import FilterListScreen
        from edgechat.tui.screens.first_run import FirstRunScreen
        from edgechat.tui.screens.help import HelpScreen
        from edgechat.tui.screens.models import ModelsScreen
        from edgechat.tui.screens.passages import PassagesScreen
        from edgechat.tui.screens.plan import TextScreen
        from edgechat.tui.screens.settings import SettingsScreen
        from edgechat.tui.widgets.line_editor import LineEditor
        from edgechat.tui.widgets.row_scrolling import RowScrolling
        from edgechat.tui.widgets.sidebar import Sidebar

        screens = (
            FilterListScreen,
            ModelsScreen,
            PassagesScreen,
            CompareScreen,
            SettingsScreen,
            HelpScreen,
            TextScreen,
            FirstRunScreen,
            DocumentsScreen,
        )
        return keys.list_declared_bindings(
            ChatApp, ChatScreen, PromptInput, LineEditor, Transcript, RowScrolling, Sidebar, *screens
        )

    def apply_settings(self, settings: Settings) -> None:
        """Apply changed settings. Does not reload the model."""
        old_settings, self.settings = self.settings, settings
        for problem in [*self.apply_theme(settings.theme), *self._apply_keys(settings)]:
            self.notify(problem)
        if settings.theme != old_settings.theme:
            self.ask_terminal()
        self.update_ascii()
        self.pane.apply_settings(settings)
        if settings.figures not in (old_settings.figures, self.pane.shows_figures):
            self.pane.toggle_figures()
        self.worker.queue(lambda session: session.set_base_settings(settings))

    # Screens

    def action_command_palette(self) -> None:
        """Open the command palette over the chat, or close it."""
        from edgechat.tui.views import open_palette

        open_palette(
            self, self.worker, self.key_overrides, self._recent_choices, self.settings.theme, self.actions.choose
        )

    def on_view_requested(self, message: ViewRequested) -> None:
        if message.view == "search":
            from edgechat.tui.views import open_search

            open_search(self, self.worker.session, message.argument, self.actions.go_to)
        elif message.view == "models":
            self._open_models()
        elif message.view == "personas":
            self.actions.attempt(self._choose_persona, "")
        elif message.view == "settings":
            from edgechat.tui.screens.settings import SettingsScreen

            self.push_screen(SettingsScreen(self.settings, self.apply_settings, self.apply_theme, message.argument))
        elif message.view == "themes":
            self.actions.attempt(self._choose_theme, message.argument, f"/theme {message.argument}".rstrip())
        elif message.view in ("plan", "help", "documents"):
            self._open_screen(message.view)
        elif message.view in ("also", "compare"):
            line = f"/{message.view} {message.argument}".rstrip() if message.argument else ""
            self.actions.attempt(lambda argument: self._open_replies(message.view, argument), message.argument, line)
        elif message.view == "suspend":
            self.action_suspend_process()
        elif message.view == "quit":
            self.run_worker(self.action_quit())
        else:
            raise AssertionError(f"no screen for {message.view}")

    def _open_screen(self, view: Literal["plan", "help", "documents"]) -> None:
        if view == "plan":
            from edgechat.tui.screens.plan import PlanScreen

            self.push_screen(PlanScreen(self.worker.session, self.settings))
        elif view == "help":
            from edgechat.tui.views import open_help

            open_help(self, self.list_key_bindings(), self.key_overrides, self.pane.prompt.type_text)
        else:
            from edgechat.tui.views import open_documents

            open_documents(self, self.worker, self.settings)

    def _open_replies(self, view: str, argument: str) -> None:
        """Open the list of models for a second reply, or the comparison of two replies. Raises UsageError."""
        from edgechat.tui.views import open_comparison, pick_second_model

        if view == "compare":
            open_comparison(self, self.worker.session, argument, lambda: self.palette, self.actions.second.show_reply)
        else:
            pick_second_model(self, self.worker.session, lambda name: self.actions.run("also", name))

    def on_passages_requested(self, message: PassagesRequested) -> None:
        from edgechat.tui.views import open_passages

        open_passages(self, self.pane, message, self._open_file)

    def _open_models(self) -> None:
        from edgechat.tui.screens.models import ModelsScreen

        session = self.worker.session
        path = session.model_path if session is not None else None
        settings = session.settings if session is not None else self.settings  # with the options of the command line
        screen = ModelsScreen(settings, self.downloads, lambda: self.pane.is_generating, path)
        self.push_screen(screen, lambda name: self.actions.use_model(name) if name is not None else None)

    def _choose_persona(self, _argument: str) -> None:
        from edgechat.tui.views import pick_persona

        pick_persona(self, lambda name: self.actions.run("persona", name))

    def _choose_theme(self, name: str) -> None:
        """Use and save the theme called `name`, or open a list of themes if `name` is empty."""
        from edgechat.tui.views import pick_theme, save_theme

        if name:
            try:
                settings = save_theme(name, self.settings)
            except EdgechatError:
                self.apply_theme(self.settings.theme)  # removes the preview of another theme
                raise
            self.apply_settings(settings)
            self.notify(f"Theme: {name}, saved to the settings")
        else:
            pick_theme(self, self.settings.theme, self.apply_theme, lambda theme: self.actions.run("theme", theme))

    # Downloads

    @property
    def downloads(self) -> DownloadRunner:
        """Runner of model downloads, which continue after the models screen is closed."""
        if self._downloads is None:
            from edgechat.tui.downloads import DownloadRunner

            self._downloads = DownloadRunner(
                lambda status: self.call_later(self._show_download, status), self.post_message
            )
        return self._downloads

    def _show_download(self, status: str) -> None:
        if self.is_leaving:
            return
        self.download_status = status
        self.pane.status_line.redraw()
        if isinstance(self.screen, _DownloadScreen):
            self.screen.show_download(status)

    def on_download_ended(self, message: DownloadEnded) -> None:
        if isinstance(self.screen, _DownloadScreen):
            self.screen.show_download_result(message.problem)
        elif message.problem:
            self.pane.add_error(message.problem)
        else:
            self.pane.add_note(f"Installed {message.reference}. Use it with /model {message.name}.")
            self.notify(f"Installed {message.name}")

    # The terminal

    def notify(self, message: str, **options: Any) -> None:
        """Show a notice in the footer of the chat, or as a toast on other screens. `message` is untrusted text."""
        if self.screen_stack[-1:] == [self.chat]:  # the stack is empty before the start and after the end
            self.pane.show_notice(message, options.get("severity", "information"))
            return
        super().notify(escape_controls(message), **{**options, "markup": False})

    async def on_event(self, event: events.Event) -> None:
        if isinstance(event, events.Key) and not event.is_forwarded:
            self.pane.footer.note_key()
            self.pane.hide_offer()
        await super().on_event(event)

    def copy_to_clipboard(self, text: str) -> None:
        """Copy `text` from a widget of Textual."""
        copying.copy(self, text)

    def on_copy_requested(self, message: CopyRequested) -> None:
        """Copy the text, and also save it to a file, because a terminal does not report whether copying succeeded."""
        copying.copy(self, message.text, message.label, save_file=self.worker.writes_files)

    def on_text_selected(self) -> None:
        """Copy the text that was selected with the mouse, if the setting `copy_on_select` is on."""
        text = self.screen.get_selected_text() if self.settings.copy_on_select else None
        if text:
            self.on_copy_requested(CopyRequested(text, "Selection"))

    @on(PromptInput.EditorRequested)
    def _open_editor(self) -> None:
        prompt = self.pane.prompt
        self._run_editor(lambda editor: prompt.load(editor.edit(prompt.full_text)), self.pane.add_error)

    def _open_file(self, path: Path, line: int) -> None:
        """Open a document in the external editor, at a line."""
        self._run_editor(lambda editor: editor.open_at(path, line), lambda text: self.notify(text, severity="error"))

    def _run_editor(self, use: Callable[[Editor], object], show_error: Callable[[str], object]) -> None:
        from edgechat.tui.editor import Editor

        editor = Editor()
        self.ending.forward = editor.forward_signal
        try:
            with self.suspend():
                try:
                    use(editor)
                except EdgechatError as error:  # an exception that leaves `suspend` would not resume the screen
                    show_error(str(error))
        except SuspendNotSupported as error:
            show_error(str(error))
        self.refresh(layout=True)

    def action_suspend_process(self) -> None:
        """Suspend the program as a terminal does with Ctrl+Z, if a shell can resume it."""
        if not suspend_job(lambda: textual_private.suspend_driver(self)):
            self.notify("There is no shell to return to")

    # Quitting

    async def action_quit(self) -> None:
        """Stop the reply that is being generated, wait until it is saved, and quit."""
        if self.is_leaving:
            return
        self.is_leaving = True
        self.chat.leave()
        if self._downloads is not None:
            self._downloads.close()
        await asyncio.to_thread(self.worker.close)
        self.exit(self._exit_code, return_code=self._exit_code)

    async def end(self, exit_code: int) -> None:
        """Quit with an exit code other than 0, because a signal arrived or the terminal is gone."""
        self._exit_code = self._exit_code or exit_code
        self.run_worker(self.action_quit())

    def save_everything(self) -> None:
        """Save the reply and the unsent text in this thread, while the event loop is blocked."""
        with contextlib.suppress(Exception):
            self.pane.composer.save()
        self.worker.close()

    async def on_terminal_lost(self, _message: TerminalLost) -> None:
        await self.end(HANGUP_EXIT_CODE)

    def report_crash(self, error: Exception) -> None:
        """Print a short message with the path of the crash log instead of Textual's traceback."""
        from edgechat.tui.crash_report import save_crash_report

        self.panic(save_crash_report(error))


def run_app(app: ChatApp) -> int:
    """Run the application in this terminal, and return the exit code."""
    textual_private.register_alt_enter()
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    with app.ending.handle_signals():
        try:
            app.run()
        finally:
            app.worker.close()
    return app.return_code or 0
