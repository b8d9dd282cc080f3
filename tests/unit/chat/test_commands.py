"""Slash commands: parsing, and the same results in the line-by-line chat and the terminal UI."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgechat import paths
from edgechat.bench.scripted_session import Script, ScriptedSession
from edgechat.chat.command_arguments import choose_export_path, parse_reasoning, select_text_to_copy
from edgechat.chat.command_parser import parse
from edgechat.chat.commands import (
    COMMANDS,
    COMMANDS_BY_NAME,
    View,
)
from edgechat.chat.session import Session
from edgechat.cli.interruption import Interruption
from edgechat.cli.plain_chat import PlainChat
from edgechat.cli.progress import StderrStatus
from edgechat.config import Settings
from edgechat.errors import UsageError
from edgechat.store import open_ephemeral_store
from edgechat.tui.app import ChatApp
from tests.tui.app_driver import make_scripted_app, session, wait_until_ready
from tests.waiting import until_async

REPLIES = [f"Reply number {n}." for n in range(1, 20)]
FAILING = """
/retry | /continue | /edit Text | /switch | /delete | /undo | /export | /copy | /attach missing.txt
/attach ~nosuchuser/x | /new nobody | /persona nobody | /reasoning maybe | /set temperature | /set n_ctx 5
/open nowhere | /model missing.gguf | /rename | /retry now | /nothing | /best | /best 1
/also missing.gguf | /also starter | /compare
"""
"""Commands that fail in an empty conversation, or because of their argument."""
CONVERSATION = """
A question | /earlier | /rename Animals | /pin | /pin | /attach notes.txt | /detach no | /detach
/attach notes.txt | /detach notes.txt | /export | /export out.json | /export out.json
/export out.pdf | /copy | /copy code | /copy all | /retry | /switch | /switch 2 | /switch 3
/temp 0.7 | /best 3 likely | /edit Another question
/also starter | /also missing.gguf | /compare 1 5 | /hard
/continue | /delete | /undo | /system Be brief. | /system | /reasoning off | /thinking 500 | /thinking
/thinking maybe | /docs off | /docs boats | /thinking default | /now | /set temperature 0.2 | /tokens | /temp
/temperature 0.3 | /temp hot | /persona pirate
/model other.gguf | /new pirate | Something else | /open anim | /open Nowhere | /new
"""


def lines_of(script: str) -> list[str]:
    return [line.strip() for row in script.strip().splitlines() for line in row.split("|")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with a file to attach, a model file, and a persona."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("Remember the milk.")
    (tmp_path / "other.gguf").write_text("")
    paths.personas_dir().mkdir(parents=True)
    (paths.personas_dir() / "pirate.toml").write_text('system_prompt = "Arr."\n')
    return tmp_path


def state(session_: Session) -> tuple[list[str], dict[str, Any], bool]:
    """Return the messages on the active path, and what else commands change of a conversation."""
    conversation = session_.conversation
    return [m.text for m in session_.tree.path], conversation.settings, conversation.pinned


def remove_exports(folder: Path) -> None:
    for file in [*folder.glob("Animals*"), *folder.glob("out.*")]:
        file.unlink()


Step = tuple[str, list[str], tuple[list[str], dict[str, Any], bool]]
"""A line of input, the texts that the front end showed for it, and the state after it."""


def walk_plain_chat(lines: list[str], capsys: pytest.CaptureFixture[str]) -> Iterator[Step]:
    plain_session = ScriptedSession(open_ephemeral_store(), Settings(titles=False), Script(REPLIES))
    plain_session.open()
    chat = PlainChat(plain_session, StderrStatus(), Interruption(plain_session))
    chat.has_terminal = True
    for line in lines:
        chat.handle(line)
        output = capsys.readouterr()
        texts = [text.removeprefix("edgechat: ") for text in output.err.splitlines()]
        lines_after_osc = [text.rpartition("\a")[2] for text in output.out.splitlines()]
        texts += [text[1:-1] for text in lines_after_osc if text.startswith("(")]
        yield line, texts, state(plain_session)
    plain_session.close()


def record_texts(app: ChatApp, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that receives every note, error and toast of an application."""
    texts: list[str] = []
    for owner, name in ((app.pane, "add_note"), (app.pane, "show_failure"), (app, "notify")):
        monkeypatch.setattr(owner, name, recorder(texts, getattr(owner, name)))
    return texts


