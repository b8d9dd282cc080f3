"""Programs that the terminal benchmark measures: the chat with scripted replies, and minimal Textual apps."""

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
CODE_BLOCK_TOKENS: Final = 20_000
END_MARKER: Final = "end-of-text-marker"
OPEN_KEY: Final = "\x1b[24~"
"""Escape sequence of F12, which opens the long conversation."""
THEME_KEY: Final = "\x1b[21~"
"""Escape sequence of F10, which changes the theme."""

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

# App with unmodified Textual widgets: a Markdown widget to which text is appended twelve times a second, and a text
# area.
STOCK_APP: Final = """
import sys
from textual.app import App
from textual.containers import VerticalScroll
from textual.widgets import Markdown, TextArea

TEXT = sys.argv[1]
CHARS_PER_TICK = {chars_per_tick}

class Stock(App):
    CSS = "TextArea {{ height: 5; }}"

    def compose(self):
        with VerticalScroll():
            yield Markdown("begun")
        yield TextArea()

    def on_mount(self):
        self.query_one(VerticalScroll).anchor()
        self.query_one(TextArea).focus()
        self.text_position = 0
        self.set_interval(1 / 12, self.append_text)

    async def append_text(self):
        text = (TEXT * 2)[self.text_position : self.text_position + CHARS_PER_TICK]
        self.text_position = (self.text_position + CHARS_PER_TICK) % len(TEXT)
        await self.query_one(Markdown).append(text)

Stock().run()
"""


def unclosed_code_block(n_tokens: int) -> str:
    """Return an unclosed Markdown code block of about `n_tokens` tokens."""
    lines, n_chars, number = ["```python\n"], 0, 0
    while n_chars < n_tokens * CHARS_PER_TOKEN:
        lines.append(CODE.format(n=number))
        n_chars += len(lines[-1])
        number += 1
    return "".join(lines)


def fill_store(store: SqliteStore, n_conversations: int, n_messages: int) -> Conversation:
    """Add `n_conversations` short conversations and one with `n_messages` messages; return the long conversation.

    The last message of the long conversation consists of a long code block and `END_MARKER`.
    """
    for number in range(n_conversations):
        conversation = Conversation(id=new_id(), title=f"Conversation {number}", created_at_ms=1 + number)
        store.append(conversation, [Message(id=new_id(), role="user", text=f"Question {number}")])
    conversation = Conversation(id=new_id(), title="Long", created_at_ms=1)
    path: list[Message] = []
    for number in range(n_messages):
        is_reply = number % 2 == 1
        text = PROSE * 2 if is_reply else f"Question {number}, in a few words?"
        if number == n_messages - 1:
            text = f"{unclosed_code_block(CODE_BLOCK_TOKENS)}```\n\n{END_MARKER}"
        path.append(
            Message(
                id=new_id(), parent_id=path[-1].id if path else None, role="assistant" if is_reply else "user",
                text=text, finish_reason="stop" if is_reply else "", created_at_ms=1 + number,
            )
        )  # fmt: skip
    store.append(conversation, path)
    return store.conversation(conversation.id)


def run_scripted_chat(conversation_id: str) -> None:
    """Run the chat with a very long scripted reply that starts with an unclosed code block."""
    from edgechat.store import open_store
    from edgechat.tui.app import ChatApp, run_app

    code = unclosed_code_block(CODE_BLOCK_TOKENS)
    script = Script([code + CODE.format(n=1) * 2000], 1 / TOKENS_PER_S, n_fast_tokens=len(code) // CHARS_PER_TOKEN)
    store = open_store()
    settings = Settings(titles=False)

    class BenchmarkedChat(ChatApp):
        """The chat with two additional keys: F12 opens `conversation_id`, F10 changes the theme."""

        async def on_event(self, event: object) -> None:
            key = getattr(event, "key", "")
            if key == "f12":
                self.actions.go_to(Destination(conversation_id))
            elif key == "f10":
                self.theme = "nord" if self.theme != "nord" else "gruvbox"
            else:
                await super().on_event(event)  # type: ignore[arg-type]

    def refuse_export(_store: object, _conversation_id: str, _file: Path) -> None:
        raise NotImplementedError

    app = BenchmarkedChat(lambda: ScriptedSession(store, settings, script), [], settings, refuse_export)
    run_app(app)
