"""Copies in a real tmux server: they reach its paste buffer and the clipboard of its terminal."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.terminal import terminal
from tests.waiting import until

pytestmark = [pytest.mark.cold, pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")]

REPLY = "The reply to copy."
PROGRAM = f"{sys.executable} -m tests.tui.scripted_program 0.001 '{REPLY}'"


class TmuxServer:
    """A tmux server with its own socket and configuration."""

    def __init__(self, folder: Path, options: list[str]) -> None:
        config = folder / "tmux.conf"
        lines = ['set -g default-terminal "tmux-256color"', *(f"set -g {option}" for option in options)]
        config.write_text("\n".join(lines))
        self.command = ["tmux", "-S", str(folder / "socket"), "-f", str(config)]

    def run(self, *arguments: str) -> str:
        result = subprocess.run([*self.command, *arguments], capture_output=True, text=True, check=False)
        return result.stdout

    def screen(self) -> str:
        return self.run("capture-pane", "-p")

    def until_shown(self, text: str) -> None:
        until(lambda: text in self.screen(), 60, lambda: f"{text!r} is shown:\n{self.screen()}")

    def start_chat(self) -> None:
        """Start the chat in the session, and wait for a reply."""
        self.until_shown("Ready")
        self.run("send-keys", "Question", "Enter")
        self.until_shown(REPLY)
        self.until_shown("Ready")


@pytest.fixture
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[TmuxServer]:
    server = TmuxServer(tmp_path, request.param)
    try:
        yield server
    finally:
        server.run("kill-server")


@pytest.mark.parametrize(
    "server",
    [
        ["set-clipboard on", "allow-passthrough on"],
        ["set-clipboard on", "allow-passthrough off"],
        ["set-clipboard external", "allow-passthrough off"],
        ["set-clipboard off", "allow-passthrough off"],
    ],
    indirect=True,
    ids=", ".join,
)
def test_copy_reaches_tmux_and_its_terminal(server: TmuxServer) -> None:
    env = {**os.environ}
    env.pop("TMUX", None)
    with terminal(*server.command, "new-session", PROGRAM, env=env, is_controlling=True) as t:
        server.start_chat()
        server.run("send-keys", "Escape")
        server.until_shown("y copy")
        server.run("send-keys", "y")
        server.until_shown("Copied message to tmux")
        assert server.run("show-buffer") == REPLY
        assert len(server.run("list-buffers").splitlines()) == 1
        sequence = b"]52;c;" + base64.b64encode(REPLY.encode())
        t.until(lambda: sequence in t.output.replace(b"]52;;", b"]52;c;"))


@pytest.mark.parametrize("server", [["set-clipboard on"]], indirect=True, ids=["default"])
def test_text_selected_with_the_mouse_is_readable_and_copied_by_ctrl_c(server: TmuxServer) -> None:
    server.run("new-session", "-d", "-x", "80", "-y", "24", PROGRAM)
    server.start_chat()
    for sequence in ("\x1b[<0;3;5M", "\x1b[<32;12;5M", "\x1b[<0;12;5m"):
        server.run("send-keys", "-l", sequence)
    server.run("send-keys", "C-c")
    server.until_shown("Copied selection to tmux")
    assert server.run("show-buffer") in REPLY
