"""Topics of the help: all key bindings and slash commands, grouped by task."""

from __future__ import annotations

from typing import Final, NamedTuple


class Topic(NamedTuple):
    """Group of key bindings and commands in the help, in the order in which the help lists them."""

    title: str
    bindings: tuple[str, ...]
    """IDs of key bindings."""
    commands: tuple[str, ...] = ()
    """Names of slash commands."""


TOPICS: Final = (
    Topic(
        "Ask",
        ("prompt.send", "prompt.newline", "chat.stop", "chat.now", "prompt.up", "prompt.down", "prompt.search",
         "prompt.editor", "prompt.complete"),
        ("attach", "detach", "reasoning", "thinking", "now", "temperature", "system"),
    ),
    Topic(
        "Read",
        ("chat.page_up", "chat.page_down", "chat.scroll_up", "chat.scroll_down", "chat.start", "chat.end",
         "transcript.up", "transcript.down", "transcript.page_up", "transcript.page_down", "transcript.top",
         "transcript.bottom", "transcript.fold", "transcript.wrap", "transcript.left", "transcript.right",
         "chat.prompt", "chat.figures", "chat.redraw"),
        ("tokens", "figures"),
    ),
    Topic(
        "Documents",
        ("message.passages", "passages.previous", "passages.next", "passages.open", "passages.copy",
         "passages.up", "passages.down", "passages.page_up", "passages.page_down", "passages.leave",
         "documents.add", "documents.extend", "documents.update", "documents.remove", "documents.up", "documents.down",
         "documents.leave"),
        ("docs",),
    ),
    Topic(
        "Copy and save",
        ("chat.interrupt", "prompt.copy", "message.copy", "message.copy_code", "message.save_code"),
        ("copy", "export"),
    ),
    Topic(
        "Change a message or a reply",
        ("message.edit", "message.retry", "message.continue", "chat.earlier", "chat.previous", "chat.next",
         "message.previous", "message.next", "message.branch", "message.delete", "message.delete_pair", "message.undo",
         "chat.also", "chat.compare", "compare.other", "compare.choose", "compare.first", "compare.second",
         "compare.stop", "compare.up", "compare.down", "compare.leave"),
        ("edit", "retry", "best", "hard", "also", "compare", "continue", "earlier", "switch", "delete", "undo"),
    ),
    Topic(
        "Conversations",
        ("chat.new", "chat.conversations", "list.down", "list.pin", "list.delete", "list.leave", "chat.search"),
        ("new", "open", "search", "rename", "pin"),
    ),
    Topic(
        "Models and settings",
        ("chat.models", "models.unfold", "models.fold", "models.hub", "models.pause", "models.cancel", "chat.plan",
         "chat.personas", "chat.settings", "settings.reset"),
        ("model", "plan", "persona", "theme", "settings", "set"),
    ),
    Topic(
        "Edit the input",
        ("prompt.line_start", "prompt.line_end", "prompt.word_left", "prompt.word_right", "prompt.erase",
         "prompt.delete", "prompt.kill_word_left", "prompt.kill_word_right", "prompt.kill_line_start",
         "prompt.kill_line_end", "prompt.yank", "prompt.cut", "prompt.paste", "prompt.undo", "prompt.redo"),
    ),
    Topic(
        "Help, lists and leaving",
        ("chat.help", "help.names", "app.palette", "listing.up", "listing.down", "listing.page_up",
         "listing.page_down", "listing.first", "listing.last", "listing.leave", "text.leave", "first.leave",
         "app.suspend", "app.quit"),
        ("help", "suspend", "quit"),
    ),
)  # fmt: skip
"""All topics, beginning with those that new users need."""
