"""Run the session in worker threads and post the results as Textual messages, so that the screen never waits."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from edgechat.errors import (
    ContextOverflowError,
    EdgechatError,
    EngineDiedError,
    TemplateError,
)
from edgechat.humanize import format_count
from edgechat.tui import messages
from edgechat.tui.paint_pace import PaintPace
from edgechat.tui.workers import format_error, is_mistake

if TYPE_CHECKING:
    from pathlib import Path

    from textual.message import Message

    from edgechat.chat.commands import Command, Destination
    from edgechat.chat.events import SessionEvent
    from edgechat.chat.session import Session
    from edgechat.chat.store import Store
    from edgechat.models.events import ModelLoadProgressed
    from edgechat.tui.reply_stream import ReplyStream

# The session removes the user's message from the conversation before it raises one of these errors.
_MESSAGE_ERRORS: Final = (ContextOverflowError, TemplateError)

Job = Callable[["Session"], object]
StartReply = Callable[["Session"], "Iterator[SessionEvent]"]
Export = Callable[["Store", str, "Path"], None]
"""Function that exports the conversation with an ID to a file; the file's suffix selects the format.

Raises EdgechatError.
"""


class SessionWorker:
    """Owns the session and the threads that use it.

    Replies, loads and changes to the conversation run one after another. Side jobs, such as exports and changes to
    other conversations, run immediately, even while a reply is being generated. Idle jobs (titles, cache warming, token
    counts) yield to replies, and their EdgechatErrors are ignored.
    """

    def __init__(self, make_session: Callable[[], Session], post: Callable[[Message], object], export: Export) -> None:
        """`make_session` creates the session; it is called in a worker thread when the first job runs."""
        self._make_session = make_session
        self._post = post
        self._export = export
        self._turn_thread = ThreadPoolExecutor(1, "turns")
        self._side_thread = ThreadPoolExecutor(1, "side")
        self._idle_threads = ThreadPoolExecutor(2, "idle")
        self._unsent_thread = ThreadPoolExecutor(1, "unsent")
        self.session: Session | None = None
        """The chat session; None until the first job has created it."""
        self.is_closing = False
        self._early_unsent: tuple[str, str] | None = None
        """Conversation ID and unsent text, if the text was typed before the session was created."""
        self.paint_pace = PaintPace()
        self._stream: ReplyStream | None = None
        """Stream of the last reply."""

    @property
    def is_loaded(self) -> bool:
        """True if a model is loaded, or a remote model is chosen."""
        return self.session is not None and self.session.is_open

    @property
    def writes_files(self) -> bool:
        """False if the conversation is ephemeral, because its data must not be written to disk."""
        return self.session is None or self.session.store.is_persistent

    # Jobs

    def queue(self, job: Job, line: str = "") -> None:
        """Run a job after all replies, loads and changes that were queued before it.

        If it fails, SessionFailed contains `line`, the typed command.
        """
        self._submit(self._turn_thread, lambda: self._run_job(job, line=line))

    def run_side_job(self, job: Job, line: str = "") -> None:
        """Run a job immediately, even while a reply is being generated; if there is no session yet, queue the job.

        If it fails, SessionFailed contains `line`, the typed command.
        """
        if self.session is None:
            self.queue(job, line)
        else:
            self._submit(self._side_thread, lambda: self._run_job(job, post_view=False, line=line))

    def run_when_idle(self, job: Job) -> None:
        """Run an idle job: it yields to replies, and its EdgechatErrors are ignored."""
        self._submit(self._idle_threads, lambda: self._run_when_idle(job))

    def run_command(self, command: Command, argument: str, line: str = "", *, during_reply: bool = False) -> None:
        """Run the handler of a command. With `during_reply`, do not wait until the current reply ends.

        `line` is the command as the user typed it, for SessionFailed.
        """
        if command.run_mode == "reply":
            self.generate(
                lambda session: start_command_reply(command, session, argument),
                messages.OutgoingMessage(line) if line else None,
            )
        else:
            submit = self.run_side_job if during_reply else self.queue
            submit(lambda session: self._run_command(session, command, argument, line), line)

    def generate(self, start: StartReply, outgoing_message: messages.OutgoingMessage | None = None) -> None:
        """Generate the reply whose events `start` returns; if `outgoing_message` fails, SessionFailed contains it."""
        self._submit(self._turn_thread, lambda: self._generate(start, outgoing_message))

    def send(self, outgoing_message: messages.OutgoingMessage) -> None:
        """Send a new or edited message, and generate the reply to it."""
        if outgoing_message.edited_id is not None:
            edited_id = outgoing_message.edited_id
            self.generate(lambda session: session.edit(edited_id, outgoing_message.text), outgoing_message)
        else:
            self.generate(lambda session: session.send(outgoing_message.text, outgoing_message.files), outgoing_message)

    def save_unsent(self, conversation_id: str, text: str) -> None:
        """Save the unsent message of a conversation (ID "" for a new one), unless conversations are ephemeral.

        A thread saves the texts in the order of the calls. A text that is typed before the session is created is saved
        by the next call, or by `close`.
        """
        self._early_unsent = (conversation_id, text) if self.session is None else None
        if self.session is not None:
            self._submit(self._unsent_thread, lambda: self._save_unsent(conversation_id, text))

    def _save_unsent(self, conversation_id: str, text: str) -> None:
        from edgechat.chat import unsent_messages

        if self.session is not None and self.session.store.is_persistent:
            unsent_messages.save(conversation_id, text)

    def go_to(self, destination: Destination) -> None:
        """Open a conversation or start a new one, and post its content to the screen."""

        def open_destination(session: Session) -> None:
            from edgechat.chat.commands import go_to

            has_message = go_to(session, destination)
            self.post_conversation(session, destination.message_id if has_message else None)

        self.queue(open_destination)

    def _submit(self, executor: ThreadPoolExecutor, job: Callable[[], object]) -> None:
        def run() -> None:
            try:
                job()
            except Exception as error:  # noqa: BLE001  (the executor would ignore the error)
                self._post(messages.SessionFailed(format_error(error), None))

        if not self.is_closing:
            executor.submit(run)

    def _run_job(
        self, job: Job, *, needs_model: bool = False, outgoing_message: messages.OutgoingMessage | None = None,
        stream: ReplyStream | None = None, ends_operation: bool = False, post_view: bool = True,
        line: str = "",
    ) -> None:  # fmt: skip
        try:
            job(self._get_session_with_model() if needs_model else self._get_or_create_session())
        except Exception as error:  # noqa: BLE001  (any error is shown, and the thread continues)
            is_saved = stream is not None and stream.has_started and not isinstance(error, _MESSAGE_ERRORS)
            view = _take_snapshot(self.session) if post_view else None
            self._post(
                messages.SessionFailed(
                    format_error(error), view, None if is_saved else outgoing_message, ends_operation, line,
                    is_mistake(error, line),
                )
            )  # fmt: skip

    def _run_when_idle(self, job: Job) -> None:
        with contextlib.suppress(EdgechatError):
            if self.session is not None and not self.is_closing:
                job(self.session)

    def _run_command(self, session: Session, command: Command, argument: str, line: str) -> None:
        assert command.run is not None  # noqa: S101  (view commands are not run here)
        outcome = command.run(session, argument)
        if outcome.export_to is not None:
            self._export(session.store, session.conversation.id, outcome.export_to)
        if command.run_mode != "turn":
            self._post(messages.CommandFinished(outcome))
            return
        self.post_conversation(session)
        if command.stops_reply:  # the title was to be generated after the reply
            self.run_when_idle(self._generate_title)
        self._post(messages.CommandFinished(outcome._replace(model="")))
        if outcome.model:  # load the model at once, so that messages sent meanwhile use it
            self._load_model(outcome.model, line)

    # Opening and closing

    def open(self) -> None:
        """Create the session, post its conversation, and load the model."""
        self._submit(self._turn_thread, lambda: self._run_job(self._post_ready, needs_model=True, ends_operation=True))

    def load_model(self, name: str, line: str = "") -> None:
        """Load another model for the next replies; if this fails, the session loads the previous model again.

        In this case, SessionFailed contains `line`, the typed command.
        """
        self._submit(self._turn_thread, lambda: self._load_model(name, line))

    def _load_model(self, name: str, line: str) -> None:
        def load(session: Session) -> None:
            from edgechat.chat.commands import load_model

            self._post(messages.NoteAdded(load_model(session, name, self._on_load_progress)))
            self._post_ready(session)

        self._post(messages.LoadStarted())
        self._run_job(load, ends_operation=True, line=line)

    def _post_ready(self, session: Session) -> None:
        warnings, session.warnings[:] = list(session.warnings), []
        self._post(messages.ModelReady(warnings))

    def _get_or_create_session(self) -> Session:
        """Return the session; create it if there is none yet. Raises EdgechatError."""
        if self.is_closing:
            raise EngineDiedError("The chat is closing")
        if self.session is None:
            session = self._make_session()
            session.load_messages()
            session.model_name  # noqa: B018  (reads the disk, for which the screen cannot wait)
            self.session = session
            self.post_conversation(session)
        return self.session

    def _get_session_with_model(self) -> Session:
        """Return the session; create it and load its model if necessary. Raises EdgechatError."""
        session = self._get_or_create_session()
        if self.is_closing:
            raise EngineDiedError("The chat is closing")
        if not session.is_open:
            session.open(self._on_load_progress)
        return session

    def _on_load_progress(self, event: ModelLoadProgressed) -> None:
        self._post(messages.StatusChanged(event.message))

    def stop(self) -> None:
        """Stop the reply that is being generated, and keep its text."""
        if self.session is not None:
            self.session.stop()

    def close(self) -> None:
        """End all jobs and processes; return after everything is saved."""
        self.is_closing = True
        if self.session is not None:
            self.session.close()
        self._turn_thread.shutdown(wait=True, cancel_futures=True)
        if self._early_unsent is not None and self._early_unsent[1]:
            self._save_unsent(*self._early_unsent)
        if self.session is not None:  # the session may have been created meanwhile; closing it twice is harmless
            self.session.close()
        self._unsent_thread.shutdown(wait=True)
        self._side_thread.shutdown(wait=True)
        self._idle_threads.shutdown(wait=False, cancel_futures=True)

    # Replies

    def _generate(self, start: StartReply, outgoing_message: messages.OutgoingMessage | None) -> None:
        from edgechat.chat.events import TurnFinished
        from edgechat.tui.reply_stream import ReplyStream

        stream = self._stream = ReplyStream(self._post, self.paint_pace)

        def stream_reply(session: Session) -> None:
            if isinstance(stream.run(session, start(session)), TurnFinished):
                self.run_when_idle(self._generate_title)

        self._run_job(
            stream_reply, needs_model=True, outgoing_message=outgoing_message, stream=stream, ends_operation=True
        )

    def post_held_text(self) -> None:
        """Post text of the reply that waits for the next repaint."""
        if self._stream is not None:
            self._stream.post_held_text()

    def _generate_title(self, session: Session) -> None:
        if session.generate_title():
            self._post(messages.TitleChanged(session.conversation))

    def find_earlier_reply(self) -> None:
        """Search for an earlier reply to the first message while the model replies; post EarlierReplyFound."""

        def find(session: Session) -> None:
            conversation_id = session.conversation.id
            earlier = session.find_earlier_reply() if session.settings.offer_earlier else None
            if earlier is not None:
                today = dt.datetime.now().astimezone().date()
                self._post(messages.EarlierReplyFound(conversation_id, earlier.describe_offer(today)))

        self.run_when_idle(find)

    def measure_context(self, number: int, text: str, files: Sequence[Path]) -> None:
        """Count the context tokens that `text` and `files` would use if sent now, and the tokens of each file.

        The result is posted as ContextMeasured with `number`.
        """

        def measure(session: Session) -> None:
            from edgechat.chat import mentions

            if session.model_properties is None:  # a remote model has no counts
                return
            counts = {file: session.count_file_tokens(file) for file in files}
            all_files = list(dict.fromkeys([*files, *mentions.find_attached_files(text)]))
            try:
                n_tokens, n_dropped = session.context_usage(text, all_files)
            except ContextOverflowError:
                warning = session.find_long_attachment(all_files) or "too long for the context"
                self._post(messages.ContextMeasured(number, text, 0, warning, counts))
            else:
                count_text = format_count(n_dropped, "message")
                warning = f"sending drops {count_text} from the start of the context" if n_dropped else ""
                self._post(messages.ContextMeasured(number, text, n_tokens, warning, counts))

        self.run_when_idle(measure)

    def post_conversation(self, session: Session, message_id: str | None = None) -> None:
        """Post the state of the conversation. Call this only in a job. `message_id` is the message to scroll to."""
        from edgechat.chat import unsent_messages

        view = messages.ConversationView.from_session(session)
        conversation_id = view.conversation.id if view.path else ""
        unsent_text = unsent_messages.load(conversation_id) if session.store.is_persistent else ""
        self._post(messages.ConversationChanged(view, message_id, unsent_text))
        for notice in session.store.take_notices():
            self._post(messages.NoteAdded(notice))


def _take_snapshot(session: Session | None) -> messages.ConversationView | None:
    try:
        return messages.ConversationView.from_session(session) if session is not None else None
    except EdgechatError:
        return None


def start_command_reply(command: Command, session: Session, argument: str) -> Iterator[SessionEvent]:
    """Run the handler of a command, and return the events of the reply that its outcome generates."""
    outcome = command.run(session, argument) if command.run is not None else None
    if outcome is None or outcome.start_reply is None:
        raise AssertionError(f"/{command.name} generates no reply")
    return outcome.start_reply()
