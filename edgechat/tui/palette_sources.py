"""Sources of the command palette: commands, settings, themes, personas, conversations, models and messages."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from edgechat.errors import EdgechatError
from edgechat.terminal import escape_controls
from edgechat.tui.dates import format_date_and_time
from edgechat.tui.palette_entries import MAX_MATCHES_PER_KIND, PaletteEntry
from edgechat.tui.row_text import format_title_row, strip_markup

if TYPE_CHECKING:
    from edgechat.chat.store import Store

MIN_SEARCH_CHARS: Final = 3
"""Minimum length of a query that searches messages."""
_MAX_CONVERSATIONS: Final = 10_000
_MAX_SNIPPET_CHARS: Final = 300
_FIRST_COMMANDS: Final = (
    "new", "open", "search", "model", "retry", "edit", "continue", "copy", "attach", "rename", "persona", "export",
    "theme", "settings", "help",
)  # fmt: skip
"""Commands at the start of the list, because they are needed most often; the order of the help applies to the rest."""


def list_commands(key_labels: Mapping[str, str]) -> Iterator[PaletteEntry]:
    """Yield all slash commands. `key_labels` are the labels of keys by command."""
    from edgechat.chat.commands import COMMANDS

    ranks = {name: rank for rank, name in enumerate(_FIRST_COMMANDS)}
    for command in sorted(COMMANDS, key=lambda c: ranks.get(c.name, len(ranks))):
        aliases = " ".join(command.aliases)
        yield PaletteEntry(
            "command",
            command.name,
            command.name.capitalize(),
            command.summary,
            key_labels.get(command.name, ""),
            aliases,
        )


def list_settings() -> Iterator[PaletteEntry]:
    """Yield all settings with their descriptions."""
    from edgechat import config

    for name, description in config.describe_settings().items():
        yield PaletteEntry("setting", name, name, description.replace("`", ""))


def list_themes(current: str) -> Iterator[PaletteEntry]:
    """Yield all themes; the description of the current theme is "current"."""
    from edgechat.tui import themes

    for name in themes.theme_names():
        description = themes.AUTO_DESCRIPTION if name == themes.AUTO else ""
        yield PaletteEntry("theme", name, escape_controls(name), "current" if name == current else description)


def list_personas() -> Iterator[PaletteEntry]:
    """Yield all personas. Reads the disk."""
    from edgechat.chat import personas

    for name in personas.list_names():
        yield PaletteEntry("persona", name, escape_controls(name))


def list_models() -> Iterator[PaletteEntry]:
    """Yield the route, the models of remotes, and the installed ones unless their records are damaged.

    Reads the disk.
    """
    from edgechat import config
    from edgechat.catalogue import library
    from edgechat.humanize import format_size

    try:
        models = [model for model in library.scan() if model.is_usable]
    except EdgechatError:
        models = []
    settings = config.load()[0]
    remotes = settings.remotes
    if settings.route:
        from edgechat.remote_settings import ROUTE
        from edgechat.route_settings import describe_route

        yield PaletteEntry("model", ROUTE, ROUTE, escape_controls(describe_route(settings.route)))
    if remotes:
        from edgechat.remote.model_lists import find_hosts

        for name, host in find_hosts(remotes).items():
            yield PaletteEntry("model", name, escape_controls(name), f"remote, {escape_controls(host)}")
    for model in models:
        aliases = " ".join(map(escape_controls, model.aliases))
        size = format_size(model.facts.size_bytes)
        yield PaletteEntry("model", model.name, escape_controls(model.name), size, more_words=aliases)


def list_conversations(store: Store) -> Iterator[PaletteEntry]:
    """Yield the conversations: pinned conversations first, then the most recent. Raises StoreError."""
    today = dt.datetime.now().astimezone().date()
    for conversation in store.list_titles(_MAX_CONVERSATIONS):
        changed_at = format_date_and_time(conversation.updated_at_ms, today)
        yield PaletteEntry("conversation", conversation.id, format_title_row(conversation.title), changed_at)


def find_messages(store: Store, query: str) -> list[PaletteEntry]:
    """Return messages that contain all words of the query. Raises StoreError."""
    hits = [hit for hit in store.search(query, limit=MAX_MATCHES_PER_KIND) if hit.message_id is not None]
    return [
        PaletteEntry(
            "message", f"{hit.conversation_id}/{hit.message_id}",
            escape_controls(" ".join(strip_markup(hit.snippet).split()))[:_MAX_SNIPPET_CHARS],
            format_title_row(hit.title),
        )
        for hit in hits
    ]  # fmt: skip
