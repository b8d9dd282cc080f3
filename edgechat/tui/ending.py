"""End the chat after a signal: save the reply and the unsent text, and restore the terminal."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

from edgechat import signals

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator
    from types import FrameType

# Time for an orderly end. Docker kills a container 10 seconds after SIGTERM.
_ORDERLY_END_S: Final = 8.0
# Further time for saving, if the event loop is blocked, for example by a terminal that does not read.
_SAVE_S: Final = 1.5
# Signals that a terminal sends to all programs in the foreground when the user presses a key, such as Ctrl-C.
_KEY_SIGNALS: Final = tuple(getattr(signal, name) for name in ("SIGINT", "SIGQUIT") if hasattr(signal, name))


class EndableApp(Protocol):
    """Application that a signal can end."""

    async def end(self, exit_code: int) -> None: ...
    def save_everything(self) -> None: ...
    def restore_terminal(self) -> None: ...
    def call_later(self, callback: Callable[..., Any], *args: Any) -> bool: ...


class SignalEnding:
    """Ends the application after a signal, within `_ORDERLY_END_S + _SAVE_S` seconds."""

    def __init__(self, app: EndableApp) -> None:
        self._app = app
        self.loop: asyncio.AbstractEventLoop | None = None
        """Event loop of the application; None until it runs."""
        self.forward: Callable[[int], bool] = lambda number: False
        """Function that passes a signal to a child process in the foreground. It returns False if there is none."""
        self._exit_code = 0

    @contextlib.contextmanager
    def handle_signals(self) -> Iterator[None]:
        """End the application if a signal arrives during the `with` block."""
        numbers = (signal.SIGINT, *signals.ENDING_SIGNALS)
        with (
            signals.handle_signals(numbers, self._on_signal),
            signals.watch_signals(lambda number: self._end(number) if number in numbers else None),
        ):
            yield
        if self._exit_code:  # a further signal must not change the exit code
            for number in numbers:
                signal.signal(number, signal.SIG_IGN)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.loop is None:
            raise SystemExit(signals.exit_code(number))
        if sys.platform == "win32":
            self._end(number)

    def _end(self, number: int) -> None:
        """End the application because of signal `number`; called in a thread."""
        if (self.forward(number) and number in _KEY_SIGNALS) or self._exit_code or self.loop is None:
            return  # Ctrl-C belongs to the editor; and a terminal that closes can send SIGHUP several times
        self._exit_code = signals.exit_code(number)
        threading.Thread(target=self._force_end, name="ending", daemon=True).start()
        self.loop.call_soon_threadsafe(self._app.call_later, self._app.end, self._exit_code)

    def _force_end(self) -> None:
        """End the process if the orderly end takes too long."""
        time.sleep(_ORDERLY_END_S)
        saving = threading.Thread(target=self._app.save_everything, daemon=True)
        saving.start()
        saving.join(_SAVE_S)
        self._app.restore_terminal()
        os._exit(self._exit_code)
