"""The documents screen: collections of documents, which of them the conversation uses, and their updates."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual import on
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.message import Message
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option
from textual.worker import get_current_worker

from edgechat.terminal import escape_controls
from edgechat.tui import document_rows
from edgechat.tui.confirm import Confirmation
from edgechat.tui.screens.modal import Modal
from edgechat.tui.widgets.entry_list import EntryList
from edgechat.tui.widgets.path_input import PathInput
from edgechat.tui.workers import thread_worker

if TYPE_CHECKING:
    from textual.app import ComposeResult
    from textual.worker import Worker

    from edgechat.config import Settings
    from edgechat.documents.collection import CollectionInfo
    from edgechat.documents.indexing import IndexProgress
    from edgechat.documents.library import DocumentLibrary
    from edgechat.tui.document_updates import UpdateResult


class DocumentsScreen(Modal[None]):
    """List of the collections. Updates run in a thread, one at a time; closing the screen cancels the update."""

    DEFAULT_CSS = """
    DocumentsScreen { align: center middle; background: $background 60%; }
    DocumentsScreen > Vertical {
        width: 100%; max-width: 110; height: 100%; border: round $border; padding: 0 1; background: $surface;
    }
    DocumentsScreen EntryList { height: auto; min-height: 1; max-height: 50%; }
    DocumentsScreen VerticalScroll { height: 1fr; background: $surface; }
    DocumentsScreen #path { display: none; }
    DocumentsScreen #notice { height: auto; max-height: 4; }
    DocumentsScreen #notice.error { color: $text-error; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "leave", "Cancel the update, or close the documents", id="documents.leave"),
        Binding("a", "add(False)", "Add a folder or file as a collection", id="documents.add", show=False),
        Binding("A", "add(True)", "Add a folder or file to the collection", id="documents.extend", show=False),
        Binding("u", "update", "Update the collection", id="documents.update", show=False),
        Binding("d,delete", "remove", "Remove the collection", id="documents.remove", show=False),
        Binding("right", "scroll(5)", "Scroll the details down", id="documents.down", show=False),
        Binding("left", "scroll(-5)", "Scroll the details up", id="documents.up", show=False),
    ]

    @dataclass
    class CollectionsListed(Message):
        """A thread has read the descriptions of all collections."""

        infos: list[CollectionInfo]
        name: str
        """Collection to highlight; "" to keep the highlighted one."""

    @dataclass
    class UpdateProgressed(Message):
        """The update of a collection has progressed."""

        name: str
        progress: IndexProgress

    @dataclass
    class UpdateEnded(Message):
        """The update of a collection has ended."""

        result: UpdateResult

    def __init__(
        self, library: DocumentLibrary, settings: Settings, used_names: Sequence[str],
        use: Callable[[tuple[str, ...]], object],
    ) -> None:  # fmt: skip
        """Show the collections of `library`, of which the conversation uses `used_names`; `use` changes these.

        `settings` are those for loading an embedding model.
        """
        super().__init__()
        self._library = library
        self._settings = settings
        self._used_names = list(used_names)
        self._use = use
        self._infos: list[CollectionInfo] = []
        self._confirmation = Confirmation()
        self._extended_name = ""
        """Collection to which the typed path is added; "" for a new one."""
        self._update: Worker[None] | None = None
        self._updated_name = ""
        """Collection that is being updated; "" if none is."""

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = "Documents"
            labels = {
                "enter": "use", "documents.add": "add", "documents.update": "update", "documents.remove": "remove",
                "documents.leave": "close",
            }  # fmt: skip
            box.border_subtitle = self.format_keys(labels)
            yield EntryList(markup=False)
            with VerticalScroll(can_focus=False):
                yield Static("Listing the collections ...", id="details")
            yield Static(id="notice")
            yield PathInput(placeholder="Folder or file; Tab completes, Enter adds, Esc cancels", id="path")

    def on_mount(self) -> None:
        self._list_collections("")

    @property
    def _highlighted(self) -> CollectionInfo | None:
        index = self.query_one(EntryList).highlighted
        return self._infos[index] if index is not None and index < len(self._infos) else None

    @property
    def _path_input(self) -> PathInput:
        return self.query_one("#path", PathInput)

    def _show_notice(self, text: str, *, is_error: bool = False) -> None:
        notice = self.query_one("#notice", Static)
        notice.set_class(is_error, "error")
        notice.update(Text(escape_controls(text)))

    def _show_error(self, text: str) -> None:
        self._updated_name = ""
        self._show_notice(text, is_error=True)
        self._list_collections("")

    def _show_list_error(self, text: str) -> None:
        self._show_notice(text, is_error=True)

    # The list

    @thread_worker(_show_list_error, group="list")
    def _list_collections(self, name: str) -> None:
        self.post_message(self.CollectionsListed(self._library.list(), name))

    def on_documents_screen_collections_listed(self, message: CollectionsListed) -> None:
        name = message.name or (self._highlighted.name if self._highlighted is not None else "")
        self._infos = message.infos
        self._fill_list(name)

    def _fill_list(self, name: str) -> None:
        """Show the collections, and highlight the one called `name`; if it was removed, the one in its place."""
        options, ascii_only = self.query_one(EntryList), self.app.has_class("ascii")
        old_index = options.highlighted or 0
        options.clear_options()
        rows = document_rows.format_rows(self._infos, self._used_names, ascii_only=ascii_only)
        options.add_options([Option(row) for row in rows])
        names = [info.name for info in self._infos]
        index = names.index(name) if name in names else min(old_index, len(names) - 1)
        options.highlighted = index if names else None
        if not self._path_input.display:
            options.focus()
        self._show_details()

    def _show_details(self) -> None:
        info = self._highlighted
        if info is not None:
            text = document_rows.describe_collection(info, dt.datetime.now().astimezone().date())
        else:
            text = (
                f"There are no collections yet. Press {self.key_label('documents.add')} to add a folder with text, "
                "Markdown, source code, HTML, PDF, Office files, EPUB, e-mails or CSV. Replies then cite the passages "
                "that they are based on."
            )
        self.query_one("#details", Static).update(Text(text))

    @on(OptionList.OptionHighlighted)
    def _on_highlighted(self, message: OptionList.OptionHighlighted) -> None:
        message.stop()
        self._show_details()

    @on(OptionList.OptionSelected)
    def _on_selected(self, message: OptionList.OptionSelected) -> None:
        """Use the collection in this conversation, or do not use it any more."""
        message.stop()
        info = self._highlighted
        if info is None:
            return
        if info.is_damaged and info.name not in self._used_names:
            update_key = self.key_label("documents.update")
            self._show_notice(f"{info.name} cannot be used before an update. Press {update_key}.", is_error=True)
            return
        names = [name for name in self._used_names if name != info.name]
        self._use_names(names if info.name in self._used_names else [*names, info.name])
        is_used = info.name in self._used_names
        self._show_notice(f"This conversation {'uses' if is_used else 'does not use'} {info.name}.")
        self._fill_list(info.name)

    def _use_names(self, names: Sequence[str]) -> None:
        self._used_names = list(names)
        self._use(tuple(names))

    # Adding and updating

    def action_add(self, extends: bool) -> None:  # noqa: FBT001  (the value is in a key binding)
        """Ask for a folder or a file, for a new collection or for the highlighted one."""
        info = self._highlighted
        self._extended_name = info.name if extends and info is not None else ""
        self._show_notice(f"Add to {self._extended_name}:" if self._extended_name else "Add a new collection from:")
        self._path_input.value = ""
        self._path_input.display = True
        self._path_input.focus()

    @on(Input.Submitted, "#path")
    def _on_path_submitted(self, message: Input.Submitted) -> None:
        message.stop()
        text = message.value.strip()
        if not text:
            return
        try:
            path = Path(text).expanduser()
        except RuntimeError:  # there is no user with this name
            path = Path(text)
        if not path.exists():
            self._show_notice(f"Cannot add {text}: there is no such file or folder.", is_error=True)
            return
        if self._start_update(self._extended_name, path):
            self._close_path_input()

    def _close_path_input(self) -> None:
        self._path_input.display = False
        self.query_one(EntryList).focus()

    def action_update(self) -> None:
        """Update the highlighted collection: read new and changed files, and remove deleted ones."""
        info = self._highlighted
        if info is not None:
            self._start_update(info.name, None)

    def _start_update(self, name: str, path: Path | None) -> bool:
        """Start an update; return False if another one is running."""
        if self._updated_name:
            cancel_key = self.key_label("documents.leave")
            self._show_notice(f"{self._updated_name} is being updated. {cancel_key} cancels the update.")
            return False
        self._updated_name = name or str(path)
        self._show_notice(f"{self._updated_name}: starting ...")
        self._update = self._run_update(name, path)
        return True

    @thread_worker(_show_error, group="update")
    def _run_update(self, name: str, path: Path | None) -> None:
        """Update a collection, or create one of `path` if `name` is empty."""
        from edgechat.tui.document_updates import update_collection

        worker = get_current_worker()
        result = update_collection(
            self._library, self._settings, name, path,
            lambda name, progress: self.post_message(self.UpdateProgressed(name, progress)),
            self._show_status_later,
            lambda: worker.is_cancelled,
        )  # fmt: skip
        self.post_message(self.UpdateEnded(result))

    def _show_status_later(self, name: str, text: str) -> None:
        self.call_later(self._show_notice, f"{name}: {text}")

    def on_documents_screen_update_progressed(self, message: UpdateProgressed) -> None:
        if self._updated_name:
            self._updated_name = message.name
            cancel_key = self.key_label("documents.leave")
            text = document_rows.describe_progress(message.name, message.progress)
            self._show_notice(f"{text}   {cancel_key}: cancel")

    def on_documents_screen_update_ended(self, message: UpdateEnded) -> None:
        self._updated_name = ""
        name, summary, is_new = message.result
        text = document_rows.describe_summary(name, summary)
        if is_new and summary.added and name not in self._used_names:
            self._use_names([*self._used_names, name])
            text += " This conversation uses it."
        self._show_notice(text)
        self._list_collections(name)

    # Removing and leaving

    def action_remove(self) -> None:
        """Remove the index of the highlighted collection on the second press."""
        info = self._highlighted
        if info is None or self._updated_name == info.name:
            return
        if not self._confirmation.confirm(info.name):
            key = self.key_label("documents.remove")
            self._show_notice(f"Press {key} again to remove the collection {info.name}. Its files stay.")
            return
        if info.name in self._used_names:
            self._use_names([name for name in self._used_names if name != info.name])
        self._remove(info.name)

    @thread_worker(_show_error, group="remove")
    def _remove(self, name: str) -> None:
        self._library.remove(name)
        self.app.call_from_thread(self._show_notice, f"The collection {name} was removed. Its files are unchanged.")
        self.post_message(self.CollectionsListed(self._library.list(), ""))

    def action_scroll(self, step: int) -> None:
        self.query_one(VerticalScroll).scroll_relative(y=step, animate=False, force=True)

    def action_leave(self) -> None:
        """Close the path input, or cancel the update, or close the screen."""
        if self._path_input.display:
            self._close_path_input()
            self._show_notice("")
        elif self._updated_name and self._update is not None and not self._update.is_cancelled:
            self._update.cancel()
            self._show_notice(f"{self._updated_name}: cancelling ...")
        else:
            self.dismiss()
