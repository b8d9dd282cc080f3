"""What is watched by the bench of the terminal: our chat on a script, and the smallest Textual programs."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from edgechat.bench.scripted_session import CHARS_PER_TOKEN, Script, ScriptedSession
from edgechat.chat.commands import Destination
from edgechat.chat.messages import Conversation, Message, new_id
from edgechat.config import Settings
from edgechat.store.sqlite import SqliteStore

TOKENS_PER_S: Final = 50
N_MESSAGES: Final = 5000
FENCE_TOKENS: Final = 20_000
LAST_WORDS: Final = "the-last-words-of-it"
OPEN_KEY: Final = "\x1b[24~"
"""F12: go to the long conversation."""
THEME_KEY: Final = "\x1b[21~"
"""F10: another theme."""

PROSE: Final = """Some words about the matter, with **bold** ones, `code`, and a [link](http://example.org/x).

- a first point that is long enough to be wrapped on a screen of a hundred columns, as such points are
- a second point

1. then
2. so

"""
CODE: Final = "def function_{n}(a: int, b: int) -> int:\n    return a * {n} + b  # the {n}th of them\n\n"

EMPTY_APP: Final = """
import sys
from textual.app import App
from textual.widgets import Static

class Empty(App):
    def compose(self):
        yield Static("Ask something")

Empty().run()
"""

# Stock Textual, streaming into its own Markdown widget twelve times a second beside its own text area.
STOCK_APP: Final = """
import sys
from textual.app import App
from textual.containers import VerticalScroll
from textual.widgets import Markdown, TextArea

TEXT = sys.argv[1]
PER_TICK = {per_tick}

class Stock(App):
    CSS = "TextArea {{ height: 5; }}"

    def compose(self):
        with VerticalScroll():
            yield Markdown("begun")
        yield TextArea()

    def on_mount(self):
        self.query_one(VerticalScroll).anchor()
        self.query_one(TextArea).focus()
        self.at = 0
        self.set_interval(1 / 12, self.more)

    async def more(self):
        text = (TEXT * 2)[self.at : self.at + PER_TICK]
        self.at = (self.at + PER_TICK) % len(TEXT)
        await self.query_one(Markdown).append(text)

Stock().run()
"""


def fence(n_tokens: int) -> str:
    """Code of about so many tokens, without its end."""
    lines, n_chars, number = ["```python\n"], 0, 0
    while n_chars < n_tokens * CHARS_PER_TOKEN:
        lines.append(CODE.format(n=number))
        n_chars += len(lines[-1])
        number += 1
    return "".join(lines)


def fill(store: SqliteStore, n_conversations: int, n_messages: int) -> Conversation:
    """Conversations, and one long one, which is returned: its last message has a long block of code and `LAST_WORDS`."""
    for number in range(n_conversations):
        about = Conversation(id=new_id(), title=f"Conversation {number}", created_at_ms=1 + number)
        store.append(about, [Message(id=new_id(), role="user", text=f"Question {number}")])
    about = Conversation(id=new_id(), title="Long", created_at_ms=1)
    path: list[Message] = []
    for number in range(n_messages):
        is_answer = number % 2 == 1
        text = PROSE * 2 if is_answer else f"Question {number}, in a few words?"
        if number == n_messages - 1:
            text = f"{fence(FENCE_TOKENS)}```\n\n{LAST_WORDS}"
        path.append(
            Message(
                id=new_id(), parent_id=path[-1].id if path else None, role="assistant" if is_answer else "user",
                text=text, finish_reason="stop" if is_answer else "", created_at_ms=1 + number,
            )
        )  # fmt: skip
    store.append(about, path)
    return store.conversation(about.id)


def chat(conversation_id: str) -> None:
    """Our chat on a script that says prose for ever, after a long block of code that is still open."""
    from edgechat.store import open_store
    from edgechat.tui.app import ChatApp, run_app

    text = f"{fence(FENCE_TOKENS)}"
    script = Script([text + CODE.format(n=1) * 2000], 1 / TOKENS_PER_S, n_fast=len(text) // CHARS_PER_TOKEN)
    store = open_store()
    settings = Settings(titles=False)

    class BenchmarkedChat(ChatApp):
        """With two keys more."""

        async def on_event(self, event: object) -> None:
            key = getattr(event, "key", "")
            if key == "f12":
                self.actions.go_to(Destination(conversation_id))
            elif key == "f10":
                self.theme = "nord" if self.theme != "nord" else "gruvbox"
            else:
                await super().on_event(event)  # type: ignore[arg-type]

    def refuse(_store: object, _conversation_id: str, _file: Path) -> None:
        raise NotImplementedError

    app = BenchmarkedChat(lambda: ScriptedSession(store, settings, script), [], settings, refuse)
    run_app(app)
