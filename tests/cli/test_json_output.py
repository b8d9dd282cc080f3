"""JSON on a terminal has no control characters and no invisible characters, and the same value as in a pipe."""

from __future__ import annotations

import json
import os
import re
import subprocess

import pytest

from tests.cli.test_ends import ASK, COMMAND
from tests.terminal import terminal

pytestmark = pytest.mark.cold

REPLY = "a\x9b31m b\x7f c\u202ed e\u200bf g\u2066h\u2069 i\U000e0041 j\x1b[2J \u00e9 \u4e2d \U0001f469\u200d\U0001f680"
HIDDEN = re.compile("[\x7f-\x9f\u200b-\u202e\u2066-\u2069\U000e0041]")


def run_in_terminal(*arguments: str) -> str:
    with terminal(*arguments, size=(200, 50), env=os.environ | {"REPLY": REPLY, "TOKEN_INTERVAL_S": "0"}) as t:
        assert t.wait() == 0
        t.until(lambda: t.output.endswith(b"}\r\n"))
        return t.output.decode().replace("\r\n", "\n")


def test_json_of_ask_and_history_is_escaped_on_a_terminal_only() -> None:
    output = run_in_terminal(*ASK, "--json")
    printed = output[output.index("{") :]
    assert not HIDDEN.search(printed)
    reply = json.loads(printed)
    assert reply["text"] == REPLY
    for arguments in (
        ["show", reply["conversation_id"], "--json"],
        ["export", reply["conversation_id"], "--format", "json"],
    ):
        command = [*COMMAND, "history", *arguments]
        escaped = run_in_terminal(*command)
        piped = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True).stdout.decode()
        assert not HIDDEN.search(escaped)
        assert HIDDEN.search(piped)
        assert json.loads(escaped) == json.loads(piped)


def test_json_keeps_characters_that_the_locale_lacks() -> None:
    done = subprocess.run(
        [*ASK, "--json"], stdin=subprocess.DEVNULL, capture_output=True, check=True,
        env=os.environ | {"REPLY": REPLY, "TOKEN_INTERVAL_S": "0", "PYTHONIOENCODING": "latin-1"},
    )  # fmt: skip
    assert done.stdout.isascii()
    assert json.loads(done.stdout)["text"] == REPLY
