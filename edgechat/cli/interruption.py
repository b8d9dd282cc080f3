"""Signals during `ask` and the line-by-line chat: stop the reply, save it, and end with the exit code of the signal."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Final

from edgechat import signals
from edgechat.cli.session_factory import open_session
from edgechat.config import AUTO
from edgechat.errors import EdgechatError, EngineDiedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from edgechat.chat.session import Session
    from edgechat.cli.progress import StderrStatus

# Time limit for the engine to stop a reply after a signal that ends the program. Then the engine is killed.
_STOP_S: Final = 5.0
# Time limit for saving after that. Then the process exits even if it is blocked, for example by a terminal that does
# not read.
_SAVE_S: Final = 3.0


class Interruption:
    """Handlers of Ctrl-C (SIGINT) and of the signals that end a program, while a command uses a session.

    During a reply, a signal stops the reply, so that its text is saved. At other times, a signal that ends the program
    raises SystemExit, and Ctrl-C raises KeyboardInterrupt as usual. A second Ctrl-C before the reply has stopped raises
    KeyboardInterrupt too, without waiting for the engine.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._may_raise = True
        self.n_stops = 0
        """Number of times that Ctrl-C was pressed during the last reply."""
        self.exit_code = 0
        """Exit code for the signal that ends the program; 0 if no such signal has arrived."""

    @contextlib.contextmanager
    def handle_signals(self) -> Iterator[None]:
        """Handle the signals that end the program during the `with` block. Raises SystemExit."""
        with signals.handle_signals(signals.ENDING_SIGNALS, self._on_ending_signal):
            yield
        self.raise_exit()

    @contextlib.contextmanager
    def stop_reply(self) -> Iterator[None]:
        """Stop the reply if a signal arrives during the `with` block."""
        self._may_raise, self.n_stops = False, 0
        try:
            with signals.handle_signals((signal.SIGINT,), self._on_interrupt):
                yield
        finally:
            self._may_raise = True

    def begin_closing(self) -> None:
        """Stop raising exceptions in signal handlers, so that signals do not interrupt saving."""
        self._may_raise = False

    def raise_exit(self) -> None:
        """Raise SystemExit if a signal that ends the program has arrived."""
        if self.exit_code:
            raise SystemExit(self.exit_code)

    def _on_interrupt(self, _number: int, _frame: FrameType | None) -> None:
        self.n_stops += 1
        if self.n_stops > 1:
            raise KeyboardInterrupt
        self._stop_reply()

    def _on_ending_signal(self, number: int, _frame: FrameType | None) -> None:
        if not self.exit_code:
            self.exit_code = signals.exit_code(number)
            threading.Thread(target=self._force_end, name="ending", daemon=True).start()
            if self._may_raise:
                raise SystemExit(self.exit_code)
            self._stop_reply()

    def _stop_reply(self) -> None:
        # On a separate thread, because the signal may have interrupted a function that holds a lock, for example while
        # it sends a long prompt to the engine.
        threading.Thread(target=self._session.stop, name="stop", daemon=True).start()

    def _force_end(self) -> None:
        time.sleep(_STOP_S)
        closing_thread = threading.Thread(target=self._session.close, daemon=True)
        closing_thread.start()
        closing_thread.join(_SAVE_S)
        time.sleep(_SAVE_S)
        os._exit(self.exit_code)


@contextlib.contextmanager
def use_session(session: Session, status: StderrStatus) -> Iterator[Interruption]:
    """Open `session` for the `with` block, which generates one reply, and close it; signals stop the reply.

    `status` shows that the model is loaded, and which model was chosen automatically. Raises EdgechatError,
    KeyboardInterrupt after Ctrl-C, and SystemExit after another signal.
    """
    session.model.client_name = "ask"
    interruption = Interruption(session)
    with interruption.handle_signals():
        try:
            if not session.source.is_remote:
                status.show("Loading the model")
            with status.announce_wait():
                open_session(session, status)
            if session.source.description:
                status.note(f"Model: {session.source.description}")
            elif session.settings.model == AUTO:
                status.note(f"Model: {session.conversation.model}. To use another one, add -m NAME.")
            yield interruption
        except EdgechatError as error:
            interruption.raise_exit()  # the engine was closed because of a signal
            if interruption.n_stops and isinstance(error, EngineDiedError):
                raise KeyboardInterrupt from error  # the engine did not stop the reply, and was killed
            raise
        finally:
            interruption.begin_closing()
            session.close()
            status.clear()
    if interruption.n_stops:
        raise KeyboardInterrupt
