"""Suspend the program and return to the shell that started it."""

from __future__ import annotations

import os
import signal
import sys


def suspend_process_group() -> bool:
    """Send SIGTSTP to all processes of the job, as a terminal does with Ctrl+Z; return False if no shell waits for it.

    A program that starts this one, such as `make`, must stop too, or the shell would not continue.
    """
    if sys.platform == "win32" or os.getpgrp() == os.getsid(0):
        return False  # in the process group of the session's leader there is no job control: nothing could resume it
    os.killpg(0, signal.SIGTSTP)
    return True