def recorder(texts: list[str], show: Callable[..., object]) -> Callable[..., object]:
    def record(text: str, *arguments: object, **options: object) -> object:
        if not text.endswith("other reply"):  # the keys after a retry, which only the terminal UI has
            texts.append(text)
        return show(text, *arguments, **options)

    return record


async def walk_terminal_ui(steps: list[Step], monkeypatch: pytest.MonkeyPatch) -> None:
    """Type the same lines into the terminal UI, and expect the same texts and states."""
    app = make_scripted_app(*REPLIES)
    async with app.run_test():
        await wait_until_ready(app)
        texts = record_texts(app, monkeypatch)
        for line, expected_texts, expected_state in steps:
            app.pane.prompt.load(line)
            app.pane.prompt.action_send()
            expected = (sorted(expected_texts), expected_state)
            await until_async(
                lambda: (sorted(texts), state(session(app))) == expected and not app.pane.is_busy,  # noqa: B023
                description=lambda: f"{line}: {(sorted(texts), state(session(app)))} is not {expected}",  # noqa: B023
            )
            texts.clear()


@pytest.mark.parametrize("script", [FAILING, CONVERSATION], ids=["failing", "conversation"])
async def test_commands_give_the_same_outcome_in_both_front_ends(
    script: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")  # in tmux and screen, copied text is followed by more sequences
    steps = list(walk_plain_chat(lines_of(script), capsys))
    remove_exports(folder)
    await walk_terminal_ui(steps, monkeypatch)


def test_every_command_with_a_handler_is_walked() -> None:
    walked = {parsed[0].name for line in lines_of(CONVERSATION) if (parsed := parse(line)) is not None}
    assert {c.name for c in COMMANDS if c.run is not None} <= walked


def test_every_view_is_declared_by_a_command_and_implemented_by_the_line_by_line_chat() -> None:
    plain_session = ScriptedSession(open_ephemeral_store(), Settings(), Script([]))
    chat = PlainChat(plain_session, StderrStatus(), Interruption(plain_session))
    assert set(chat.views) == set(get_args(View)) == {c.view for c in COMMANDS if c.view is not None}
    assert all(c.run is not None or c.view is not None for c in COMMANDS)


VIEWS: dict[View, Callable[[ChatApp], object]] = {
    "conversations": lambda app: app.chat.sidebar is not None and app.chat.sidebar.display,
    "search": lambda app: type(app.screen).__name__ == "SearchScreen",
    "editor": lambda app: app.pane.composer.edited_id is not None,
    "copy": lambda app: app.clipboard == REPLIES[1],
    "also": lambda app: type(app.screen).__name__ == "PickerScreen",
    "compare": lambda app: type(app.screen).__name__ == "CompareScreen",
    "models": lambda app: type(app.screen).__name__ == "ModelsScreen",
    "personas": lambda app: type(app.screen).__name__ == "PickerScreen",
    "settings": lambda app: type(app.screen).__name__ == "SettingsScreen",
    "themes": lambda app: type(app.screen).__name__ == "PickerScreen",
    "plan": lambda app: type(app.screen).__name__ == "PlanScreen",
    "documents": lambda app: type(app.screen).__name__ == "DocumentsScreen",
    "figures": lambda app: app.pane.shows_figures,
    "help": lambda app: type(app.screen).__name__ == "HelpScreen",
    "quit": lambda app: app.return_code == 0,
}


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
async def test_every_view_opens_in_the_terminal_ui(monkeypatch: pytest.MonkeyPatch) -> None:
    app = make_scripted_app(*REPLIES)
    suspended: list[bool] = []
    monkeypatch.setattr(app, "action_suspend_process", lambda: suspended.append(True))
    async with app.run_test() as pilot:
        await wait_until_ready(app)
        app.pane.submit("A question")
        await until_async(lambda: len(session(app).tree) == 2 and not app.pane.is_busy)
        app.actions.run("retry")
        await until_async(lambda: len(session(app).tree) == 3 and not app.pane.is_busy)
        for command in COMMANDS:
            if command.view is None or command.view == "quit":
                continue
            app.actions.run(command.name)
            opened: Callable[[ChatApp], object] = VIEWS.get(command.view, lambda _app: suspended)
            await until_async(lambda: opened(app), description=command.name)  # noqa: B023
            if app.screen is not app.chat:
                app.pop_screen()
            await pilot.pause()
        app.actions.run("quit")
        await until_async(lambda: VIEWS["quit"](app))


def test_commands_and_messages_are_told_apart() -> None:
    assert parse("/new") == (COMMANDS_BY_NAME["new"], "")
    assert parse("/RENAME  A title \n") == (COMMANDS_BY_NAME["rename"], "A title")
    assert parse("/edit one\ntwo") == (COMMANDS_BY_NAME["edit"], "one\ntwo")
    messages = (
        "hello",
        " /new",
        "/etc/passwd is what?",
        "// comment",
        "/1",
        "a\n/new",
        "/etc is full",
        "/* c */",
        "/>",
    )
    for message in messages:
        assert parse(message) is None


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("/exit", "quit"), ("/q", "quit"), ("/clear", "new"), ("/models", "model"), ("/history", "open"),
        ("/theme", "theme"), ("/regenerate", "retry"), ("/tokens", "tokens"), ("/temp", "temperature"),
        ("/?", "help"), ("/EXIT", "quit"),
    ],
)  # fmt: skip
def test_aliases_run_the_command(alias: str, name: str) -> None:
    assert parse(alias) == (COMMANDS_BY_NAME[name], "")


