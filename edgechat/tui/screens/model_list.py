"""List of the models screen: downloads, installed and available models with their quants, and hub search results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.text import Text
from textual import on
from textual.widgets import Input, Static

from edgechat.humanize import shorten
from edgechat.remote_settings import ROUTE
from edgechat.terminal import escape_controls
from edgechat.tui.render.palette import ASCII_GLYPHS, UNICODE_GLYPHS
from edgechat.tui.row_text import contains_words
from edgechat.tui.screens import hub_models, model_groups
from edgechat.tui.screens.download_rows import DOWNLOAD_PREFIX, make_download_rows
from edgechat.tui.screens.filter_list import FilterListScreen
from edgechat.tui.screens.model_groups import ModelFile, ModelGroup, make_heading, make_option

if TYPE_CHECKING:
    from textual.widgets.option_list import Option

    from edgechat.catalogue.hub import SearchResult
    from edgechat.tui.downloads import DownloadRunner
    from edgechat.tui.render.palette import Glyphs

HUB_PREFIX: Final = "hub:"
"""Prefix of the option IDs of repositories on the hub, before the name."""
REMOTE_PREFIX: Final = "remote:"
"""Prefix of the option IDs of remote models, before the name."""
ROUTE_ID: Final = "route:"
"""Option ID of the route between two models."""
# Maximum length of the name of a remote model in the list, so that its host is visible.
_MAX_NAME_CHARS: Final = 40
MODEL_PREFIX: Final = "model:"
"""Prefix of the option IDs of models with several quants, before the name."""


class ModelListScreen(FilterListScreen[str | None]):
    """Screen with a list of models that can be unfolded to show their quants. Subclasses load the models."""

    def __init__(self, downloads: DownloadRunner) -> None:
        super().__init__()
        self._downloads = downloads
        self._name_in_use = self._default_id = ""  # the default row is highlighted until the user moves the highlight
        self._groups: list[ModelGroup] = []
        self._remote_models: dict[str, str] = {}
        """Hosts of the known models of remotes, by name."""
        self._route = ""
        """The two models of the route; "" if there is no route."""
        self._hub_results: list[SearchResult] = []
        self._hub_quants: dict[str, list[ModelFile]] = {}
        """Quants by repository, for the repositories that the user has unfolded."""
        self._unfolded: set[str] = set()
        """Names of the models and repositories whose quants are shown."""
        self._files: dict[str, ModelFile] = {}
        """Models by the ID of their option."""
        self._shown_downloads: list[tuple[str, str]] = []
        self._filled_text = ""
        """Filter text for which the list was filled."""

    def on_resize(self) -> None:
        self._fill_list()

    def show_details(self, text: str) -> None:
        """Show `text` below the list, with escaped control characters."""
        self.query_one("#details", Static).update(Text(escape_controls(text)))

    @on(Input.Changed)
    def _fill_list(self) -> None:
        options, width, old_id = self.options, self.row_width, self.highlighted_id
        old_file = self._files.get(old_id)
        self._files, self._filled_text = {}, self.filter_text
        downloads = self._downloads.list_downloads()
        self._shown_downloads = [(d.reference, d.state) for d in downloads]
        rows = make_download_rows(downloads, width, ascii_only=self.app.has_class("ascii"))
        for title, is_installed in (("Installed", True), ("Available to download", False)):
            group_options = [o for g in self._groups if g.is_installed is is_installed for o in self._make_options(g)]
            if group_options:
                rows += [make_heading(model_groups.format_heading(title, width)), *group_options]
            if is_installed:
                rows += self._make_remote_options() + self._make_route_options()
        if self._hub_results:
            rows.append(make_heading("On Hugging Face"))
            rows += [option for result in self._hub_results for option in self._make_hub_options(result)]
        options.clear_options()
        options.add_options(rows)
        ids = [option.id for option in rows if not option.disabled and option.id is not None]
        has_moved = old_id not in {"", self._default_id}
        name_in_use = "" if has_moved or self._name_in_use not in ids else self._name_in_use
        same_id = name_in_use or model_groups.find_row(ids, self._files, old_id, old_file)
        new_id = same_id or next((i for i in ids if not i.startswith(DOWNLOAD_PREFIX)), "".join(ids[:1]))
        self._default_id = self._default_id if has_moved else new_id
        if new_id:
            options.highlighted = options.get_option_index(new_id)
        elif self.filter_text:
            self.show_details("No model matches. Enter searches Hugging Face for these words.")

    @property
    def _glyphs(self) -> Glyphs:
        return ASCII_GLYPHS if self.app.has_class("ascii") else UNICODE_GLYPHS

    @property
    def row_width(self) -> int:
        """Width of a row in columns, also before the first layout."""
        return min(120, self.size.width) - 5  # border, padding and scrollbar

    def _make_options(self, group: ModelGroup) -> list[Option]:
        """Return the rows of a model that match the filter: the model, and its quants if they are shown."""
        files = [file for file in group.files if contains_words(file.name, self.filter_text)]
        if not files:
            return []
        if len(group.files) == 1:
            return [self._make_file_option(group.recommended, group.recommended.name, "")]
        is_unfolded = group.name in self._unfolded or not contains_words(group.name, self.filter_text)
        mark = self._glyphs.expanded if is_unfolded else self._glyphs.collapsed
        option_id = f"{MODEL_PREFIX}{group.name}"
        name = group.name if is_unfolded else group.recommended.name
        rows = [self._make_file_option(group.recommended, name, mark, option_id)]
        if is_unfolded:
            rows += [self._make_quant_option(file, is_recommended=file is group.recommended) for file in files]
        return rows

    def _make_remote_options(self) -> list[Option]:
        """Return the rows of the remote models that match the filter, with their heading."""
        models = {name: host for name, host in self._remote_models.items() if contains_words(name, self.filter_text)}
        rows = [
            make_option(f"  {shorten(name, _MAX_NAME_CHARS)}  {host}", f"{REMOTE_PREFIX}{name}")
            for name, host in models.items()
        ]
        return [make_heading("Remote"), *rows] if rows else []

    def _make_route_options(self) -> list[Option]:
        """Return the row of the route with its heading, if there is a route that matches the filter."""
        if not self._route or not contains_words(f"{ROUTE} {self._route}", self.filter_text):
            return []
        return [make_heading("Route"), make_option(f"  {ROUTE}  {self._route}", ROUTE_ID)]

    def _make_quant_option(self, file: ModelFile, *, is_recommended: bool = False) -> Option:
        return self._make_file_option(file, f"  {file.quant}", "*" if is_recommended else "", is_quant=True)

    def _make_file_option(
        self, file: ModelFile, name: str, mark: str, option_id: str = "", *, is_quant: bool = False
    ) -> Option:
        download = self._downloads.find(file.name)
        label = model_groups.choose_label(file, download, is_quant=is_quant)
        text = model_groups.format_file(file, name, mark, label, self.row_width)
        is_dim = file.row is not None and not file.row.fits
        self._files[option_id or file.name] = file
        return make_option(text, option_id or file.name, "dim" if is_dim else "")

    def _make_hub_options(self, result: SearchResult) -> list[Option]:
        mark = self._glyphs.expanded if result.id in self._unfolded else self._glyphs.collapsed
        download = self._downloads.find(result.id)
        text = f"{mark} {hub_models.format_result(result)}{f'  {download.state}' if download is not None else ''}"
        rows = [make_option(text, f"{HUB_PREFIX}{result.id}")]
        if result.id in self._unfolded:
            rows += [self._make_quant_option(file) for file in self._hub_quants.get(result.id, [])]
        return rows

    def _find_foldable_name(self) -> str:
        """Return the name of the model or repository of the highlighted row; "" if it has no quants to show."""
        if self.highlighted_id.startswith(HUB_PREFIX):
            return self.highlighted_id.removeprefix(HUB_PREFIX)
        file = self._files.get(self.highlighted_id)
        return model_groups.find_foldable_name(file, self._groups, self._hub_quants) if file is not None else ""
