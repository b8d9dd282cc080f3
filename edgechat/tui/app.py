"""The chat screen: a transcript, a live line, an input. Nothing here waits."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Final

from textual import on, work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widget import MountError
from textual.widgets import Static

from edgechat.chat.visible import visible
from edgechat.errors import ContextOverflowError, EdgechatError, EngineDiedError, StoreError, TemplateError
from edgechat.tui import events
from edgechat.tui.prompt import Prompt

if TYPE_CHECKING:
    from textual.timer import Timer
    from textual.widget import AwaitMount
    from textual.widgets import Markdown

    from edgechat.chat.events import LoadProgressed
    from edgechat.chat.messages import Message
    from edgechat.chat.session import Session

# Text reaches the screen about twelve times a second: nobody reads faster, and every repaint costs.
PAINT_S: Final = 0.08
# With these errors a message is not in the conversation.
_NOT_SAID: Final = (ContextOverflowError, TemplateError, StoreError)
# Of an earlier conversation; all of it would be slow to lay out.
SHOWN_MESSAGES: Final = 40
# A pause in typing, after which the tokens of what was typed are counted.
COUNT_AFTER_S: Final = 0.3
# Before this a speed is mostly noise.
SETTLED_S: Final = 0.2


class ChatApp(App[int]):
    """One conversation. Threads work and post messages; handlers own all state."""

    CSS = """
    #transcript { padding: 0 1; scrollbar-size-vertical: 1; }
    .user { margin: 1 0 0 0; padding: 0 1; border-left: thick $primary; }
    .answer { margin: 0; padding: 0 1; background: transparent; }
    .note { margin: 1 0 0 0; padding: 0 1; color: $text-muted; }
    .error { margin: 1 0 0 0; padding: 0 1; color: $text-error; }
    #live { height: 1; padding: 0 2; color: $text-muted; }
    """
    TITLE = "edgechat"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "stop", "Stop", id="chat.stop"),
        Binding("ctrl+q", "quit", "Quit", id="app.quit", priority=True),
    ]

    def __init__(self, make_session: Callable[[], Session], problems: list[str]) -> None:
        """`make_session` is called, and its result opened, after the first frame; `problems` are shown at the top."""
        super().__init__()
        self._make_session = make_session
        self.session: Session | None = None
        """The conversation; None until the first frame is painted."""
        self._problems = problems
        self._busy = True  # also while the model loads
        self._answering = False
        self._quitting = False
        self._queued: list[str] = []
        self._answer: Markdown | None = None
        self._n_tokens = 0
        self._first_s = 0.0
        self._context_tokens = 0
        self._detail = ""
        self._counting: Timer | None = None

    def compose(self) -> ComposeResult:
        """Transcript, live line, input."""
        yield VerticalScroll(id="transcript", can_focus=False)
        yield Static("", id="live", markup=False)
        yield Prompt(id="prompt")

    def on_mount(self) -> None:
        """Show what is there, and only then start what takes time."""
        self.query_one(Prompt).focus()
        self.query_one("#transcript", VerticalScroll).anchor()
        for problem in self._problems:
            self._note(f"{problem} (ignored)")
        self._show_state("starting")
        self.call_after_refresh(self._open)

    @work(thread=True, group="engine", exit_on_error=False)
    def _open(self) -> None:
        gc.enable()  # see edgechat.cli.commands
        try:
            self._opened_session()
        except Exception as error:  # noqa: BLE001  (whatever it is, the screen must say it and go on)
            self.post_message(events.Failed(_words(error)))
        else:
            self.post_message(events.Opened())

    def _opened_session(self) -> Session:
        """The session, made and opened unless it is; for threads. Raises EdgechatError."""
        if self._quitting:
            raise EngineDiedError("the chat is being left")
        if self.session is None:
            self.session = self._make_session()
        if self.session.loaded is None:
            self.session.open(self._tell)
        return self.session

    def _tell(self, event: LoadProgressed) -> None:
        self.post_message(events.Working(event.words))

    @work(thread=True, group="engine", exit_on_error=False)
    def _send(self, text: str) -> None:
        from edgechat.chat import events as chat

        batch = events.Batch()
        ended = False
        try:
            for event in self._opened_session().send(text):
                self._report(chat.progress_words(event), chat.notice_words(event))
                if isinstance(event, chat.TokensGenerated):
                    batch.add(event.text, event.n_tokens)
                    if event.text and batch.age_s() >= PAINT_S:
                        self.post_message(batch.take())
                elif isinstance(event, (chat.TurnFinished, chat.TurnInterrupted)):
                    self.post_message(batch.take())
                    self.post_message(events.Ended(event))
                    ended = isinstance(event, chat.TurnFinished)
        except Exception as error:  # noqa: BLE001  (whatever it is, the screen must say it and go on)
            self.post_message(batch.take())
            taken_back = text if isinstance(error, _NOT_SAID) else ""
            self.post_message(events.Failed(_words(error), taken_back))
        if ended:
            self._make_title()

    def _report(self, progress: str, notice: str) -> None:
        if progress:
            self.post_message(events.Working(progress))
        if notice:
            self.post_message(events.Noted(notice))

    @work(thread=True, group="title", exit_on_error=False)
    def _make_title(self) -> None:
        """Let the model name the conversation while nobody waits for it; the next message comes first."""
        with contextlib.suppress(EdgechatError):  # it keeps the name it has
            if self.session is not None:
                self.session.make_title()

    @on(Prompt.Changed)
    def _on_typed(self) -> None:
        """Say how full the context would be, once the typing pauses."""
        if self._counting is not None:
            self._counting.stop()
        self._counting = self.set_timer(COUNT_AFTER_S, self._count_draft)

    def _count_draft(self) -> None:
        if not self._busy and not self._leaving:  # a timer may ring when the screen is already taken down
            self._count(self.query_one(Prompt).text.strip())

    @work(thread=True, group="count", exclusive=True, exit_on_error=False)
    def _count(self, text: str) -> None:
        if self.session is None or self.session.loaded is None:
            return
        try:
            n_tokens, n_leaving = self.session.context_use(text)
        except ContextOverflowError:
            self.post_message(events.Counted(text, 0, "too long for the context"))
        except EdgechatError:
            return  # sending it will say so
        else:
            words = f"{n_leaving} messages would leave" if n_leaving else ""
            self.post_message(events.Counted(text, n_tokens, words))

    async def on_counted(self, message: events.Counted) -> None:
        """The tokens of what is in the input, with all before it."""
        if self._leaving or self._busy or self.query_one(Prompt).text.strip() != message.text:
            return
        if message.context_tokens:
            self._context_tokens = message.context_tokens
        self._show_state("ready", message.words or self._detail)

    @work(thread=True, group="warm", exit_on_error=False)
    def _warm(self) -> None:
        """Let the engine read what was said before, while the user types."""
        with contextlib.suppress(EdgechatError):  # then it is read with the next message, which says what is wrong
            if self.session is not None and not self._busy:
                self.session.warm()

    @on(Prompt.Sent)
    async def _on_sent(self, message: Prompt.Sent) -> None:
        if self._busy:
            self._queued.append(message.text)
            self._note(f"will be sent next: {message.text.splitlines()[0][:60]}")
            return
        await self._say(message.text)

    async def _say(self, text: str) -> None:
        self._busy = self._answering = True
        self._answer, self._n_tokens, self._first_s = None, 0, 0.0
        if self.session is not None:
            self.session.expect()
        self._mount(Static(visible(text), classes="user", markup=False))
        self._show_state("reading")
        self._send(text)

    @property
    def _leaving(self) -> bool:
        """True when the screen is being taken down while a thread still talks."""
        there = [widget for widget in self.query("#transcript, #live, #prompt") if widget.is_attached]
        return self._quitting or len(there) < len(("transcript", "live", "prompt"))

    async def on_working(self, message: events.Working) -> None:
        """Loading, testing or prefill goes on."""
        if self._leaving:
            return
        self._context_tokens = message.context_tokens or self._context_tokens
        self._show_state(message.words)

    async def on_opened(self, _message: events.Opened) -> None:
        """The model is ready."""
        if self._leaving:
            return
        for warning in self.session.warnings if self.session else []:
            self._note(warning)
        await self._show_past()
        await self._idle()
        self._warm()

    async def _show_past(self) -> None:
        """What was said before, if the conversation goes on from an earlier day."""
        path = self.session.tree.path if self.session is not None else []
        if len(path) > SHOWN_MESSAGES:
            self._note(f"{len(path) - SHOWN_MESSAGES} earlier messages are not shown")
        from textual.widgets import Markdown

        for message in path[-SHOWN_MESSAGES:]:
            if message.role == "assistant":
                await self._mount(Markdown(visible(message.text), classes="answer", open_links=False))
                if message.interrupted:
                    self._note("interrupted")
            else:
                self._mount(Static(visible(message.text), classes="user", markup=False))

    async def on_text_arrived(self, message: events.TextArrived) -> None:
        """More of the answer."""
        if not message.text or self._leaving:
            return
        if self._answer is None:
            from textual.widgets import Markdown

            self._answer = Markdown(classes="answer", open_links=False)
            self._first_s = time.monotonic()
            self._n_tokens = -message.n_tokens  # the first ones took no decoding time
            await self._mount(self._answer)
        self._n_tokens += message.n_tokens
        self._context_tokens += message.n_tokens
        try:
            await self._answer.append(visible(message.text))
        except MountError:
            return  # the screen was taken down meanwhile
        self._show_state("answering", self._speed())

    def _speed(self) -> str:
        elapsed_s = time.monotonic() - self._first_s
        return f"{self._n_tokens / elapsed_s:.0f} tokens/s" if elapsed_s > SETTLED_S and self._n_tokens > 0 else ""

    async def on_ended(self, message: events.Ended) -> None:
        """The answer is complete, or was stopped."""
        if self._leaving:
            return
        turn = message.turn
        self._context_tokens = turn.context_tokens
        if turn.answer.finish_reason == "cancelled":
            self._note("stopped")
        elif turn.answer.finish_reason == "length":
            self._note("the answer reached its length limit")
        await self._idle(_figures(turn.answer))

    async def on_noted(self, message: events.Noted) -> None:
        """Something to know."""
        if not self._leaving:
            self._note(message.words)

    async def on_failed(self, message: events.Failed) -> None:
        """The engine or the model failed; what was said stays."""
        if self._leaving:
            return
        self._mount(Static(visible(message.words), classes="error", markup=False))
        self._give_back(message.taken_back)
        await self._idle()

    async def _idle(self, detail: str = "") -> None:
        self._busy = self._answering = False
        loaded = self.session is not None and self.session.loaded is not None
        self._detail = detail
        self._show_state("ready" if loaded else "no model", detail)
        if self._queued:
            await self._say(self._queued.pop(0))
        else:
            self._count_draft()

    def action_stop(self) -> None:
        """Stop the answer; its text stays. Messages that wait go back to the input."""
        waiting, self._queued = self._queued, []
        self._give_back("\n\n".join(waiting))
        if self._answering and self.session is not None:
            self.session.stop()

    def _give_back(self, text: str) -> None:
        """Put words that were not said into the input, after what is there."""
        if text:
            prompt = self.query_one(Prompt)
            prompt.text = "\n\n".join(t for t in (prompt.text, text) if t)
            prompt.move_cursor(prompt.document.end)

    async def action_quit(self) -> None:
        """Leave at once: the engine is closed first, because a thread waits for its words."""
        self._quitting = True
        if self.session is not None:
            self._show_state("leaving")
            await asyncio.to_thread(self.session.close)
        self.exit(0)

    def _note(self, words: str) -> None:
        self._mount(Static(visible(words), classes="note", markup=False))

    def _mount(self, widget: Static | Markdown) -> AwaitMount:
        return self.query_one("#transcript", VerticalScroll).mount(widget)

    def _show_state(self, state: str, detail: str = "") -> None:
        parts = [state, detail]
        if self.session is not None and self.session.loaded is not None:
            parts += [f"context {self._context_tokens}/{self.session.loaded.n_ctx}", self.session.model_path.stem]
        for live in self.query("#live").results(Static):  # none, when the screen was taken down meanwhile
            live.update("  ".join(p for p in parts if p), layout=False)


def _words(error: Exception) -> str:
    return str(error) if isinstance(error, EdgechatError) else f"an unexpected {type(error).__name__}: {error}"


def run_app(make_session: Callable[[], Session], problems: list[str]) -> int:
    """Hold the conversation on this terminal; returns the exit code."""
    app = ChatApp(make_session, problems)
    try:
        app.run()
    finally:
        if app.session is not None:
            app.session.close()
    return app.return_code or 0


def _figures(answer: Message) -> str:
    """How fast an answer came, and what drafts had to do with it."""
    stats = answer.stats
    if stats is None or not stats.decode_tps:
        return ""
    words = f"{stats.decode_tps:.0f} tokens/s"
    if stats.n_drafted:
        words += f", {stats.n_accepted}/{stats.n_drafted} drafted (x{stats.speculation_gain:.1f})"
    return words
