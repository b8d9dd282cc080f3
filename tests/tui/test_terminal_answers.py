"""The chat in a terminal that answers its questions, late, wrongly or never: theme and ASCII follow the terminal."""

from __future__ import annotations

import os
import sys

import pytest

from tests.terminal import Terminal, terminal
from tests.waiting import until

pytestmark = pytest.mark.cold

REPLY = "Grüße: ünïcödé."
PROGRAM = [sys.executable, "-m", "tests.tui.scripted_program", "0.001", REPLY]
DARK, LIGHT = "121212", "e0e0e0"
BACKGROUND_QUERY = b"\x1b]11;?\x1b\\"
UTF8_QUERY = "\x1b[2;1H\u00e9\x1b[6n".encode()


def background(chat: Terminal) -> str:
    with chat._lock:
        return str(chat.screen.buffer[1][40].bg)


def environment(**variables: str) -> dict[str, str]:
    variables_without_locale = {
        name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "TMUX"))
    }
    return {**variables_without_locale, **variables}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("\x1b]11;rgb:fafa/fafa/fafa\x07", LIGHT), ("\x1b]11;rgb:0000/0000/0000\x1b\\", DARK),
        ("\x1b]11;rgb:zz/zz/zz\x1b\\", DARK), ("", DARK),
    ],
)  # fmt: skip
def test_theme_follows_the_background_of_the_terminal(answer: str, expected: str) -> None:
    with terminal(*PROGRAM, env=environment(LANG="C.UTF-8")) as chat:
        chat.until("Ready")  # the first frame does not wait for an answer
        chat.until(lambda: background(chat) == DARK and BACKGROUND_QUERY in chat.output)
        assert chat.output.count(BACKGROUND_QUERY) == 1
        chat.type(answer + "typed")
        chat.until(lambda: background(chat) == expected)
        chat.until_stable("typed")
        assert "rgb" not in chat.text()
        assert "11;" not in chat.text()


def test_answer_that_comes_in_parts_and_a_second_one() -> None:
    with terminal(*PROGRAM, env=environment(LANG="C.UTF-8")) as chat:
        chat.until("Ready")
        chat.type("a\x1b]11;rg")
        chat.until_stable("a")
        chat.type("b:ffff/ffff/ffff\x1b\\b")
        chat.until(lambda: background(chat) == LIGHT)
        chat.type("\x1b]11;rgb:0000/0000/0000\x07c")  # unrequested
        chat.until_stable("abc")
        assert background(chat) == LIGHT
        assert "rgb" not in chat.text()


@pytest.mark.parametrize("answer", ["", "\x1b[2;3R"])
def test_terminal_without_utf8_gets_only_ascii(answer: str) -> None:
    with terminal(*PROGRAM, env=environment(LANG="C")) as chat:
        chat.until("Ready")
        chat.until(lambda: UTF8_QUERY in chat.output)
        chat.type(f"{answer}Grüße")
        chat.until_stable("Gr??e")
        chat.type("\r")
        chat.until("Gr??e: ?n?c?d?.")
        chat.until("Ready")
        until(lambda: b"\x1b]2;Gr??e - edgechat\x07" in chat.output)
        assert chat.output.replace(UTF8_QUERY, b"").isascii()


def test_setting_overrides_the_locale() -> None:
    code = "import sys; from edgechat.config import Settings; from tests.tui import scripted_program as p\n"
    code += "p.Settings = lambda **values: Settings(**values, ascii=False)\nsys.argv[1:] = ['0.001', 'x']\np.main()"
    with terminal(sys.executable, "-c", code, env=environment(LANG="C")) as chat:
        chat.until("Ready")
        assert "|" not in chat.text()


def test_terminal_that_decodes_utf8_is_drawn_with_all_characters() -> None:
    with terminal(*PROGRAM, env=environment(LANG="C")) as chat:
        chat.until("Ready")
        chat.type("\x1b[2;2R")
        chat.type("Grüße\r")
        chat.until(REPLY)
        chat.until("\u258c")
        until(lambda: "\x1b]2;Grüße - edgechat\x07".encode() in chat.output)
        until(lambda: "\u256d" in chat.text() or "\u2500" in chat.text())


@pytest.mark.parametrize("variables", [{}, {"LC_ALL": "en_US.UTF-8"}])
def test_terminal_is_not_asked_where_the_locale_has_utf8(variables: dict[str, str]) -> None:
    with terminal(*PROGRAM, env=environment(**variables)) as chat:
        chat.until("Ready")
        chat.type("Question\r")
        chat.until(REPLY)
        assert b"\x1b[6n" not in chat.output