def test_names_and_aliases_are_unique() -> None:
    names = [name for command in COMMANDS for name in (command.name, *command.aliases)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("/nwe", "Did you mean .*/new"),
        ("/zzz", "/help"),
        ("/", "/help"),
        ("/nwe\nsecond line", "Did you mean .*/new"),
        ("/re-do it", "Unknown command /re-do"),
        ("/conv", "Did you mean /conversations"),
        ("/?x", "Unknown command"),
        ("/" + "a" * 100_000, "Unknown command"),
        ("/команда", "Unknown command /команда"),
        ("/search", "/search WORDS"),
        ("/retry now", "takes no argument"),
    ],
)
def test_invalid_commands_are_usage_errors(text: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        parse(text)


@given(st.text())
def test_any_text_is_a_message_a_command_or_a_usage_error(text: str) -> None:
    try:
        parsed = parse(text)
    except UsageError:
        return
    assert parsed is None or parsed[0] in COMMANDS


def test_reasoning_is_on_off_or_auto() -> None:
    assert [parse_reasoning(word) for word in ("on", "OFF", "auto")] == [True, False, None]
    with pytest.raises(UsageError, match="maybe"):
        parse_reasoning("maybe")


def test_an_export_never_overwrites_a_file(folder: Path) -> None:
    assert choose_export_path("", "A title: one/two") == folder / "A-title-one-two.md"
    (folder / "A-title-one-two.md").write_text("")
    assert choose_export_path("", "A title: one/two") == folder / "A-title-one-two-2.md"
    with pytest.raises(UsageError, match="exists already"):
        choose_export_path("notes.txt", "")


def test_copy_takes_a_message_or_its_last_code_block() -> None:
    assert select_text_to_copy("Text.", lambda _text: ["a", "b"], "") == ("Text.", "Reply")
    assert select_text_to_copy("Text.", lambda _text: ["a", "b"], "code") == ("b", "Code block 2")
    assert select_text_to_copy("Text.", lambda _text: ["a", "b"], "1") == ("a", "Code block 1")
    assert select_text_to_copy("Text.", lambda _text: ["a", "b"], "code 1") == ("a", "Code block 1")
    with pytest.raises(UsageError, match="has 2 code blocks"):
        select_text_to_copy("Text.", lambda _text: ["a", "b"], "3")
    with pytest.raises(UsageError, match="no code block"):
        select_text_to_copy("Text.", lambda _text: [], "code")


def test_commands_that_do_something_useful_without_an_argument_need_none() -> None:
    needing = {command.name for command in COMMANDS if command.needs_argument}
    assert needing == {"rename", "attach", "export", "system", "reasoning", "thinking", "temperature", "set"}
