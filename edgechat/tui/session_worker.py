"""Talks to the session, so that the screen never waits: one thread for turns, others for what is beside them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from edgechat.errors import ContextOverflowError, EdgechatError, EngineDiedError, TemplateError
from edgechat.tui import messages

if TYPE_CHECKING:
    from pathlib import Path

    from textual.message import Message

    from edgechat.chat.events import PromptProgressed, SessionEvent, TurnFinished, TurnInterrupted
    from edgechat.chat.session import Session
    from edgechat.models.events import ModelLoadProgressed

# Text reaches the screen about twelve times a second: nobody reads faster, and every repaint costs.
PAINT_S: Final = 0.08
# With these errors a message was in the conversation, and is not any more.
_RETRACTED: Final = (ContextOverflowError, TemplateError)

Ask = Callable[["Session"], "Iterator[SessionEvent]"]
Job = Callable[["Session"], object]


class SessionWorker:
    """Whatever is asked of it is done in turn, in another thread; what comes of it is posted as messages."""

    def __init__(self, make_session: Callable[[], Session], post: Callable[[Message], object]) -> None:
        """`make_session` is called when `open` is, in the thread."""
        self._make_session = make_session
        self._post = post
        self._turns = ThreadPoolExecutor(1, "turns")
        self._asides = ThreadPoolExecutor(2, "asides")
        self._drafts = ThreadPoolExecutor(1, "drafts")
        self.session: Session | None = None
        """None until it was made."""
        self.is_leaving = False
        self._was_said = False
        self.is_painted = True
        """False while text that was posted is not on the screen; set by the screen."""

    # Jobs

    def do(self, job: Job) -> None:
        """Have something done to the session after all that was asked for before."""
        self._submit(self._turns, lambda: self._guarded(job, needs_model=False))

    def aside(self, job: Job) -> None:
        """Have something done beside turns, for which nobody waits; its errors are nobody's business."""
        self._submit(self._asides, lambda: self._quietly(job))

    def answer(self, ask: Ask, saying: messages.OutgoingMessage | None = None) -> None:
        """Have something answered; what is said is given back if it could not be."""
        job = lambda session: self._answer(session, ask)  # noqa: E731  (one line)
        self._submit(self._turns, lambda: self._guarded(job, saying, needs_model=True, ends=True))

    def keep_draft(self, conversation_id: str, text: str) -> None:
        """Write down what was typed, one after the other; nothing of a conversation that is not kept."""
        if self.session is not None and self.session.store.is_persistent:
            from edgechat.chat import unsent_messages

            self._submit(self._drafts, lambda: unsent_messages.save(conversation_id, text))

    def _submit(self, threads: ThreadPoolExecutor, job: Callable[[], object]) -> None:
        if not self.is_leaving:
            threads.submit(job)

    def _guarded(
        self, run: Job, saying: messages.OutgoingMessage | None = None, *, needs_model: bool, ends: bool = False
    ) -> None:
        self._was_said = False
        try:
            run(self._opened() if needs_model else self._made())
        except Exception as error:  # noqa: BLE001  (whatever it is, the screen must say it and go on)
            is_kept = self._was_said and not isinstance(error, _RETRACTED)
            self._post(
                messages.SessionFailed(words(error), self._view_or_none(), None if is_kept else saying, ends=ends)
            )

    def _quietly(self, job: Job) -> None:
        with contextlib.suppress(EdgechatError):
            if self.session is not None and not self.is_leaving:
                job(self.session)

    # Opening and closing

    def open(self) -> None:
        """Make the session, show its conversation, and load the model."""
        self._submit(self._turns, lambda: self._guarded(self._ready, needs_model=False, ends=True))

    def _ready(self, _session: Session) -> None:
        self._opened()
        self._post(messages.ModelReady())

    def _made(self) -> Session:
        """The session, made unless it is. Raises EdgechatError."""
        if self.is_leaving:
            raise EngineDiedError("the chat is being left")
        if self.session is None:
            session = self._make_session()
            session.load_messages()
            self.session = session
            self.show(session)
        return self.session

    def _opened(self) -> Session:
        """The session with its model. Raises EdgechatError."""
        session = self._made()
        if self.is_leaving:
            raise EngineDiedError("the chat is being left")
        if session.loaded is None:
            session.open(self._loading)
        return session

    def _loading(self, event: ModelLoadProgressed) -> None:
        self._post(messages.StatusChanged(event.message))

    def load_model(self, name: str) -> None:
        """Let another model answer, from the next message on; the one before is loaded again if this one cannot be."""

        def job(session: Session) -> None:
            from edgechat.catalogue import registry
            from edgechat.catalogue.resolve import find_model

            path = find_model(name)
            session.change_model(name, path, self._loading)
            if session.store.is_persistent:
                registry.record_use(path)
            self.note(f"{path.stem} answers from here on")
            self._post(messages.ModelReady())

        self._submit(self._turns, lambda: self._guarded(job, needs_model=False, ends=True))

    def stop(self) -> None:
        """Stop the answer that is coming; its text stays."""
        if self.session is not None:
            self.session.stop()

    def close(self) -> None:
        """End everything; returns when what was said is written."""
        self.is_leaving = True
        if self.session is not None:
            self.session.close()
        self._turns.shutdown(wait=True, cancel_futures=True)
        if self.session is not None:  # one that was being made meanwhile; closing twice does nothing
            self.session.close()
        self._drafts.shutdown(wait=True)
        self._asides.shutdown(wait=False, cancel_futures=True)

    # Answers

    def _answer(self, session: Session, ask: Ask) -> None:
        from edgechat.chat import events as chat

        batch, progress = messages.TextBatch(), _Progress()
        ended: TurnFinished | TurnInterrupted | None = None
        try:
            for event in ask(session):
                if isinstance(event, chat.TurnStarted):
                    self._was_said = True
                    self._post(messages.ReplyStarted(view(session), event.reply.id))
                elif isinstance(event, chat.ReplyTextGenerated):
                    if event.reply_index == 0:
                        batch.add(event.text, event.reasoning, event.n_tokens)
                    if batch.age_s() >= PAINT_S and self.is_painted:
                        self.is_painted = False
                        self._post(batch.take())
                elif isinstance(event, (chat.TurnFinished, chat.TurnInterrupted)):
                    ended = event
                else:
                    self._report(event, progress)
        finally:
            self._post(batch.take())
        if ended is not None:  # only now the conversation holds the answer as it is kept
            self._post(messages.ReplyEnded(ended, view(session)))
        if isinstance(ended, chat.TurnFinished):
            self.aside(self._make_title)

    def _make_title(self, session: Session) -> None:
        """Let the model name the conversation while nobody waits for it; the next message comes first."""
        if session.generate_title():
            self._post(messages.TitleChanged(session.conversation))

    def _report(self, event: SessionEvent, progress: _Progress) -> None:
        from edgechat.chat import events as chat

        said = progress.words(event) if isinstance(event, chat.PromptProgressed) else chat.progress_text(event)
        if said:
            self._post(messages.StatusChanged(said))
        notice = chat.notice_text(event)
        if notice:
            self._post(messages.NoteAdded(notice))

    def say(self, saying: messages.OutgoingMessage) -> None:
        """Send a message, or say one differently."""
        if saying.editing is not None:
            edited = saying.editing
            self.answer(lambda session: session.edit(edited, saying.text), saying)
        else:
            self.answer(lambda session: session.send(saying.text, saying.files), saying)

    def count(self, text: str, files: Sequence[Path] = ()) -> None:
        """Find out how full the context would be."""

        def job(session: Session) -> None:
            if session.loaded is None:
                return
            try:
                n_tokens, n_leaving = session.context_usage(text, files)
            except ContextOverflowError:
                self._post(messages.ContextMeasured(text, 0, "too long for the context"))
            else:
                said = f"{n_leaving} messages would leave" if n_leaving else ""
                self._post(messages.ContextMeasured(text, n_tokens, said))

        self.aside(job)

    def show(self, session: Session, goal: str | None = None) -> None:
        """Post the conversation as it is now; for jobs."""
        from edgechat.chat import unsent_messages

        shown = view(session)
        draft = unsent_messages.load(shown.conversation.id if shown.path else "") if session.store.is_persistent else ""
        self._post(messages.ConversationChanged(shown, goal, draft))

    def note(self, said: str) -> None:
        """Post something to know; for jobs."""
        self._post(messages.NoteAdded(said))

    def _view_or_none(self) -> messages.ConversationView | None:
        try:
            return view(self.session) if self.session is not None else None
        except EdgechatError:
            return None


class _Progress:
    """How long a prompt still takes, from how fast it went so far."""

    def __init__(self) -> None:
        self._start: tuple[float, int] | None = None

    def words(self, event: PromptProgressed) -> str:
        """For the live line."""
        said = f"reading {event.done_tokens} of {event.total_tokens} tokens"
        now_s = time.monotonic()
        if self._start is None:
            self._start = now_s, event.done_tokens
        elapsed_s, done = now_s - self._start[0], event.done_tokens - self._start[1]
        if done > 0 and elapsed_s > 0:
            left_s = (event.total_tokens - event.done_tokens) * elapsed_s / done
            said += f", {left_s:.0f} s left" if left_s >= 1 else ""
        return said


def view(session: Session) -> messages.ConversationView:
    """The conversation at this moment."""
    tree = session.tree
    path = []
    for message in tree.path:
        siblings = tree.alternatives(message.id)
        path.append((message, (siblings.index(message.id) + 1, len(siblings))))
    return messages.ConversationView(session.conversation, path)


def words(error: Exception) -> str:
    """An error, for a person."""
    return str(error) if isinstance(error, EdgechatError) else f"an unexpected {type(error).__name__}: {error}"
