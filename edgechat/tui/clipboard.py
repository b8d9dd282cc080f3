"""Copy text to the clipboard: with the desktop's programs, through tmux, and with the escape sequence OSC 52."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from edgechat import files, paths

MAX_CHARS: Final = 50_000
"""Maximum length of a text that is copied with OSC 52.

Terminals ignore sequences longer than about 100 kB; base64 turns 50,000 ASCII characters into 67 kB.
"""
# Maximum length of a part of the sequence for GNU screen, which accepts strings of at most 768 bytes.
_SCREEN_CHUNK_CHARS: Final = 700
CLIPBOARD: Final = "the clipboard"
TMUX: Final = "tmux"
# Maximum length of a notification, so that it fits into the footer of a terminal with 80 columns.
_MAX_SUMMARY_CHARS: Final = 76
_TIMEOUT_S: Final = 2.0
"""Maximum run time of a program; `xclip` waits forever for an X server that does not answer."""


class ClipboardProgram(NamedTuple):
    """Program that copies the text of its standard input to a clipboard."""

    command: tuple[str, ...]
    destination: str
    """Name of the clipboard in the notification."""
    encoding: str = "utf-8"


def list_programs(
    environment: Mapping[str, str] = os.environ, which: Callable[[str], object] = shutil.which
) -> list[ClipboardProgram]:
    """Return the installed clipboard programs. Over ssh, programs for a desktop are omitted: it is not the user's."""
    programs: list[ClipboardProgram] = []
    if environment.get("TMUX"):
        # Since tmux 3.2, -w also sends the text to the clipboard of tmux's terminal.
        programs.append(ClipboardProgram(("tmux", "load-buffer", "-w", "-"), TMUX))
    if not (environment.get("SSH_CONNECTION") or environment.get("SSH_TTY")):
        if sys.platform == "darwin":
            programs.append(ClipboardProgram(("pbcopy",), CLIPBOARD))
        elif sys.platform == "win32":
            programs.append(ClipboardProgram(("clip",), CLIPBOARD, "utf-16"))
        elif environment.get("WAYLAND_DISPLAY") and which("wl-copy"):
            programs.append(ClipboardProgram(("wl-copy",), CLIPBOARD))
        elif environment.get("DISPLAY") and which("xclip"):
            programs.append(ClipboardProgram(("xclip", "-selection", "clipboard"), CLIPBOARD))
        elif environment.get("DISPLAY"):
            programs.append(ClipboardProgram(("xsel", "--input", "--clipboard"), CLIPBOARD))
        elif environment.get("WSL_DISTRO_NAME"):
            programs.append(ClipboardProgram(("clip.exe",), CLIPBOARD, "utf-16"))
    return [program for program in programs if which(program.command[0])]


def run_program(program: ClipboardProgram, text: str) -> bool:
    """Copy `text` with a program; return whether it succeeded."""
    try:
        # A program may stay in the background to serve the clipboard; reading its output would wait for its end.
        result = subprocess.run(
            program.command, input=text.encode(program.encoding, "replace"), timeout=_TIMEOUT_S, check=False,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return False
    return result.returncode == 0


def run_programs(text: str, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Copy `text` with all installed programs; return the names of the clipboards. This can take seconds."""
    return [program.destination for program in list_programs(environment) if run_program(program, text)]


def make_osc52_sequence(text: str, environment: Mapping[str, str] = os.environ, *, is_in_tmux: bool = False) -> str:
    """Return the escape sequences that copy `text` to the terminal's clipboard.

    See OSC 52 in https://invisible-island.net/xterm/ctlseqs/ctlseqs.html. GNU screen and tmux pass a wrapped sequence
    on to their terminal, tmux only with `allow-passthrough`. With `set-clipboard on`, tmux itself uses the plain
    sequence, which is omitted if the text `is_in_tmux` already. If $TERM shows that GNU screen or tmux may run at the
    other end of an ssh connection, the result contains all forms.
    """
    sequence = f"\x1b]52;c;{base64.b64encode(text.encode('utf-8', 'replace')).decode()}\x07"
    tmux_sequence = f"\x1bPtmux;{sequence.replace(chr(27), chr(27) * 2)}\x1b\\"
    if environment.get("TMUX"):
        return tmux_sequence if is_in_tmux else sequence + tmux_sequence
    parts = [sequence[i : i + _SCREEN_CHUNK_CHARS] for i in range(0, len(sequence), _SCREEN_CHUNK_CHARS)]
    screen_sequence = "".join(f"\x1bP{part}\x1b\\" for part in parts)
    if environment.get("STY"):
        return screen_sequence
    term = environment.get("TERM", "")
    if term.startswith("tmux"):
        return sequence + tmux_sequence
    return sequence + tmux_sequence + screen_sequence if term.startswith("screen") else sequence


def save_copy(text: str) -> Path | None:
    """Write `text` to a file, for terminals that ignore OSC 52; return its path, or None if writing fails."""
    file = paths.cache_dir() / "copied.txt"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        files.replace_file(file, text.encode("utf-8", "replace"))
    except OSError:
        return None
    return file


def summary(label: str, destinations: Sequence[str], file: Path | None, *, was_sent: bool) -> str:
    """Return the notification after a text was copied: one sentence of at most 76 columns.

    `label` names the text, such as "Reply". `destinations` are the clipboards whose program confirmed the copy. If
    `was_sent`, the text was also sent to the terminal, which never confirms a copy. `file` is a copy on disk, or None.
    """
    name = label.lower()
    if destinations:
        to_terminal = ["the terminal"] if was_sent and CLIPBOARD not in destinations else []
        return f"Copied {name} to {' and '.join([*destinations, *to_terminal])}"
    text = f"Sent {name} to the terminal" if was_sent else f"{label} is too long for the terminal"
    if file is None:
        return text
    home = paths.home_dir()
    path = f"~/{file.relative_to(home).as_posix()}" if home is not None and file.is_relative_to(home) else str(file)
    long_text = f"{text}, saved it in {path}"
    return long_text if len(long_text) <= _MAX_SUMMARY_CHARS else f"{text}, saved it in {file.name}"
