"""Runs the session in threads and posts the results as messages, so that the screen never waits."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from edgechat.errors import ContextOverflowError, EdgechatError, EngineDiedError, TemplateError
from edgechat.tui import messages

if TYPE_CHECKING:
    from pathlib import Path

    from textual.message import Message

    from edgechat.chat.commands import Command, Destination
    from edgechat.chat.events import SessionEvent
    from edgechat.chat.session import Session
    from edgechat.chat.store import Store
    from edgechat.models.events import ModelLoadProgressed
    from edgechat.tui.reply_stream import ReplyStream

# The session removes the message from the conversation before it raises one of these.
_RETRACTED: Final = (ContextOverflowError, TemplateError)

Job = Callable[["Session"], object]
StartReply = Callable[["Session"], "Iterator[SessionEvent]"]
Export = Callable[["Store", str, "Path"], None]
"""Writes a conversation to a file, whose suffix selects the format. Raises EdgechatError."""


class SessionWorker:
    """Owns the session and the threads that use it.

    Replies, loads and changes of the conversation run one after another. Side jobs, such as exports and changes of
    other conversations, run at once, also while a reply is generated. Idle jobs (titles, cache warming, token counts)
    yield to replies, and their errors are ignored.
    """

    def __init__(self, make_session: Callable[[], Session], post: Callable[[Message], object], export: Export) -> None:
        """`make_session` is called in a worker thread when the first job runs."""
        self._make_session = make_session
        self._post = post
        self._export = export
        self._turn_thread = ThreadPoolExecutor(1, "turns")
        self._side_thread = ThreadPoolExecutor(1, "side")
        self._idle_threads = ThreadPoolExecutor(2, "idle")
        self._unsent_thread = ThreadPoolExecutor(1, "unsent")
        self.session: Session | None = None
        """None until the first job made it."""
        self.is_closing = False
        self.is_painted = threading.Event()
        """Set by the screen once it has painted the text that was posted last."""
        self.is_painted.set()

    @property
    def is_loaded(self) -> bool:
        """True if a model is loaded."""
        return self.session is not None and self.session.loaded is not None

    @property
    def writes_files(self) -> bool:
        """False for an ephemeral conversation, of which nothing may be written to disk."""
        return self.session is None or self.session.store.is_persistent

    # Jobs

    def queue(self, job: Job) -> None:
        """Run a job after all earlier replies, loads and changes."""
        self._submit(self._turn_thread, lambda: self._attempt(job))

    def run_beside(self, job: Job) -> None:
        """Run a job at once, also while a reply is generated; only the very first one waits for the session."""
        if self.session is None:
            self.queue(job)
        else:
            self._submit(self._side_thread, lambda: self._attempt(job, posts_view=False))

    def run_idle(self, job: Job) -> None:
        """Run a job that yields to replies and whose errors are ignored."""
        self._submit(self._idle_threads, lambda: self._run_idle(job))

    def run_command(self, command: Command, argument: str, *, beside_reply: bool = False) -> None:
        """Run the handler of a command; `beside_reply` runs it at once, also while a reply is generated."""
        if command.lane == "reply":
            text = f"/{command.name} {argument}"
            self.generate(
                lambda session: _reply_of(command, session, argument),
                messages.OutgoingMessage(text) if argument else None,
            )
        else:
            run = self.run_beside if beside_reply else self.queue
            run(lambda session: self._run_command(session, command, argument))

    def generate(self, start: StartReply, outgoing: messages.OutgoingMessage | None = None) -> None:
        """Generate a reply; `outgoing` is posted back if it could not be sent."""
        self._submit(self._turn_thread, lambda: self._generate(start, outgoing))

    def send(self, outgoing: messages.OutgoingMessage) -> None:
        """Send a message, or the edit of one, and generate the reply."""
        if outgoing.edited_id is not None:
            edited_id = outgoing.edited_id
            self.generate(lambda session: session.edit(edited_id, outgoing.text), outgoing)
        else:
            self.generate(lambda session: session.send(outgoing.text, outgoing.files), outgoing)

    def save_unsent(self, conversation_id: str, text: str) -> None:
        """Save the input of a conversation ("" for a new one) in the order of the calls, unless it is ephemeral."""
        if self.session is not None and self.session.store.is_persistent:
            from edgechat.chat import unsent_messages

            self._submit(self._unsent_thread, lambda: unsent_messages.save(conversation_id, text))

    def go_to(self, destination: Destination) -> None:
        """Open a conversation or start a new one, and post it."""

        def job(session: Session) -> None:
            from edgechat.chat.commands import go_to

            has_message = go_to(session, destination)
            self.post_conversation(session, destination.message_id if has_message else None)

        self.queue(job)

    def _submit(self, threads: ThreadPoolExecutor, job: Callable[[], object]) -> None:
        if not self.is_closing:
            threads.submit(job)

    def _attempt(
        self, job: Job, *, needs_model: bool = False, outgoing: messages.OutgoingMessage | None = None,
        stream: ReplyStream | None = None, ends_operation: bool = False, posts_view: bool = True,
    ) -> None:  # fmt: skip
        try:
            job(self._opened_session() if needs_model else self._existing_session())
        except Exception as error:  # noqa: BLE001  (any error is shown, and the thread continues)
            is_saved = stream is not None and stream.has_started and not isinstance(error, _RETRACTED)
            self._post(
                messages.SessionFailed(
                    error_text(error), _view_of(self.session) if posts_view else None,
                    None if is_saved else outgoing, ends_operation,
                )
            )  # fmt: skip

    def _run_idle(self, job: Job) -> None:
        with contextlib.suppress(EdgechatError):
            if self.session is not None and not self.is_closing:
                job(self.session)

    def _run_command(self, session: Session, command: Command, argument: str) -> None:
        assert command.run is not None  # noqa: S101  (view commands are not run here)
        outcome = command.run(session, argument)
        if outcome.export_to is not None:
            self._export(session.store, session.conversation.id, outcome.export_to)
        if command.lane != "turn":
            self._post(messages.CommandFinished(outcome))
            return
        self.post_conversation(session)
        self._post(messages.CommandFinished(outcome._replace(model="")))
        if outcome.model:  # loaded before messages that were sent meanwhile
            self._load_model(outcome.model)

    # Opening and closing

    def open(self) -> None:
        """Make the session, post its conversation, and load the model."""
        self._submit(self._turn_thread, lambda: self._attempt(self._post_ready, needs_model=True, ends_operation=True))

    def load_model(self, name: str) -> None:
        """Load another model for the next replies; if it cannot be loaded, the session loads the previous one."""
        self._submit(self._turn_thread, lambda: self._load_model(name))

    def _load_model(self, name: str) -> None:
        def job(session: Session) -> None:
            from edgechat.chat.commands import load_model

            self._post(messages.NoteAdded(load_model(session, name, self._on_load_progress)))
            self._post_ready(session)

        self._post(messages.LoadStarted())
        self._attempt(job, ends_operation=True)

    def _post_ready(self, session: Session) -> None:
        warnings, session.warnings[:] = list(session.warnings), []
        self._post(messages.ModelReady(warnings))

    def _existing_session(self) -> Session:
        """Return the session, making it if there is none yet. Raises EdgechatError."""
        if self.is_closing:
            raise EngineDiedError("The chat is closing")
        if self.session is None:
            session = self._make_session()
            session.load_messages()
            self.session = session
            self.post_conversation(session)
        return self.session

    def _opened_session(self) -> Session:
        """Return the session with a model loaded. Raises EdgechatError."""
        session = self._existing_session()
        if self.is_closing:
            raise EngineDiedError("The chat is closing")
        if session.loaded is None:
            session.open(self._on_load_progress)
        return session

    def _on_load_progress(self, event: ModelLoadProgressed) -> None:
        self._post(messages.StatusChanged(event.message))

    def stop(self) -> None:
        """Stop the reply that is being generated; its text stays."""
        if self.session is not None:
            self.session.stop()

    def close(self) -> None:
        """End all jobs and processes; returns once everything is saved."""
        self.is_closing = True
        if self.session is not None:
            self.session.close()
        self._turn_thread.shutdown(wait=True, cancel_futures=True)
        if self.session is not None:  # the session may have been created meanwhile; closing it twice is harmless
            self.session.close()
        self._unsent_thread.shutdown(wait=True)
        self._side_thread.shutdown(wait=True)
        self._idle_threads.shutdown(wait=False, cancel_futures=True)

    # Replies

    def _generate(self, start: StartReply, outgoing: messages.OutgoingMessage | None) -> None:
        from edgechat.chat.events import TurnFinished
        from edgechat.tui.reply_stream import ReplyStream

        stream = ReplyStream(self._post, self.is_painted)

        def job(session: Session) -> None:
            if isinstance(stream.run(session, start(session)), TurnFinished):
                self.run_idle(self._make_title)

        self._attempt(job, needs_model=True, outgoing=outgoing, stream=stream, ends_operation=True)

    def _make_title(self, session: Session) -> None:
        if session.generate_title():
            self._post(messages.TitleChanged(session.conversation))

    def measure_context(self, text: str, files: Sequence[Path] = ()) -> None:
        """Post how many tokens the prompt would have if `text` and `files` were sent now."""

        def job(session: Session) -> None:
            if session.loaded is None:
                return
            try:
                n_tokens, n_dropped = session.context_usage(text, files)
            except ContextOverflowError:
                self._post(messages.ContextMeasured(text, 0, "too long for the context"))
            else:
                warning = f"drops the first {n_dropped} messages" if n_dropped else ""
                self._post(messages.ContextMeasured(text, n_tokens, warning))

        self.run_idle(job)

    def post_conversation(self, session: Session, message_id: str | None = None) -> None:
        """Post the conversation as it is now, for jobs; `message_id` is a message to scroll to."""
        from edgechat.chat import unsent_messages

        view = messages.ConversationView.of(session)
        key = view.conversation.id if view.path else ""
        unsent_text = unsent_messages.load(key) if session.store.is_persistent else ""
        self._post(messages.ConversationChanged(view, message_id, unsent_text))


def _view_of(session: Session | None) -> messages.ConversationView | None:
    try:
        return messages.ConversationView.of(session) if session is not None else None
    except EdgechatError:
        return None


def error_text(error: Exception) -> str:
    """Return the text of an error for the user."""
    return str(error) if isinstance(error, EdgechatError) else f"Unexpected {type(error).__name__}: {error}"


def _reply_of(command: Command, session: Session, argument: str) -> Iterator[SessionEvent]:
    outcome = command.run(session, argument) if command.run is not None else None
    if outcome is None or outcome.reply is None:
        raise AssertionError(f"/{command.name} generates no reply")
    return outcome.reply()
