"""The application: what holds for all screens. The chat itself is in `edgechat.tui.screens.chat`."""

from __future__ import annotations

import asyncio
import functools
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from textual import on
from textual.app import SuspendNotSupported, SystemCommand
from textual.binding import Binding, BindingType

from edgechat import files, paths
from edgechat.errors import EdgechatError
from edgechat.terminal import escape_controls
from edgechat.tui import keys, textual_private
from edgechat.tui.messages import DownloadEnded
from edgechat.tui.screens.chat import ChatScreen
from edgechat.tui.session_worker import SessionWorker
from edgechat.tui.widgets.prompt import PromptInput
from edgechat.tui.widgets.transcript import Transcript

if TYPE_CHECKING:
    from textual.screen import Screen

    from edgechat.chat.session import Session
    from edgechat.chat.store import ConversationSummary, Store
    from edgechat.config import Settings
    from edgechat.tui.actions import Actions
    from edgechat.tui.downloads import DownloadRunner
    from edgechat.tui.render.palette import Palette

Export = Callable[["Store", str, Path], None]
"""Writes a conversation to a file, whose suffix says in which form. Raises EdgechatError."""
_HISTORY = 500
_MAX_LISTED = 1000


class ChatApp(textual_private.CrashReportApp[int]):
    """Screens over one session."""

    TITLE = "edgechat"
    CSS = """
    Transcript, OptionList, VerticalScroll { scrollbar-color: $panel; scrollbar-color-hover: $primary; scrollbar-color-active: $primary;
        scrollbar-background: $background; scrollbar-background-hover: $background;
        scrollbar-background-active: $background; scrollbar-size-vertical: 1; }
    OptionList { border: none; padding: 0; background: $surface; text-wrap: nowrap; text-overflow: ellipsis; }
    OptionList:focus { border: none; }
    Sidebar OptionList { background: $background; }
    .ascii * { scrollbar-size: 0 0; }
    .ascii PromptInput, .ascii PromptInput:focus, .ascii ModalScreen > * { border: ascii $border; }
    .ascii Static, .ascii Sidebar { border: none; }
    """
    ENABLE_COMMAND_PALETTE = True
    NOTIFICATION_TIMEOUT = 3
    COMMAND_PALETTE_BINDING = "ctrl+p"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+q", "quit", "Quit", id="app.quit", priority=True),
        Binding("ctrl+p", "command_palette", "Everything there is", id="app.palette", priority=True),
    ]

    def __init__(
        self, make_session: Callable[[], Session], problems: Sequence[str], settings: Settings, export: Export,
        *, is_first: bool = False,
    ) -> None:  # fmt: skip
        """`make_session` is called after the first frame; `problems` are shown at the top.

        With `is_first` the machine and its best model are shown before anything is loaded.
        """
        super().__init__()
        self.animation_level = "none"  # what moves costs, most of all over a slow line
        self.settings = settings
        self.export = export
        self.is_first = is_first
        self.is_leaving = False
        self.download_status = ""
        """What a download is at, for the live line."""
        self.shows_figures = settings.figures
        self.worker = SessionWorker(make_session, self._tell)
        self._downloads: DownloadRunner | None = None
        self._palette: Palette | None = None
        self.key_overrides: dict[str, str] = {}
        found = [*problems, *self._take_theme(settings.theme), *self._take_keys(settings)]
        self.chat = ChatScreen(found)

    def get_default_screen(self) -> Screen[None]:
        """The chat."""
        return self.chat

    def on_mount(self) -> None:
        """Follow the theme."""
        self.theme_changed_signal.subscribe(self, lambda _theme: self._recolour())
        if self.settings.ascii:
            self.add_class("ascii")

    def _tell(self, message: object) -> None:
        """From any thread to the chat."""
        if not self.is_leaving:
            self.chat.post_message(message)  # type: ignore[arg-type]

    @functools.cached_property
    def actions(self) -> Actions:
        """What can be done; made when something is."""
        from edgechat.tui.actions import Actions

        return Actions(self)

    # Looks

    @property
    def palette(self) -> Palette:
        """What the theme of now means for rows."""
        if self._palette is None:
            from edgechat.tui.render.palette import Palette

            theme = self.current_theme
            self._palette = Palette(
                theme.to_color_system().generate(), dark=theme.dark, ansi=theme.ansi, ascii_only=self.settings.ascii
            )
        return self._palette

    def _take_theme(self, name: str) -> list[str]:
        """Look like this; returns what is wrong with it."""
        if name == self.theme:
            return []
        from edgechat.tui import themes

        theme, problem = themes.find_theme(name)
        self.register_theme(theme)
        self.theme = theme.name
        return [problem] if problem else []

    def _take_keys(self, settings: Settings) -> list[str]:
        """Let keys mean what the settings say; returns what is wrong with them."""
        problems: list[str] = []
        self.key_overrides = {}
        if settings.keys or settings.vim_keys:
            self.key_overrides, problems = keys.resolve_key_map(settings.keys, self.all_keys(), vim=settings.vim_keys)
        self.set_keymap(self.key_overrides)
        return problems

    def _recolour(self) -> None:
        self._palette = None
        if self.chat.is_attached:
            self.chat.transcript.discard_layout()

    @staticmethod
    def all_keys() -> list[keys.KeyBinding]:
        """Every binding of ours, those of screens among them that are not open."""
        from edgechat.tui.screens.filter_list import FilterListScreen
        from edgechat.tui.screens.first_run import FirstRunScreen
        from edgechat.tui.screens.models import ModelsScreen
        from edgechat.tui.screens.plan import TextScreen
        from edgechat.tui.screens.settings import SettingsScreen
        from edgechat.tui.widgets.sidebar import Sidebar

        screens = (FilterListScreen, ModelsScreen, SettingsScreen, TextScreen, FirstRunScreen)
        return keys.declared_bindings(ChatApp, ChatScreen, PromptInput, Transcript, Sidebar, *screens)

    # Everything there is

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:  # noqa: ARG002
        """For the palette: each command that needs nothing after it, and what Textual has itself."""
        from edgechat.chat.commands import COMMANDS

        for command in COMMANDS:
            if not command.argument or command.argument.startswith("["):
                run = lambda name=command.name: self.actions.run(name, "")  # noqa: E731  (bound now)
                yield SystemCommand(command.name.capitalize(), command.summary, run)
        yield SystemCommand("Search", "find words in all conversations", lambda: self.actions.search(""))
        yield SystemCommand("Theme", "other colours, for now; /settings keeps them", self.action_change_theme)

    @on(PromptInput.HistoryRequested)
    def _on_history_requested(self, message: PromptInput.HistoryRequested) -> None:
        self._read_history(then_pick=message.search)

    def _read_history(self, *, then_pick: bool) -> None:
        def run(session: Session) -> None:
            found = list(session.store.recent_inputs(_HISTORY))
            self.call_from_thread(self._take_history, found, then_pick=then_pick)

        self.worker.aside(run)

    def _take_history(self, found: list[str], *, then_pick: bool) -> None:
        prompt = self.chat.prompt
        prompt.past_messages = found
        if not then_pick:
            prompt.recall(0)
        elif found:
            options = [(str(n), " ".join(text.split())[:300]) for n, text in enumerate(found)]
            self.pick("What you said before", options, lambda chosen: prompt.recall(int(chosen)))

    def pick(self, title: str, options: Sequence[tuple[str, str]], then: Callable[[str], object]) -> None:
        """Let one of these be chosen: what each stands for, and how it is shown."""
        from edgechat.tui.screens.picker import PickerScreen

        def chosen(found: str | None) -> None:
            if found is not None:
                then(found)

        self.push_screen(PickerScreen(title, options), chosen)

    def _list_conversations(self) -> Sequence[ConversationSummary] | None:
        session = self.worker.session
        return session.store.list_conversations(limit=_MAX_LISTED) if session is not None else None

    def toggle_sidebar(self) -> None:
        """Show the list of conversations, or not."""
        sidebar = self.chat.sidebar
        if sidebar is None:
            from edgechat.tui.widgets.sidebar import Sidebar

            self.chat.sidebar = sidebar = Sidebar(self._list_conversations, lambda: self.chat.conversation_id)
            self.chat.mount(sidebar, before=0)
            self.call_after_refresh(sidebar.refresh_list)
            self.call_after_refresh(sidebar.focus_filter)
        elif sidebar.display:
            sidebar.action_leave()
        else:
            sidebar.display = True
            sidebar.refresh_list()
            sidebar.focus_filter()

    # Models

    @property
    def downloads(self) -> DownloadRunner:
        """What gets models; goes on when its screen is closed."""
        if self._downloads is None:
            from edgechat.tui.downloads import DownloadRunner

            self._downloads = DownloadRunner(self)
        return self._downloads

    def use_model(self, name: str) -> None:
        """Let another model answer from here on; what is being answered ends."""
        if self.chat.is_generating:
            self.worker.stop()
        self.chat.begin_load()
        self.worker.load_model(name)

    def notify(self, message: str, **more: Any) -> None:
        """Say something in a corner; titles, names and errors come from outside, and may act on a terminal."""
        super().notify(escape_controls(message), **{**more, "markup": False})

    def show_download(self, words: str) -> None:
        """How far a download is, wherever that is shown."""
        self.download_status = words
        self.chat.status_line.redraw()
        show = getattr(self.screen, "show_download", None)
        if show is not None:
            show(words)

    @on(DownloadEnded)
    def _on_download_ended(self, message: DownloadEnded) -> None:
        wait = getattr(self.screen, "download_ended", None)
        if wait is not None:
            wait(message.problem)
        elif message.problem:
            self.chat.add_error(message.problem)
        else:
            self.chat.add_note(f"{message.reference} is here: /model {message.name} lets it answer")
            self.notify(f"{message.name} is here")

    def take_settings(self, settings: Settings) -> None:
        """Let other settings hold, as far as that is possible while a model is loaded."""
        before, self.settings = self.settings, settings
        for problem in [*self._take_theme(settings.theme), *self._take_keys(settings)]:
            self.notify(problem)
        if settings.figures not in (before.figures, self.shows_figures):
            self.actions.run("figures", "")
        self.worker.do(lambda session: session.set_base_settings(settings))

    # Copying

    def copy_to_clipboard(self, text: str) -> None:
        """Also through tmux and screen, which keep what is meant for the terminal outside."""
        from edgechat.tui import clipboard

        textual_private.set_clipboard(self, text)
        if len(text) <= clipboard.MAX_CHARS:
            textual_private.write_to_terminal(self, clipboard.osc52_sequence(text))

    def copy(self, text: str, what: str) -> None:
        """Copy, and say where else it is: a terminal does not tell whether it took it."""
        from edgechat.tui import clipboard

        self.copy_to_clipboard(text)
        session = self.worker.session
        file = clipboard.save_copy(text) if session is None or session.store.is_persistent else None
        where = f"; also in {file}" if file is not None else ""
        taken = (
            f"{what} copied" if len(text) <= clipboard.MAX_CHARS else f"{what} is too long for a terminal's clipboard"
        )
        self.notify(f"{taken}{where}")

    # Outside

    @on(PromptInput.EditorRequested)
    def _on_editor_wanted(self) -> None:
        from edgechat.tui.editor import edit_text

        prompt = self.chat.prompt
        try:
            with self.suspend():
                text = edit_text(prompt.full_text)
        except (EdgechatError, SuspendNotSupported) as problem:
            self.chat.add_error(str(problem))
        else:
            prompt.load(text)
        self.refresh(layout=True)

    async def action_quit(self) -> None:
        """Leave at once: the engine is closed first, because a thread waits for its words."""
        if self.is_leaving:
            return
        self.chat.leave()
        self.is_leaving = True
        if self._downloads is not None:
            self._downloads.close()
        await asyncio.to_thread(self.worker.close)
        self.exit(0)

    def report_crash(self) -> None:
        """One screen with what to do, instead of pages of source."""
        from rich.text import Text

        file = paths.cache_dir() / "crash.log"
        where = ""
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            files.replace_file(file, traceback.format_exc().encode("utf-8", "replace"))
            where = f" The details are in {file}, those of the engine in {paths.log_file()}."
        except OSError:
            where = "\n" + traceback.format_exc()
        problem = traceback.format_exc().strip().splitlines()[-1][:300]
        self.panic(Text(
            f"edgechat failed: {problem}\n\nWhat was said is kept: `edgechat -c` goes on with it.{where}"
        ))  # fmt: skip


def run_app(app: ChatApp) -> int:
    """Hold the conversation on this terminal; returns the exit code."""
    textual_private.register_alt_enter()
    try:
        app.run()
    finally:
        app.worker.close()
    return app.return_code or 0
