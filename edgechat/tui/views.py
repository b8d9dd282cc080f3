"""Functions that open screens above the chat."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from edgechat.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from textual.app import App

    from edgechat.chat.commands import Destination
    from edgechat.chat.session import Session
    from edgechat.chat.store import SearchHit
    from edgechat.config import Settings
    from edgechat.tui.conversation_pane import ConversationPane
    from edgechat.tui.downloads import DownloadRunner
    from edgechat.tui.keys import KeyBinding
    from edgechat.tui.messages import PassagesRequested
    from edgechat.tui.palette_entries import PaletteChoice, PaletteEntry
    from edgechat.tui.recent_choices import RecentChoices
    from edgechat.tui.render.palette import Palette
    from edgechat.tui.session_worker import SessionWorker


def open_help(
    app: App[Any], keys: Sequence[KeyBinding], overrides: Mapping[str, str], type_text: Callable[[str], object]
) -> None:
    """Show the help, and call `type_text` with the slash command that the user chooses there."""
    from edgechat.tui.screens.help import HelpScreen

    def use(name: str | None) -> None:
        if name is not None:
            type_text(f"/{name} ")

    app.push_screen(HelpScreen(keys, overrides), use)


def open_first_run(
    app: App[Any], settings: Settings, downloads: DownloadRunner, type_text: Callable[[str], object],
    get_key_label: Callable[[str], str], on_chosen: Callable[[str | None, str], object],
) -> None:  # fmt: skip
    """Show the first-run screen, and call `on_chosen` with its result and the text of the tour."""
    from edgechat.tui.screens.first_run import FirstRunScreen

    screen = FirstRunScreen(settings, downloads, type_text, get_key_label)

    def report_choice(choice: str | None) -> None:
        on_chosen(choice, screen.tour)

    app.push_screen(screen, report_choice)


def open_palette(
    app: App[Any],
    worker: SessionWorker,
    key_overrides: Mapping[str, str],
    recent: RecentChoices,
    theme: str,
    on_chosen: Callable[[PaletteChoice], object],
) -> None:
    """Open the command palette; record its choice in `recent`, and call `on_chosen` with it.

    `theme` is the theme in the settings, which the palette marks. If the palette is open, close it; above another
    screen, only ask the user to close that screen.
    """
    from textual.screen import ModalScreen

    from edgechat.tui import keys, palette_sources
    from edgechat.tui.key_names import format_key
    from edgechat.tui.screens.command_palette import CommandPaletteScreen

    if isinstance(app.screen, ModalScreen):
        if isinstance(app.screen, CommandPaletteScreen):
            app.screen.dismiss()
        else:
            app.notify("Press Esc to close this screen first")
        return
    session = worker.session
    command_keys = keys.find_command_keys(type(app.screen), key_overrides)
    labels = {name: format_key(key) for name, key in command_keys.items()}

    def load_entries() -> Iterator[Iterator[PaletteEntry]]:
        if session is not None:
            yield palette_sources.list_conversations(session.store)
        yield palette_sources.list_personas()
        yield palette_sources.list_models()

    def find_messages(query: str) -> list[PaletteEntry]:
        return palette_sources.find_messages(session.store, query) if session is not None else []

    def use(choice: PaletteChoice | None) -> None:
        if choice is not None:
            if choice.entry.kind != "message":
                recent.record(choice.entry.choice, save_file=worker.writes_files)
            on_chosen(choice)

    entries = [
        *palette_sources.list_commands(labels),
        *palette_sources.list_themes(theme),
        *palette_sources.list_settings(),
    ]
    app.push_screen(CommandPaletteScreen(entries, load_entries, find_messages, recent.read()), use)


def open_search(app: App[Any], session: Session | None, query: str, on_chosen: Callable[[Destination], None]) -> None:
    """Search all conversations of `session`, starting with `query`; call `on_chosen` with the chosen message."""
    from edgechat.tui.screens.search import SearchScreen

    def search(text: str, limit: int) -> Sequence[SearchHit]:
        return session.store.search(text, limit=limit) if session is not None else []

    app.push_screen(SearchScreen(query, search), lambda target: on_chosen(target) if target else None)


def open_documents(app: App[Any], worker: SessionWorker, settings: Settings) -> None:
    """Show the collections of documents, and those that the conversation uses. `settings` are for embedding models."""
    from edgechat import paths
    from edgechat.documents.library import DocumentLibrary
    from edgechat.tui.screens.documents import DocumentsScreen

    def use(names: tuple[str, ...]) -> None:
        def change(session: Session) -> None:
            session.override_settings(docs=names)
            worker.post_conversation(session)

        worker.queue(change)

    used_names = worker.session.settings.docs if worker.session is not None else ()
    app.push_screen(DocumentsScreen(DocumentLibrary(paths.documents_dir()), settings, used_names, use))


def open_passages(
    app: App[Any], pane: ConversationPane, request: PassagesRequested, open_file: Callable[[Path, int], object]
) -> None:
    """Show the passages of a conversation; on a wide screen, beside it. `open_file` opens a path at a line."""
    from edgechat.tui.screens.passages import PassagesScreen

    def adapt(width: int) -> None:
        pane.styles.margin = (0, width, 0, 0)

    screen = PassagesScreen(request.items, request.index, open_file, adapt, shows_list=request.shows_list)
    app.push_screen(screen, lambda _result: adapt(0))


def pick_persona(app: App[Any], on_chosen: Callable[[str], object]) -> None:
    """Show a list of all personas, and call `on_chosen` with the chosen name. Raises UsageError if there are none."""
    from edgechat import paths
    from edgechat.chat import personas
    from edgechat.tui.screens.picker import pick

    names = personas.list_names()
    if not names:
        raise UsageError(f"There are no personas yet. To add one, create {paths.personas_dir() / 'NAME.toml'}.")
    pick(app, "Personas", [(n, n) for n in names], on_chosen)


def pick_second_model(app: App[Any], session: Session | None, on_chosen: Callable[[str], object]) -> None:
    """Show a list of the other models, beginning with the last choice, and call `on_chosen` with the chosen name.

    Raises UsageError if there is no message or no other model.
    """
    from edgechat.chat.second_reply import find_last_message, list_second_models
    from edgechat.tui.screens.picker import pick

    if session is None:
        raise UsageError("The chat is still starting. Try again when it is ready.")
    find_last_message(session.tree)
    models = list_second_models(session)
    if not models:
        raise UsageError("No other model is installed. Ctrl+O lists models to download.")
    last_name = session.second.last_name
    current = last_name if last_name in dict(models) else None
    pick(app, "Answer with another model, too", models, on_chosen, current=current)


def open_comparison(
    app: App[Any], session: Session | None, argument: str, get_palette: Callable[[], Palette],
    on_chosen: Callable[[str], object],
) -> None:  # fmt: skip
    """Show the two replies that the argument of `/compare` names, and call `on_chosen` with the ID of the chosen one.

    Raises UsageError.
    """
    from edgechat.chat.compared_replies import choose_replies
    from edgechat.tui.screens.compare import CompareScreen

    if session is None:
        raise UsageError("The chat is still starting. Try again when it is ready.")
    screen = CompareScreen(session, choose_replies(session.tree, argument), get_palette)

    def report_choice(reply_id: str | None) -> None:
        if reply_id is not None:
            on_chosen(reply_id)

    app.push_screen(screen, report_choice)


def pick_theme(
    app: App[Any], current: str, preview: Callable[[str], object], on_chosen: Callable[[str], object]
) -> None:
    """Show a list of all themes, in which `current` is marked, and call `on_chosen` with the chosen name.

    `preview` is called with each highlighted theme, and with `current` after Esc.
    """
    from edgechat.tui import themes
    from edgechat.tui.screens.picker import pick

    pick(app, "Themes", themes.list_theme_labels(), on_chosen, current=current, on_highlighted=preview)


def save_theme(name: str, settings: Settings) -> Settings:
    """Save the theme called `name`, and return the changed settings. Raises UsageError and SettingsError."""
    from edgechat import config
    from edgechat.tui import themes

    _, problem = themes.find_theme(name)
    if problem:
        raise UsageError(problem.removeprefix("theme: ").capitalize())
    config.save("theme", name)
    return msgspec.structs.replace(settings, theme=name)
