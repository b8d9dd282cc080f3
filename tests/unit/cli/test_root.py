"""What all commands share: a standard output that cannot be written, settings with errors, and exit codes."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest

from edgechat import errors, paths, signals
from edgechat.chat.messages import Conversation, Message, new_id
from edgechat.cli import root
from edgechat.store import open_store
from tests.cli.test_ends import ASK, saved_texts
from tests.conftest import ROOT, Cli, edgechat_command

FULL = Path("/dev/full")
NO_SPACE = "edgechat: Cannot write to standard output: No space left on device.\n"


@pytest.mark.skipif(not FULL.exists(), reason="exists on Linux only")
@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"], ["models", "list"], ["models", "list", "--json"], ["history", "export", "--all"],
        ["completion", "bash"],
    ],
)  # fmt: skip
def test_full_disk_behind_standard_output_is_one_line(arguments: list[str]) -> None:
    with FULL.open("w") as full:
        result = subprocess.run(
            edgechat_command(*arguments), stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE, text=True,
            check=False,
        )  # fmt: skip
    assert (result.returncode, result.stderr) == (4, NO_SPACE)


@pytest.mark.skipif(not FULL.exists(), reason="exists on Linux only")
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_reply_that_cannot_be_printed_is_saved(options: list[str]) -> None:
    environment = os.environ | {"REPLY": "first\nand last", "TOKEN_INTERVAL_S": "0"}
    with FULL.open("w") as full:
        result = subprocess.run(
            [*ASK, *options], stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE, text=True, check=False,
            env=environment,
        )  # fmt: skip
    assert (result.returncode, result.stderr) == (4, NO_SPACE)
    question, reply = saved_texts()
    assert question == "Question"
    assert reply == "first\nand last" if options else reply


@pytest.mark.skipif(not FULL.exists(), reason="exists on Linux only")
def test_command_works_although_its_notes_cannot_be_written() -> None:
    paths.config_file().parent.mkdir(parents=True, exist_ok=True)
    paths.config_file().write_text('n_ctx = "long"\n')
    with FULL.open("w") as full:
        result = subprocess.run(
            edgechat_command("config", "show"), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=full,
            text=True, check=False,
        )  # fmt: skip
    assert (result.returncode, "temperature = 0.8" in result.stdout) == (0, True)


@pytest.mark.skipif(not FULL.exists(), reason="exists on Linux only")
@pytest.mark.parametrize(
    ("arguments", "exit_code"), [(["config", "personas"], 0), (["models", "list"], 0), (["models"], 2), (["oops"], 2)]
)
def test_exit_code_does_not_depend_on_notes_that_cannot_be_written(arguments: list[str], exit_code: int) -> None:
    with FULL.open("w") as full:
        result = subprocess.run(
            edgechat_command(*arguments), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=full, check=False
        )
    assert result.returncode == exit_code


@pytest.mark.skipif(not FULL.exists(), reason="exists on Linux only")
@pytest.mark.parametrize(("stream", "message"), [("stdout", NO_SPACE), ("stderr", f"edgechat: {os.strerror(28)}\n")])
def test_only_standard_output_is_named_as_full(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stream: str, message: str
) -> None:
    full = FULL.open("w")

    def run_command(**_options: object) -> None:
        with monkeypatch.context() as context:
            context.setattr(sys, stream, full)
            click.echo("text", err=stream == "stderr")

    monkeypatch.setattr(root.edgechat, "main", run_command)
    assert root.run() == 4
    assert capsys.readouterr().err.rstrip(".\n") == message.rstrip(".\n")
    with contextlib.suppress(OSError):
        full.close()


def test_end_of_file_in_a_command_is_no_declined_question(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def read_pipe(_context: click.Context) -> None:
        raise EOFError("pipe")

    monkeypatch.setattr(root.edgechat, "invoke", read_pipe)
    monkeypatch.setattr(sys, "argv", ["edgechat", "config", "path"])
    with pytest.raises(EOFError, match="pipe"):
        root.run()
    assert "Nothing was deleted" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "n_reports"),
    [
        (["--version"], 0), (["--help"], 0), (["ask", "--help"], 0), (["models", "list"], 0),
        (["history", "list", "--json"], 0), (["config", "path"], 0), (["completion", "bash"], 0),
        (["config", "show"], 1),
    ],
)  # fmt: skip
@pytest.mark.parametrize("text", ['temperature = "hot"\n', "temperature = = 3\n"])
def test_settings_with_errors_are_reported_once_by_commands_that_use_them(
    cli: Cli, arguments: list[str], n_reports: int, text: str
) -> None:
    paths.config_file().parent.mkdir(parents=True, exist_ok=True)
    paths.config_file().write_text(text)
    result = cli(*arguments)
    assert result.returncode == 0
    assert sum(line.endswith("(ignored)") for line in result.stderr.splitlines()) == n_reports


def test_plan_reports_settings_with_errors(cli: Cli, tmp_path: Path) -> None:
    paths.config_file().parent.mkdir(parents=True, exist_ok=True)
    paths.config_file().write_text('n_ctx = "long"\n')
    (tmp_path / "machine.json").write_text("{}")
    first, last = cli("plan", "--machine", str(tmp_path / "machine.json")).stderr.splitlines()
    assert "n_ctx must be a whole number between 16 and 16,777,216, not 'long'" in first
    assert "is not a hardware profile" in last


def test_settings_with_errors_are_reported_before_the_conversation_opens(cli: Cli) -> None:
    open_store().close()
    paths.config_file().parent.mkdir(parents=True, exist_ok=True)
    paths.config_file().write_text('n_ctx = "long"\n')
    result = cli("ask", "--continue", "Hi")
    assert result.returncode == 2
    assert [line.split(": ")[0] for line in result.stderr.splitlines()] == ["edgechat"] * 2
    assert "n_ctx must be a whole number between 16 and 16,777,216, not 'long'" in result.stderr.splitlines()[0]


@pytest.mark.skipif(os.name == "nt", reason="POSIX exit code")
@pytest.mark.parametrize("arguments", [["--help"], ["models", "list"]])
def test_closed_pipe_behind_standard_output_is_141(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        edgechat_command(*arguments), stdin=subprocess.DEVNULL, stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)
    assert (result.returncode, result.stderr) == (141, b"")


@pytest.mark.parametrize("answer", ["n\n", "", "maybe\n"])
def test_question_without_consent_ends_with_1(cli: Cli, answer: str) -> None:
    store = open_store()
    store.append(Conversation(id="a" * 16, created_at_ms=1), [Message(id=new_id(), role="user", text="x")])
    store.close()
    result = cli("history", "delete", "a", input=answer)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].endswith("Nothing was deleted, because the question was not answered with y.")
    assert len(cli("history", "list").stdout.splitlines()) == 1


@pytest.mark.skipif(os.name == "nt", reason="other signals")
def test_every_exit_code_is_documented() -> None:
    page = (ROOT / "docs" / "scripting.md").read_text()
    documented = {int(code) for cell in re.findall(r"^\| ([\d, ]+) \|", page, re.MULTILINE) for code in cell.split(",")}
    raised = {error.exit_code for error in vars(errors).values() if hasattr(error, "exit_code")}
    raised |= {signals.exit_code(number) for number in (*signals.ENDING_SIGNALS, signal.SIGINT)}
    assert documented == raised | {0, 1, 141}


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_chat_starts_the_chat_without_a_model(tmp_path: Path) -> None:
    recipe = subprocess.run(
        ["make", "-n", "-f", ROOT / "Makefile", "-o", "setup", "chat"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "exec .venv/bin/edgechat;" in recipe
    assert "edgechat ask -m starter" in recipe  # without a terminal


@pytest.mark.parametrize(
    ("model", "note"), [("auto", "edgechat: Model: auto. To use another one, add -m NAME.\n"), ("scripted", "")]
)
def test_ask_names_an_automatically_chosen_model(model: str, note: str) -> None:
    environment = os.environ | {"REPLY": "Yes.", "TOKEN_INTERVAL_S": "0", "MODEL": model}
    result = subprocess.run(ASK, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env=environment)
    assert (result.returncode, result.stdout, result.stderr) == (0, "Yes.\n", note)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-m", "one", "ask", "hi"], {"model": "one", "prompt": "hi"}),
        (["--temperature=0.5", "--ephemeral", "ask", "-m", "two", "hi"], {"temperature": 0.5, "ephemeral": True}),
        (["-m", "one", "ask", "-m", "two", "hi"], {"model": "two"}),
        (["-c", "ask", "--", "-m"], {"continue_last": True, "prompt": "-m"}),
        (["-m", "one", "--ctx", "512", "plan"], {"models": ("one",), "n_ctx": 512}),
    ],
)
def test_options_before_a_command_belong_to_it(
    arguments: list[str], expected: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    values: dict[str, object] = {}
    for name in ("ask", "plan"):
        command = root.edgechat.get_command(click.Context(root.edgechat), name)
        assert command is not None
        monkeypatch.setattr(command, "callback", lambda **options: values.update(options))
    root.edgechat.main(arguments, standalone_mode=False)
    assert expected.items() <= values.items()


@pytest.mark.parametrize(("arguments", "option"), [(["-m", "x", "doctor"], "-m"), (["--plain", "ask", "x"], "--plain")])
def test_option_that_a_command_lacks_is_reported(arguments: list[str], option: str, cli: Cli) -> None:
    result = cli(*arguments)
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert re.search(f"No such option:? '?{option}", result.stderr)


def test_version_and_help_before_a_command_are_printed(cli: Cli) -> None:
    assert cli("--version", "ask").stdout.startswith("edgechat, version")
    assert "Usage: edgechat ask " in cli("-h", "ask").stdout
