"""The chat screen: the conversation, a live line, the input, and beside them the list of conversations. Nothing here waits."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, ClassVar, Final, Literal

from textual import on, work
from textual.binding import Binding, BindingType
from textual.screen import Screen

from edgechat.errors import UsageError
from edgechat.terminal import escape_controls
from edgechat.tui import messages as posted
from edgechat.tui.composer import Composer
from edgechat.tui.widgets.prompt import PromptInput
from edgechat.tui.widgets.status_line import StatusContext, StatusLine
from edgechat.tui.widgets.transcript import Transcript

if TYPE_CHECKING:
    from textual.app import ComposeResult
    from textual.timer import Timer

    from edgechat.tui.app import ChatApp
    from edgechat.tui.render.entries import MessageEntry
    from edgechat.tui.widgets.prompt import PromptState
    from edgechat.tui.widgets.sidebar import Sidebar

# A pause in typing, after which the tokens of what was typed are counted, and it is written down.
COUNT_AFTER_S: Final = 0.3


class ChatScreen(Screen[None]):
    """One conversation at a time. Threads work and post messages; handlers own all state."""

    app: ChatApp
    AUTO_FOCUS = "#prompt"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "stop", "Stop, or to the conversation and back", id="chat.stop"),
        Binding("ctrl+c", "interrupt", "Copy what is selected, or stop", id="chat.interrupt"),
        Binding("ctrl+n", "do('new')", "New conversation", id="chat.new"),
        Binding("ctrl+b", "do('open')", "Conversations", id="chat.conversations"),
        Binding("ctrl+f", "search", "Search everything", id="chat.search"),
        Binding("ctrl+o", "do('model')", "Models", id="chat.models"),
        Binding("ctrl+t", "do('figures')", "How fast answers came", id="chat.figures", show=False),
        Binding("f1", "do('help')", "Help", id="chat.help"),
        Binding("f2", "do('settings')", "Settings", id="chat.settings"),
        Binding("f3", "do('plan')", "Why this model", id="chat.plan", show=False),
        Binding("f4", "do('persona')", "Personas", id="chat.personas", show=False),
        Binding("pageup", "page(-1)", "A page up", id="chat.page_up", show=False),
        Binding("pagedown", "page(1)", "A page down", id="chat.page_down", show=False),
        Binding("ctrl+end", "end", "To the end", id="chat.end", show=False),
        Binding("alt+left", "switch(-1)", "Alternative before", id="chat.previous", show=False),
        Binding("alt+right", "switch(1)", "Alternative after", id="chat.next", show=False),
        # In the conversation, where letters are not text.
        Binding("left", "switch(-1)", "Alternative before", id="message.previous", show=False),
        Binding("right", "switch(1)", "Alternative after", id="message.next", show=False),
        Binding("enter,i", "prompt", "To the input", id="chat.prompt", show=False),
        Binding("y", "to_message('copy_message')", "Copy the message", id="message.copy", show=False),
        Binding("c", "to_message('copy_code')", "Copy its code", id="message.copy_code", show=False),
        Binding("e", "to_message('edit_message')", "Edit what you said", id="message.edit", show=False),
        Binding("r", "to_message('retry_message')", "Another answer", id="message.retry", show=False),
        Binding("n", "to_message('continue_message')", "Continue the answer", id="message.continue", show=False),
        Binding(
            "d", "to_message('delete_message')", "Delete the message and all after it", id="message.delete", show=False
        ),
        Binding("u", "do('undo')", "Bring back what was deleted", id="message.undo", show=False),
        Binding(
            "b", "to_message('branch')", "Branch: the next message follows this one", id="message.branch", show=False
        ),
        Binding("slash", "search", "Search everything", id="message.search", show=False),
    ]

    def __init__(self, problems: list[str]) -> None:
        """`problems` are shown at the top."""
        super().__init__()
        self._problems = problems
        self.view: posted.ConversationView | None = None
        self._n_awaited = 1  # the first load
        self.is_generating = False
        self.composer = Composer(self)
        self.sidebar: Sidebar | None = None
        """The list of conversations, once it was wanted."""
        self.status_line = StatusLine(self._status_context)
        self._speed = ""
        self._growing: MessageEntry | None = None
        self._counting: Timer | None = None

    def compose(self) -> ComposeResult:
        """The list of conversations (made when it is first wanted), conversation, live line, input."""
        yield Transcript(lambda: self.app.palette, id="transcript")
        yield self.status_line
        yield PromptInput(lambda: self.app.key_overrides, id="prompt")

    def on_mount(self) -> None:
        """Show what is there, and only then start what takes time."""
        for problem in self._problems:
            self.add_note(f"{problem} (ignored)")
        self.status_line.show_state("starting")
        self.call_after_refresh(self._begin)

    def _begin(self) -> None:
        gc.enable()  # see edgechat.cli.main
        if not self.app.is_first:
            self.app.worker.open()
            return
        from edgechat.tui.screens.first_run import FirstRunScreen

        self.app.push_screen(FirstRunScreen(), lambda _chosen: self.app.worker.open())

    def leave(self) -> None:
        """Nothing comes any more; what was typed, and what waits to be sent, is kept for the next time."""
        self.composer.keep()
        self.status_line.show_state("leaving")

    @property
    def is_busy(self) -> bool:
        """True while a model loads or answers."""
        return self._n_awaited > 0

    @property
    def transcript(self) -> Transcript:
        """The conversation."""
        return self.query_one(Transcript)

    @property
    def prompt(self) -> PromptInput:
        """The input."""
        return self.query_one(PromptInput)

    @property
    def messages(self) -> list[MessageEntry]:
        """The messages on the screen."""
        return [message for entry in self.transcript.entries if (message := entry.as_message) is not None]

    @property
    def last_message(self) -> MessageEntry | None:
        """The last of them."""
        entries = reversed(self.transcript.entries)
        return next((message for entry in entries if (message := entry.as_message) is not None), None)

    # What is said beside the conversation

    def add_note(self, words: str) -> None:
        """Something to know."""
        self._append("note", words)

    def add_error(self, words: str) -> None:
        """Something went wrong."""
        self._append("error", words)

    def _append(self, kind: Literal["note", "error"], words: str) -> None:
        from edgechat.tui.render.entries import TranscriptEntry

        self.transcript.follows_end = True  # it answers something that was just asked for
        self.transcript.append(TranscriptEntry(kind, escape_controls(words)))

    # The conversation

    def on_conversation_changed(self, message: posted.ConversationChanged) -> None:
        """Another conversation, or another path through it."""
        is_other = self.view is None or self.view.conversation.id != message.view.conversation.id
        if is_other:
            self.composer.forget()
            self.status_line.context_tokens = 0
            if message.draft and not self.prompt.text:
                self.prompt.load(message.draft)
        self._show(message.view, follow=is_other)
        if message.goal is not None:
            self._reveal(message.goal)
        if not self.is_busy:
            self.status_line.show_state("ready", "")
            self._count_draft()
        if is_other:
            self.app.worker.aside(lambda session: session.warm_cache())

    def on_title_changed(self, message: posted.TitleChanged) -> None:
        """The conversation has a name."""
        if self.view is not None and self.view.conversation.id == message.conversation.id:
            self.view = self.view._replace(conversation=message.conversation)
            self.refresh_list()

    def _show(self, view: posted.ConversationView, *, follow: bool) -> None:
        """Show a path; what is on the screen of it stays as it is."""
        from edgechat.tui.render.reconcile import reconcile

        is_other = self.view is None or self.view.conversation.id != view.conversation.id
        is_first = self.view is None
        self.view = view
        # What was said before the first conversation was there stands below it, in view; what was said in another one goes.
        before = self.transcript.entries if not is_other else []
        entries = reconcile(before, view.path, self.app.palette.glyphs, shows_stats=self.app.shows_figures)
        self.transcript.set_entries([*entries, *(self.transcript.entries if is_first else [])], follow=follow)
        self.refresh_list()

    def _reveal(self, message_id: str) -> None:
        for at, entry in enumerate(self.transcript.entries):
            message = entry.as_message
            if message is not None and message.message.id == message_id:
                self.transcript.follows_end = False
                self.transcript.focus()
                self.transcript.move_cursor_to(at)

    # Answers

    def on_reply_started(self, message: posted.ReplyStarted) -> None:
        """What was said is kept; its answer grows from now on."""
        if self.view is not None and not self.view.path:
            self.composer.begin(message.view.conversation.id)
        self._show(message.view, follow=True)
        found = self.last_message
        self._growing = found if found is not None and found.message.id == message.answer_id else None
        if self._growing is not None:
            self._growing.start_streaming()
        self.status_line.start_reply()

    def on_status_changed(self, message: posted.StatusChanged) -> None:
        """Loading, testing or prefill goes on."""
        self.status_line.show_state(message.words)

    def on_model_ready(self, _message: posted.ModelReady) -> None:
        """The model is ready."""
        session = self.app.worker.session
        while session is not None and session.warnings:
            self.add_note(session.warnings.pop(0))
        self._end()
        self.app.worker.aside(lambda session: session.warm_cache())

    def on_text_arrived(self, message: posted.TextArrived) -> None:
        """More of the answer."""
        self.app.worker.is_painted = True
        if self._growing is None or not (message.text or message.reasoning or message.n_tokens):
            return
        self._growing.append(message.text, message.reasoning)
        if message.text or not self._growing.text:
            self.transcript.entry_changed(self._growing)
        self.status_line.count_tokens(message.n_tokens, is_reasoning=not self._growing.text)

    def on_reply_ended(self, message: posted.ReplyEnded) -> None:
        """The answer is complete, or was stopped."""
        turn = message.turn
        self.status_line.context_tokens = turn.context_tokens or self.status_line.context_tokens
        self._finish_growing(message.view)
        stats = turn.reply.stats
        self.is_generating = False
        self._end(f"{stats.decode_tps:.0f} tokens/s" if stats is not None and stats.decode_tps else "")

    def _finish_growing(self, view: posted.ConversationView) -> None:
        growing, self._growing = self._growing, None
        if growing is not None:
            kept = next((m for m, _ in reversed(view.path) if m.id == growing.message.id), growing.message)
            growing.finish(kept)
        self._show(view, follow=False)

    def on_note_added(self, message: posted.NoteAdded) -> None:
        """Something to know."""
        self.add_note(message.words)

    def on_session_failed(self, message: posted.SessionFailed) -> None:
        """The engine, the model or a command failed; what was said stays."""
        if message.view is not None and (message.ends or self._growing is None):
            self._finish_growing(message.view)
        self.add_error(message.words)
        if message.taken_back is not None:
            self.composer.take_back(message.taken_back)
        if message.ends:
            self.is_generating = False
            self._end()

    def _end(self, detail: str = "") -> None:
        """One of the things that were waited for is over."""
        self._n_awaited = max(0, self._n_awaited - 1)
        if self.is_busy:
            return
        session = self.app.worker.session
        is_ready = session is not None and session.loaded is not None
        self._speed = detail
        self.status_line.show_state("ready" if is_ready else "no model", detail)
        waiting = self.composer.next() if is_ready else None
        if waiting is not None:
            self._say(waiting)
        else:
            self._count_draft()

    # Saying something

    @on(PromptInput.Submitted)
    def _on_sent(self, message: PromptInput.Submitted) -> None:
        from edgechat.chat import commands

        try:
            command = commands.parse(message.text)
        except UsageError as problem:
            self.add_error(str(problem))
            self.composer.give_back(message.text)
            return
        if command is not None:
            self._keep_draft()
            self.app.actions.run(*command)
        else:
            self.ask(message.text, message.state)

    def ask(self, text: str, held: PromptState | None = None) -> None:
        """Say something, or say something differently; after what is answered now."""
        saying = self.composer.take(text, held)
        if self.is_busy:
            self.composer.wait(saying)
            self.status_line.redraw()
        else:
            self._say(saying)
        self._keep_draft()

    def _say(self, saying: posted.OutgoingMessage) -> None:
        self.transcript.follows_end = True
        if self.prompt.past_messages is not None:
            self.prompt.past_messages.insert(0, saying.text)
        self.begin_answer()
        self.app.worker.say(saying)

    def begin_answer(self) -> None:
        """An answer is asked for."""
        self._n_awaited += 1
        self.is_generating = True
        if self.app.worker.session is not None:
            self.app.worker.session.clear_stop()
        self.status_line.show_state("reading")

    def begin_load(self) -> None:
        """Another model is asked for."""
        self._n_awaited += 1

    # Drafts

    @on(PromptInput.Changed)
    def _on_typed(self) -> None:
        """Say how full the context would be, and keep what was typed, once the typing pauses."""
        if self._counting is not None:
            self._counting.stop()
        self._counting = self.set_timer(COUNT_AFTER_S, self._typed)

    def _typed(self) -> None:
        if not self.app.is_leaving:
            self._count_draft()
            self.composer.keep()

    def _count_draft(self) -> None:
        if not self.is_busy:
            self.app.worker.count(self.prompt.full_text.strip(), list(self.composer.attached))

    def on_context_measured(self, message: posted.ContextMeasured) -> None:
        """The tokens of what is in the input, with all before it."""
        if self.is_busy or self.prompt.full_text.strip() != message.text:
            return
        if message.context_tokens:
            self.status_line.context_tokens = message.context_tokens
        self.status_line.show_state("ready", message.words or self._speed)

    def _keep_draft(self) -> None:
        if self._counting is not None:
            self._counting.stop()
        self.composer.keep()

    @on(PromptInput.Interrupted)
    def _on_interrupted(self) -> None:
        self.action_interrupt()

    @on(Transcript.ViewChanged)
    def _on_moved(self) -> None:
        self.status_line.redraw()

    def _status_context(self) -> StatusContext:
        session, transcript = self.app.worker.session, self.transcript
        loaded = session.loaded if session is not None else None
        return StatusContext(
            shows_message_keys=transcript.has_focus and not self.is_busy,
            unsent=self.composer.words,
            shows_end=transcript.follows_end,
            n_ctx=loaded.n_ctx if loaded is not None else None,
            model_name=session.model_path.stem if session is not None and loaded is not None else "",
            download=self.app.download_status,
        )

    # Keys

    def action_do(self, command: str) -> None:
        """A command without anything after it."""
        self.app.actions.run(command, "")

    def action_search(self) -> None:
        """Search everything."""
        self.app.actions.search("")

    def action_stop(self) -> None:
        """Stop the answer, its text stays, and what waits goes back to the input; else to the conversation and back."""
        has_waited = self.composer.put_aside()
        if self.is_generating:
            self.app.worker.stop()
        elif self.composer.editing is not None:
            self.composer.give_up_edit()
            self.status_line.redraw()
        elif not has_waited:
            self.prompt.focus() if not self.prompt.has_focus else self.transcript.focus()

    def action_interrupt(self) -> None:
        """Copy what is selected; else stop the answer, as in a shell."""
        selected = self.get_selected_text()
        if selected:
            self.app.copy(selected, "the selection")
        elif self.is_generating:
            self.app.worker.stop()
        else:
            self.app.notify("Ctrl+Q quits")

    def action_prompt(self) -> None:
        """To the input."""
        self.prompt.focus()

    def action_page(self, direction: int) -> None:
        """The conversation a page up or down."""
        self.transcript.action_page(direction)

    def action_end(self) -> None:
        """To the end of the conversation."""
        self.transcript.action_bottom()

    def action_switch(self, step: int) -> None:
        """Another alternative of the message with the cursor, or of the last one that has any."""
        self.app.actions.attempt(self.app.actions.step, step)

    def action_to_message(self, what: str) -> None:
        """Do something with the message that has the cursor, or the last."""
        self.app.actions.attempt(getattr(self.app.actions, what), self.transcript.current_message)

    # The list of conversations

    @property
    def conversation_id(self) -> str | None:
        """The id of the conversation on the screen; None before the store is open."""
        return self.view.conversation.id if self.view is not None else None

    def on_sidebar_conversation_selected(self, message: Sidebar.ConversationSelected) -> None:
        self.app.actions.go_to(message.conversation_id)

    def on_sidebar_closed(self, _message: Sidebar.Closed) -> None:
        self.prompt.focus()

    def on_sidebar_pin_toggled(self, message: Sidebar.PinToggled) -> None:
        self.app.actions.toggle_pin(message.conversation)

    def on_sidebar_delete_confirmed(self, message: Sidebar.DeleteConfirmed) -> None:
        self.app.actions.delete_conversation(message.conversation)

    def refresh_list(self) -> None:
        """Read the list again, if it is shown."""
        if self.sidebar is not None and self.sidebar.display:
            self.sidebar.refresh_list()

    @on(Transcript.HighlightRequested)
    @work(exit_on_error=False)
    async def _on_colour_wanted(self, message: Transcript.HighlightRequested) -> None:
        """Colour a long block of code beside the screen."""
        import asyncio

        from edgechat.tui.render.layout_blocks import CodeLayout, highlight_code

        piece, width = message.block, message.width
        if not isinstance(piece, CodeLayout):
            return
        palette = self.app.palette
        rows = await asyncio.to_thread(highlight_code, piece.block, width, palette)
        self.transcript.apply_highlighting(piece, rows if palette is self.app.palette else [], width)
