"""Suspend the program and return to the shell that started it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable


def suspend_job(restore_terminal: Callable[[], object]) -> bool:
    """Stop all processes of the shell's job, as a terminal does with Ctrl+Z; return False if no shell waits for it.

    A parent process such as `make` must stop too, or the shell would not continue. `restore_terminal` is called before
    the parent stops: as soon as it stops, the shell takes the terminal, and the kernel would stop this process when it
    changes the terminal.
    """
    if sys.platform == "win32" or os.getpgrp() == os.getsid(0):
        return False  # the process group of the session leader has no job control: nothing could resume it
    restore_terminal()
    handler = signal.signal(signal.SIGTSTP, signal.SIG_IGN)
    os.killpg(0, signal.SIGTSTP)
    signal.signal(signal.SIGTSTP, handler)
    os.kill(os.getpid(), signal.SIGSTOP)
    return True
